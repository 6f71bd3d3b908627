"""Find exact duplicates across splits and across classes, by pixel hash."""

import numpy as np
from numpy.typing import NDArray

from raycnn.data.images.cache import ImageCache
from raycnn.data.label_arrays import distinct_labels

SHOWN = 3  # pairs named in a warning

SplitIndices = dict[str, tuple[str, NDArray[np.int64]]]
"""For train, val and test: the split of the source that holds its images, and their rows in it."""


def duplicates(cache: ImageCache, members: SplitIndices) -> list[str]:
    """Return a warning for duplicates across splits, and one for duplicates across classes.

    Returns an empty list if there are no duplicates.
    """
    names = list(members)
    sources = [(cache.splits[source_split], rows) for source_split, rows in members.values()]
    split = np.repeat(np.arange(len(names)), [len(rows) for _, rows in sources])
    row = np.concatenate([rows for _, rows in sources])
    hashes = np.concatenate([source.hashes[rows] for source, rows in sources])
    labels = np.concatenate([source.labels[rows] for source, rows in sources])

    def name(index: int) -> str:
        source, _ = sources[split[index]]
        return f"{names[split[index]]} {source.name(int(row[index]))}"

    warnings = []
    for kind, groups in (("splits", split), ("classes", distinct_labels(labels))):
        order = np.lexsort((groups, hashes))
        first, second = order[:-1], order[1:]
        across = (hashes[first] == hashes[second]) & (groups[first] != groups[second])
        if count := len(np.unique(hashes[first[across]])):
            pairs = list(zip(first[across], second[across], strict=True))[:SHOWN]
            shown = "; ".join(f"{name(a)} and {name(b)}" for a, b in pairs)
            images = "image is" if count == 1 else "images are"
            more = "; ..." * (count > SHOWN)
            warnings.append(f"{count:,} {images} duplicated across {kind}: {shown}{more}")
    return warnings
