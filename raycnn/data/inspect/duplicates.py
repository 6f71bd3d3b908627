"""Images that stand in the data twice, pixel for pixel, where they should not."""

import numpy as np
from numpy.typing import NDArray

from raycnn.data.images.store import Store

SHOWN = 3  # pairs that a warning names

SplitIndices = dict[str, tuple[str, NDArray[np.int64]]]


def duplicates(store: Store, members: SplitIndices) -> list[str]:
    """A sentence about images in two splits, and one about images in two classes, if there are.

    `members` are the rows of the store's splits that train, val and test consist of.
    """
    parts = list(members.items())
    part = np.repeat(np.arange(len(parts)), [len(rows) for _, (_, rows) in parts])
    row = np.concatenate([rows for _, (_, rows) in parts])
    hashes = np.concatenate([store.splits[split].hashes[rows] for _, (split, rows) in parts])
    labels = np.concatenate([store.splits[split].labels[rows] for _, (split, rows) in parts])

    def name(place: int) -> str:
        split, (stored, _) = parts[part[place]]
        return f"{split} {store.splits[stored].name(int(row[place]))}"

    said = []
    for kind, of in (("splits", part), ("classes", labels)):
        order = np.lexsort((of, hashes))
        one, other = order[:-1], order[1:]
        apart = (hashes[one] == hashes[other]) & (of[one] != of[other])
        if found := len(np.unique(hashes[one[apart]])):
            pairs = list(zip(one[apart], other[apart], strict=True))[:SHOWN]
            shown = "; ".join(f"{name(a)} and {name(b)}" for a, b in pairs)
            stand = "image stands" if found == 1 else "images stand"
            said.append(f"{found:,} {stand} in two {kind}: {shown}{'; ...' * (found > SHOWN)}")
    return said
