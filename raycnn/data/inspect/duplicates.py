"""Find exact duplicates across splits and across classes, by pixel hash."""

import numpy as np
from numpy.typing import NDArray

from raycnn.data.images.store import Store
from raycnn.data.label_arrays import distinct_labels

SHOWN = 3  # pairs named in a warning

SplitIndices = dict[str, tuple[str, NDArray[np.int64]]]


def duplicates(store: Store, members: SplitIndices) -> list[str]:
    """Return a warning for duplicates across splits, and one for duplicates across classes.

    `members` maps train, val and test each to a split of the store and its rows. Returns an empty
    list where there are no duplicates.
    """
    splits = list(members.items())
    split = np.repeat(np.arange(len(splits)), [len(rows) for _, (_, rows) in splits])
    row = np.concatenate([rows for _, (_, rows) in splits])
    hashes = np.concatenate([store.splits[stored].hashes[rows] for _, (stored, rows) in splits])
    labels = np.concatenate([store.splits[stored].labels[rows] for _, (stored, rows) in splits])

    def name(index: int) -> str:
        split_name, (stored, _) = splits[split[index]]
        return f"{split_name} {store.splits[stored].name(int(row[index]))}"

    warnings = []
    for kind, groups in (("splits", split), ("classes", distinct_labels(labels))):
        order = np.lexsort((groups, hashes))
        first, second = order[:-1], order[1:]
        apart = (hashes[first] == hashes[second]) & (groups[first] != groups[second])
        if found := len(np.unique(hashes[first[apart]])):
            pairs = list(zip(first[apart], second[apart], strict=True))[:SHOWN]
            shown = "; ".join(f"{name(a)} and {name(b)}" for a, b in pairs)
            images = "image is" if found == 1 else "images are"
            more = "; ..." * (found > SHOWN)
            warnings.append(f"{found:,} {images} duplicated across {kind}: {shown}{more}")
    return warnings
