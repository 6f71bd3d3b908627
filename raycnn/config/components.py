"""The closed tables of what a spec can name. Builders are imported when they are used."""

from typing import TYPE_CHECKING

from raycnn.config.registry import Registry

if TYPE_CHECKING:
    from torch import nn

    from raycnn.data.sources.base import Source
    from raycnn.data.transforms.base import Transform
    from raycnn.training.optim import Optimizer, Schedule


def _in(module: str, *names: str) -> dict[str, str]:
    """Return where each builder is, of those that are called as the spec calls them."""
    return {name: f"raycnn.{module}:{name}" for name in names}


DATASETS: "Registry[Source]" = Registry(
    "dataset",
    "data",
    {
        **_in("data.sources.cifar", "cifar10", "cifar100"),
        **_in("data.sources.digits", "digits"),
        **_in("data.sources.folder", "folder"),
        **_in("data.sources.hdf5", "hdf5"),
        **_in("data.sources.idx", "fashion_mnist", "mnist"),
        **_in("data.sources.parquet", "parquet"),
        **_in("data.sources.synthetic", "synthetic"),
    },
    group="raycnn.datasets",
)
"""A builder takes (root, download, *, options)."""

TRANSFORMS: "Registry[Transform]" = Registry(
    "transform",
    "data.transforms",
    {
        **_in("data.transforms.color", "color_jitter", "random_erasing"),
        **_in(
            "data.transforms.geometry",
            "center_crop", "horizontal_flip", "random_crop", "random_resized_crop", "resize",
            "vertical_flip",
        ),
        **_in("data.transforms.mix", "cutmix", "mixup"),
    },
)  # fmt: skip
"""A builder takes (*, options)."""

MODELS: "Registry[nn.Module]" = Registry(
    "model",
    "model",
    {
        **_in("models.alexnet", "alexnet"),
        **_in("models.googlenet", "googlenet"),
        **_in("models.lenet", "lenet"),
        **_in("models.resnet", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
        **_in("models.vgg", "vgg11", "vgg13", "vgg16", "vgg19"),
    },
    group="raycnn.models",
    families={"torchvision": "raycnn.models.torchvision:builder_of"},
)
"""A builder takes (shape, classes, *, options)."""

OPTIMIZERS: "Registry[Optimizer]" = Registry(
    "optimizer", "optimizer", _in("training.optim", "adam", "adamw", "sgd")
)
"""A builder takes (named parameters, *, options)."""

SCHEDULES: "Registry[Schedule]" = Registry(
    "schedule", "schedule", _in("training.optim", "constant", "cosine", "one_cycle", "step")
)
"""A builder takes (steps of the run, *, options)."""
