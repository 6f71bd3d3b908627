"""Registries of the components that a spec can name. Builders are imported on first use."""

from typing import TYPE_CHECKING

from raycnn.config.registry import Registry

if TYPE_CHECKING:
    from torch import nn

    from raycnn.data.sources.base import Source
    from raycnn.data.transforms.base import Transform
    from raycnn.training.optim import Optimizer
    from raycnn.training.schedules import Schedule


def _import_paths(module: str, *names: str) -> dict[str, str]:
    """Return the import path of each builder whose function name is its name in the spec."""
    return {name: f"raycnn.{module}:{name}" for name in names}


DATASETS: "Registry[Source]" = Registry(
    "dataset",
    "data",
    {
        **_import_paths("data.sources.cifar", "cifar10", "cifar100"),
        **_import_paths("data.sources.csv", "csv"),
        **_import_paths("data.sources.digits", "digits"),
        **_import_paths("data.sources.folder", "folder"),
        **_import_paths("data.sources.hdf5", "hdf5"),
        **_import_paths("data.sources.idx", "fashion_mnist", "mnist"),
        **_import_paths("data.sources.parquet", "parquet"),
        **_import_paths("data.sources.synthetic", "synthetic"),
    },
    group="raycnn.datasets",
)
"""Data sets; a builder takes (root, download, *, options)."""

TRANSFORMS: "Registry[Transform]" = Registry(
    "transform",
    "data.transforms",
    {
        **_import_paths("data.transforms.auto_augment", "rand_augment", "trivial_augment"),
        **_import_paths("data.transforms.color", "color_jitter", "random_erasing"),
        **_import_paths(
            "data.transforms.geometry",
            "center_crop", "horizontal_flip", "random_crop", "random_resized_crop", "resize",
            "vertical_flip",
        ),
        **_import_paths("data.transforms.mix", "cutmix", "mixup"),
    },
)  # fmt: skip
"""Image transforms; a builder takes (*, options)."""

MODELS: "Registry[nn.Module]" = Registry(
    "model",
    "model",
    {
        **_import_paths("models.alexnet", "alexnet"),
        **_import_paths("models.googlenet", "googlenet"),
        **_import_paths("models.lenet", "lenet"),
        **_import_paths(
            "models.resnet", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"
        ),
        **_import_paths("models.resnet9", "resnet9"),
        **_import_paths("models.vgg", "vgg11", "vgg13", "vgg16", "vgg19"),
    },
    group="raycnn.models",
    families={"torchvision": "raycnn.models.torchvision:builder_of"},
)
"""Networks; a builder takes (shape, classes, *, options)."""

OPTIMIZERS: "Registry[Optimizer]" = Registry(
    "optimizer",
    "optimizer",
    _import_paths("training.optim", "adam", "adamw", "lamb", "rmsprop", "sgd"),
)
"""Optimizers; a builder takes (named parameters, *, options)."""

SCHEDULES: "Registry[Schedule]" = Registry(
    "schedule",
    "schedule",
    _import_paths("training.schedules", "constant", "cosine", "one_cycle", "step"),
)
"""Learning-rate schedules; a builder takes (total steps, *, options)."""
