"""The uncertainty of accuracies that were measured on a limited number of images."""

import math

FEW_IMAGES = 100  # with fewer validation images the choice of the best epoch is called uncertain
Z95 = 1.959963984540054  # quantile of the standard normal distribution, two-sided


def confidence_interval(hits: int, count: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of an accuracy (Wilson, JASA 22, 1927, pages 209-212)."""
    if not count:
        return 0.0, 1.0
    accuracy, correction = hits / count, Z95**2 / count
    center = accuracy + correction / 2
    half_width = Z95 * math.sqrt(accuracy * (1 - accuracy) / count + correction / (4 * count))
    low, high = center - half_width, center + half_width
    return max(0.0, low / (1 + correction)), min(1.0, high / (1 + correction))


def small_validation_warning(count: int, multi_label: bool = False) -> str | None:
    """Return how uncertain an accuracy on `count` validation images is; None for 0 or enough."""
    if not 0 < count < FEW_IMAGES:
        return None
    if multi_label:
        return f"only {count} validation images choose the best epoch: data.val holds out more"
    low, high = confidence_interval(round(0.8 * count), count)
    return (
        f"only {count} validation images choose the best epoch: 80 % of them right means "
        f"{low:.0%} to {high:.0%} (95 % interval); data.val holds out more"
    )
