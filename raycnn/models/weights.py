"""torchvision's weights for ImageNet: which networks have them, and what images they expect."""

from raycnn.config.schema import Model

IMAGENET = "imagenet"

# Mean and standard deviation of each channel, on the scale 0 to 1.
IMAGENET_NORMALIZATION = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
HALF_NORMALIZATION = ([0.5] * 3, [0.5] * 3)
# Ported to torchvision from elsewhere, and trained with the second.
HALF_NORMALIZED = {"efficientnet_v2_l", "googlenet", "inception_v3"}


def torchvision_name(choice: Model) -> str:
    """Return torchvision's name of a network."""
    name = choice.name.removeprefix("torchvision:")
    return f"{name}_bn" if choice.options.get("batch_norm") else name


def published_normalization(
    choice: Model, channels: int = 3
) -> tuple[list[float], list[float]] | None:
    """Return the mean and deviation that a network's ImageNet weights were trained with.

    Gray images have the average of the three colors'. None where the job starts from no such
    weights.
    """
    if choice.weights != IMAGENET:
        return None
    ported = torchvision_name(choice) in HALF_NORMALIZED
    mean, std = HALF_NORMALIZATION if ported else IMAGENET_NORMALIZATION
    return (mean, std) if channels == 3 else ([sum(mean) / 3] * channels, [sum(std) / 3] * channels)
