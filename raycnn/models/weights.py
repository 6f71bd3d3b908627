"""torchvision's ImageNet weights: the names of their networks, and their normalization."""

from raycnn.config.schema import Model

IMAGENET = "imagenet"

# Mean and standard deviation of each channel, for pixel values from 0 to 1.
IMAGENET_NORMALIZATION = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
HALF_NORMALIZATION = ([0.5] * 3, [0.5] * 3)
# Weights that were ported to torchvision, and were trained with HALF_NORMALIZATION.
HALF_NORMALIZED = {"efficientnet_v2_l", "googlenet", "inception_v3"}


def torchvision_name(choice: Model) -> str:
    """Return the torchvision name of a network: `vgg11_bn` for vgg11 with batch norm."""
    name = choice.name.removeprefix("torchvision:")
    return f"{name}_bn" if choice.options.get("batch_norm") else name


def published_normalization(
    choice: Model, channels: int = 3
) -> tuple[list[float], list[float]] | None:
    """Return the per-channel mean and standard deviation that ImageNet weights were trained with.

    Grayscale images get the average over the three colors. Return None if the job does not
    start from ImageNet weights.
    """
    if choice.weights != IMAGENET:
        return None
    ported = torchvision_name(choice) in HALF_NORMALIZED
    mean, std = HALF_NORMALIZATION if ported else IMAGENET_NORMALIZATION
    return (mean, std) if channels == 3 else ([sum(mean) / 3] * channels, [sum(std) / 3] * channels)
