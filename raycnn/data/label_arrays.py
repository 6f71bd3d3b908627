"""The labels of N images: (N,) int64, one class each, or multi-label (N, K) uint8.

In a multi-label array a 1 marks each of an image's classes, of which it may have any number. The
number of dimensions distinguishes the two.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

LabelArray = NDArray[Any]


def is_multi_label(labels: LabelArray) -> bool:
    return labels.ndim == 2


def class_counts(labels: LabelArray, classes: int) -> NDArray[np.int64]:
    """Return the number of images of each class (K,)."""
    if is_multi_label(labels):
        return labels.sum(0, dtype=np.int64)
    return np.bincount(labels, minlength=classes)


def strata(labels: LabelArray) -> NDArray[np.int64]:
    """Return the stratum (N,) of each image: its class, or of several the rarest.

    Images without any class are a stratum of their own.
    """
    if not is_multi_label(labels):
        return labels
    counts = class_counts(labels, labels.shape[1])
    rarest = np.where(labels, counts, len(labels) + 1).argmin(1)
    return np.where(labels.any(1), rarest, labels.shape[1])


def distinct_labels(labels: LabelArray) -> NDArray[np.int64]:
    """Return numbers (N,) that are equal for images with equal labels."""
    if not is_multi_label(labels):
        return labels
    return np.unique(labels, axis=0, return_inverse=True)[1].ravel()


def label_name(label: Any, classes: tuple[str, ...]) -> str:
    """Return the class name of one image's label, or several names: `cat, dog`."""
    if np.ndim(label):
        return ", ".join(classes[k] for k in np.flatnonzero(label)) or "none"
    return classes[label]
