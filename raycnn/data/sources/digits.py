"""scikit-learn's handwritten digits: 1,797 gray images of 8 x 8 pixels, shipped in that package.

"Optical Recognition of Handwritten Digits", Alpaydin and Kaynak 1998 (UCI repository). It has no
test split: 357 images, sampled by class and the same for every job, are held out as one.
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from raycnn.data.sampling import stratified_sample
from raycnn.data.sources.base import Source, Split
from raycnn.errors import DataError
from raycnn.shape import Shape

TEST, TEST_SEED = 357, 0
MAX_VALUE = 16  # pixel values are 0 to 16


class Digits:
    """The digits of scikit-learn's package."""

    shape = Shape(1, 8, 8)
    classes: tuple[str, ...] = tuple("0123456789")

    def files(self) -> list[Path]:
        # Locate the package without importing scikit-learn, which takes longer than the training.
        package = find_spec("sklearn")
        path = Path(package.origin if package and package.origin else "").parent
        path = path / "datasets" / "data" / "digits.csv.gz"
        if not path.is_file():
            raise DataError(f"scikit-learn's digits are missing: {path}")
        return [path]

    def read(self) -> dict[str, Split]:
        table = np.loadtxt(self.files()[0], delimiter=",")
        images = np.rint(table[:, :-1] * (255 / MAX_VALUE)).astype(np.uint8).reshape(-1, 8, 8, 1)
        labels = table[:, -1].astype(np.int64)
        test = stratified_sample(labels, TEST, TEST_SEED)
        train = np.setdiff1d(np.arange(len(labels)), test)
        return {
            "train": Split(images[train], labels[train]),
            "test": Split(images[test], labels[test]),
        }


def digits(root: Path, download: bool) -> Source:
    return Digits()
