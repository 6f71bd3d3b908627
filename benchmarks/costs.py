"""How the seconds of commands grow with images, classes, runs and trials.

    uv run python -m benchmarks.costs [images|classes|runs|trials]...

Each command is run in a process of its own. Printed are its seconds at each size, and the power of
the size by which the seconds beyond those of the smallest grow: 1 is linear. Where they are too few
to tell, there is a dash.
"""

import argparse
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from raycnn import io
from raycnn.config import yaml_file

LINKS = 30_000  # of one file: file systems have a limit
NOTICEABLE_S = 0.5
IMAGES_PER_CLASS = 5


def link_images(folder: Path, count: int, classes: int) -> None:
    """Make a folder of images, with a subfolder per class, that all show the same few."""
    pixels = np.random.default_rng(0)
    for index in range(count):
        if index % LINKS == 0:
            original = folder.parent / f"original-{index}.png"
            Image.fromarray(pixels.integers(0, 256, (16, 16), np.uint8)).save(original)
        name = folder / f"class-{index % classes}" / f"{index}.png"
        name.parent.mkdir(parents=True, exist_ok=True)
        os.link(original, name)


def write_job(folder: Path) -> None:
    job = {
        "name": "costs",
        "data": {"name": "folder", "path": "images", "root": str(folder), "val": 0.2, "test": 0.2},
        "model": {"name": "lenet"},
        "train": {"epochs": 1},
    }
    with (folder / "job.yaml").open("w") as file:
        yaml_file.dump(job, file)


def prepare_images(folder: Path, size: int) -> None:
    link_images(folder / "images", size, 2)
    write_job(folder)


def prepare_classes(folder: Path, size: int) -> None:
    link_images(folder / "images", size * IMAGES_PER_CLASS, size)
    write_job(folder)


def prepare_runs(folder: Path, size: int) -> None:
    """Train once, and copy the run."""
    raycnn(folder, "train quickstart train.epochs=1")
    first = folder / "runs" / "quickstart" / "1"
    for number in range(2, size + 1):
        link_folder(first, first.with_name(str(number)))


def prepare_trials(folder: Path, size: int) -> None:
    """Search with one trial, and copy the trial."""
    search = {
        "name": "costs",
        "data": {"name": "digits", "transforms": [{"name": "resize", "size": 16}]},
        "model": "lenet",
        "train": {"epochs": 1},
        "workers": {"launcher": "local"},
        "tune": {"trials": 1, "space": {"optimizer.lr": {"loguniform": [1e-3, 1e-1]}}},
    }
    with (folder / "costs.tune.yaml").open("w") as file:
        yaml_file.dump(search, file)
    raycnn(folder, "tune costs.tune.yaml")
    (first,) = (folder / "runs" / "costs" / "1" / "trials").iterdir()
    for number in range(2, size + 1):
        copied = first.with_name(f"{first.name[:-1]}{number}")
        link_folder(first, copied)
        info = io.read_json(copied / "trial.json") or {}
        io.write_json(copied / "trial.json", info | {"number": number})


def link_folder(folder: Path, target: Path) -> None:
    """Copy a folder by links to its files; not to locks, which are changed in place."""

    def link_or_copy(source: str, copied: str) -> None:
        copy = shutil.copy if source.endswith(".lock") else os.link
        copy(source, copied)

    shutil.copytree(folder, target, copy_function=link_or_copy)


def raycnn(folder: Path, command: str) -> float:
    """Return the seconds of one command."""
    environment = os.environ | {"RAYCNN_CACHE": str(folder / "cache")}
    start = time.perf_counter()
    words = [sys.executable, "-m", "raycnn", *command.split()]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{command}: {done.stderr}")
    return time.perf_counter() - start


Prepare = Callable[[Path, int], None]
STUDIES: dict[str, tuple[Prepare, list[int], list[str]]] = {
    "images": (
        prepare_images,
        [10, 1_000, 100_000],
        ["check job.yaml", "train job.yaml storage.report=false", "train job.yaml", "report costs"],
    ),
    "classes": (
        prepare_classes,
        [2, 100, 10_000],
        ["check job.yaml", "train job.yaml storage.report=false", "report costs"],
    ),
    "runs": (prepare_runs, [10, 500, 5_000], ["list runs", "list runs --json", "train quickstart"]),
    "trials": (prepare_trials, [10, 500, 5_000], ["list searches", "report costs"]),
}
"""For each: what makes a folder of a size, the sizes, and the commands, in their order."""


def growth(sizes: list[int], seconds: list[float]) -> str:
    """Return the exponent of the growth beyond the smallest size."""
    middle, most = (value - seconds[0] for value in seconds[1:])
    if most < NOTICEABLE_S:
        return "-"
    # A middle that cannot be told from the smallest counts as noticeable: the exponent is a floor.
    power = math.log(most / max(middle, NOTICEABLE_S)) / math.log(sizes[2] / sizes[1])
    return f"{'>' if middle < NOTICEABLE_S else ''}{power:.2f}"


def study(name: str) -> None:
    prepare, sizes, commands = STUDIES[name]
    columns: list[list[float]] = []
    for size in sizes:
        with TemporaryDirectory() as folder:
            prepare(Path(folder), size)
            columns.append([raycnn(Path(folder), command) for command in commands])
    print(f"{name:<44}" + "".join(f"{size:>10,}" for size in sizes) + f"{'growth':>8}")
    for command, *seconds in zip(commands, *columns, strict=True):
        figures = "".join(f"{value:>10.1f}" for value in seconds)
        print(f"  {command:<42}{figures}{growth(sizes, seconds):>8}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("studies", nargs="*", help="all, if none is named")
    for name in parser.parse_args().studies or STUDIES:
        study(name)


if __name__ == "__main__":
    main()
