"""The data sets by name. A builder takes (root, download, *, options)."""

from raycnn.config.registry import Registry
from raycnn.data.sources.base import Source
from raycnn.data.sources.cifar import cifar10, cifar100
from raycnn.data.sources.digits import digits
from raycnn.data.sources.folder import folder
from raycnn.data.sources.hdf5 import hdf5
from raycnn.data.sources.idx import fashion_mnist, mnist
from raycnn.data.sources.parquet import parquet
from raycnn.data.sources.synthetic import synthetic

DATASETS: Registry[Source] = Registry(
    "dataset",
    "data",
    {
        "cifar10": cifar10,
        "cifar100": cifar100,
        "digits": digits,
        "fashion_mnist": fashion_mnist,
        "folder": folder,
        "hdf5": hdf5,
        "mnist": mnist,
        "parquet": parquet,
        "synthetic": synthetic,
    },
    group="raycnn.datasets",
)
