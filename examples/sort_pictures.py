"""Copy pictures into a folder per class, as a network sees them.

python examples/sort_pictures.py RUN-OR-EXPORT PICTURES SORTED
"""

import shutil
import sys
from pathlib import Path

import raycnn

SURE = 0.8  # less probable pictures go into a folder of their own, to be looked at


def main(network: str, pictures: str, target: str) -> None:
    for prediction in raycnn.open_network(network).predict(pictures):
        sure = prediction.probability >= SURE
        folder = Path(target) / (prediction.label if sure else "unsure")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy2(prediction.source, folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
