"""Reading folders of JPEGs: images per second and memory, beside other ways and the ceiling.

    uv run python -m benchmarks.data [--images 100000] [--size 64] [--epochs 3] [--only NAME]...

The pictures are made first: 320 x 240 and hard links of 500 different ones, which take little disk
and stay in memory, so that decoding is measured and not the disk. `decode` decodes them to the size
on all CPUs and does nothing else: the ceiling, measured before and after each way, whose line
follows both. `raycnn` (a stream), `torch` (ImageFolder and DataLoader) and `ray` (Ray Data) train a
linear layer, which takes hardly any time, with one thread beside 1, 2 and 4 processes that decode.
`build` is the first building of raycnn's cache, and `train` the command, on a stream with a small
network.

Printed are the images per second (the median epoch after the first), the same as a share of the
mean of both ceilings, the most memory that all processes had at once (PSS), and what it was in each
epoch.
"""

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.peers import SCRIPTS, measure
from raycnn.config import yaml_file

CPUS = len(os.sched_getaffinity(0))
DIFFERENT, CLASSES, BATCH = 500, 10, 128
WIDTH, HEIGHT, CELL = 320, 240, 16
WAYS: dict[str, tuple[str, list[int]]] = {
    "build": ("build_raycnn", [CPUS]),
    "raycnn": ("read_raycnn", [1, 2, 4]),
    "torch": ("read_torch", [1, 2, 4]),
    "ray": ("read_ray", [1, 2, 4]),
}
"""For each way its script, and the numbers of processes that decode."""


def write_pictures(folder: Path, count: int) -> None:
    """Write JPEGs of smooth random colors with some noise, in a folder per class."""
    numbers = np.random.default_rng(0)
    originals = folder.parent / "originals"
    originals.mkdir()
    for index in range(count):
        original = originals / f"{index % DIFFERENT}.jpg"
        if index < DIFFERENT:
            cells = numbers.integers(0, 256, (HEIGHT // CELL, WIDTH // CELL, 3), np.uint8)
            smooth = Image.fromarray(cells).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
            pixels = np.asarray(smooth) + numbers.normal(0, 4, (HEIGHT, WIDTH, 1))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(original, quality=85)
        name = folder / f"class-{index % CLASSES}" / f"{index:06d}.jpg"
        name.parent.mkdir(parents=True, exist_ok=True)
        os.link(original, name)


def read(script: str, processes: int, pictures: Path, size: int, epochs: int) -> dict[str, Any]:
    """Run a script in a process of its own, in a new folder."""
    options = {
        "data": pictures, "size": size, "batch": BATCH, "epochs": epochs, "processes": processes,
    }  # fmt: skip
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    with TemporaryDirectory() as folder:
        return measure([sys.executable, str(SCRIPTS / f"{script}.py"), *words], Path(folder), None)


def train(pictures: Path, size: int, epochs: int) -> dict[str, Any]:
    """Run the command, on a stream, with a network that sees only a few pixels."""
    job = {
        "name": "data",
        "data": {
            "name": "folder", "root": str(pictures), "size": size, "cache": "stream", "val": 0,
            "test": 0.01, "transforms": [{"name": "center_crop", "size": 16}],
        },
        "model": "lenet",
        "train": {"epochs": epochs, "batch_size": BATCH},
    }  # fmt: skip
    with TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "job.yaml").open("w") as file:
            yaml_file.dump(job, file)
        # One thread for the network: on a CPU the others would take turns with the decoding.
        command = ["env", "OMP_NUM_THREADS=1", sys.executable, "-m", "raycnn", "train", "job.yaml"]
        return measure(command, folder, folder / "runs" / "data" / "1")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument(
        "--only", action="append", choices=[*WAYS, "train"], help="all, if left out"
    )
    args = parser.parse_args()
    chosen = args.only or [*WAYS, "train"]
    print(f"{'way':<8}{'processes':>10}{'images/s':>10}{'of ceiling':>12}{'MiB':>7}  MiB by epoch")
    with TemporaryDirectory() as name:
        pictures = Path(name) / "pictures"
        write_pictures(pictures, args.images)

        def ceiling() -> dict[str, Any]:
            facts = read("decode_only", CPUS, pictures, args.size, args.epochs)
            show("decode", CPUS, facts)
            return facts

        measurements: list[tuple[str, int, Callable[[], dict[str, Any]]]] = [
            (way, count, partial(read, script, count, pictures, args.size, args.epochs))
            for way, (script, counts) in WAYS.items()
            if way in chosen
            for count in counts
        ]
        if "train" in chosen:
            measurements.append(("train", CPUS, partial(train, pictures, args.size, args.epochs)))
        before = ceiling()
        for way, count, run in measurements:
            facts = run()
            after = ceiling()
            show(way, count, facts, before, after)
            before = after


def show(way: str, processes: int, facts: dict[str, Any], *ceilings: dict[str, Any]) -> None:
    if "failed" in facts:
        print(f"{way:<8}{processes:>10}  failed: {facts['failed']}", flush=True)
        return
    rates = [ceiling["images_per_s"] for ceiling in ceilings if "failed" not in ceiling]
    share = f"{facts['images_per_s'] / fmean(rates):.2f}" if rates else ""
    peaks = " ".join(map(str, facts["peaks_mib"][:-1]))
    print(
        f"{way:<8}{processes:>10}{facts['images_per_s']:>10,}{share:>12}"
        f"{facts['memory_mib']:>7,}  {peaks}",
        flush=True,
    )


if __name__ == "__main__":
    main()
