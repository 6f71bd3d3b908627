"""Speed, first step, accuracy and memory beside other ways to train the same network.

    uv run python -m benchmarks.peers [lenet|resnet18] [--only NAME] [--limit IMAGES] [--epochs N]

LeNet learns MNIST and ResNet-18 (torchvision's, for large images) CIFAR-10, from a folder of PNG
files in color that is made first: the same images, batch, learning rate and momentum for all, and
no augmentation. uv gives each peer's packages an environment of their own. Printed is a line of
JSON for each: images per second (the median epoch after the first), seconds to the first step and
to the end, test accuracy, and the most memory that all of its processes had at once (PSS),
for those that report epochs also in each, and after the last.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.memory import pss_mib
from raycnn.config import yaml_file
from raycnn.config.load import load_job
from raycnn.data.splits import open_splits
from raycnn.runs.directory import Run

SCRIPTS = Path(__file__).parent / "peer_scripts"
JOBS = Path(__file__).parent.parent / "jobs"
PACKAGES = {
    "lightning": ["lightning"], "timm": ["timm"], "ultralytics": ["ultralytics"], "ray": [],
}  # fmt: skip
WAYS = ["raycnn", *PACKAGES, "raycnn-ray"]
RECIPES = {  # job whose images are used, their size here (Ultralytics needs 32), learning rate
    "lenet": ("lenet-mnist", 32, 0.02),
    "resnet18": ("alexnet-cifar10-published", 32, 0.05),
}
BATCH, MOMENTUM = 128, 0.9


@dataclass
class Measured:
    """The measurements of one way of training."""

    first_step_s: float | None = None
    rates: list[float] = field(default_factory=list)
    acc1: float | None = None
    peaks_mib: list[float] = field(default_factory=lambda: [0.0])
    """The most memory of all processes at once, until the first rate, the next, and the end."""


def write_pictures(recipe: str, limit: int | None, folder: Path) -> None:
    """Write a data set as folders of PNG files in color, one folder per class."""
    name, size, _ = RECIPES[recipe]
    changes = ["data.val=0", "data.transforms=[]"] + ([f"data.limit={limit}"] if limit else [])
    splits = open_splits(load_job(JOBS / f"{name}.yaml", changes))
    for split in ("train", "test"):
        stored, rows = splits.cache.splits[split], splits.members[split][1]
        if limit and split == "test":
            rows = rows[:limit]
        for row in rows:
            path = folder / split / splits.classes[stored.labels[row]] / f"{row:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(stored.images[row].squeeze()).convert("RGB")
            picture.resize((size, size)).save(path)


def measure(command: list[str], folder: Path, run: Path | None) -> dict[str, Any]:
    """Run a command, and return what it did; `run` is the run folder where raycnn trains."""
    measured, start = Measured(), time.time()
    environment = os.environ | {
        "RAYCNN_CACHE": str(folder / "cache"),
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else each of Ray's workers builds an environment
    }
    errors = folder / "errors.log"
    with errors.open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
        )
        watch = threading.Thread(target=_watch, args=(process, measured, run, start))
        watch.start()
        assert process.stdout
        for line in process.stdout:
            if line.startswith("MARK "):
                _note(measured, json.loads(line.removeprefix("MARK ")), start)
        process.wait()
        watch.join()
    seconds = time.time() - start
    if process.returncode:
        return {"failed": errors.read_text().strip()[-500:] or process.returncode}
    if run:
        measured.rates = [float(row["images_per_s"]) for row in Run(run).rows()]
        measured.acc1 = (Run(run).result() or {})["test"]["acc1"]
    return {
        "images_per_s": round(statistics.median(measured.rates[1:] or measured.rates)),
        "first_step_s": measured.first_step_s and round(measured.first_step_s, 1),
        "all_s": round(seconds, 1),
        "acc1": measured.acc1 and round(measured.acc1, 4),
        "memory_mib": round(max(measured.peaks_mib)),
        "peaks_mib": [*map(round, measured.peaks_mib)],
    }


def _note(measured: Measured, mark: dict[str, float], start: float) -> None:
    if "step" in mark:
        measured.first_step_s = time.time() - start
    if "step_at" in mark:
        measured.first_step_s = mark["step_at"] - start
    if "images_per_s" in mark:
        measured.rates.append(mark["images_per_s"])
        measured.peaks_mib.append(0.0)
    measured.acc1 = mark.get("acc1", measured.acc1)


def _watch(
    process: "subprocess.Popen[str]", measured: Measured, run: Path | None, start: float
) -> None:
    """Watch for the first step of raycnn's run, and the memory, until the process ends."""
    while process.poll() is None:
        measured.peaks_mib[-1] = max(measured.peaks_mib[-1], pss_mib(process.pid))
        if run and measured.first_step_s is None and (run / "progress.json").exists():
            measured.first_step_s = (run / "progress.json").stat().st_mtime - start
        time.sleep(0.2)


def raycnn_job(recipe: str, pictures: Path, epochs: int, workers: int) -> dict[str, Any]:
    _, _, lr = RECIPES[recipe]
    model = {"name": "lenet", "activation": "relu", "pool": "max"}
    if recipe == "resnet18":
        model = {"name": "resnet18", "stem": "large"}
    return {
        "name": "peer",
        "data": {"name": "folder", "root": str(pictures), "val": 0},
        "model": model,
        "optimizer": {"name": "sgd", "lr": lr, "momentum": MOMENTUM},
        "schedule": "constant",
        "train": {"epochs": epochs, "batch_size": BATCH},
        "workers": {"count": workers},
    }  # fmt: skip


def train(way: str, recipe: str, pictures: Path, epochs: int) -> dict[str, Any]:
    """Train in one of the ways, in a new folder."""
    _, size, lr = RECIPES[recipe]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if way.startswith("raycnn"):
            workers = 2 if way == "raycnn-ray" else 1
            with (folder / "job.yaml").open("w") as file:
                yaml_file.dump(raycnn_job(recipe, pictures, epochs, workers), file)
            command = [sys.executable, "-m", "raycnn", "train", "job.yaml"]
            return measure(command, folder, folder / "runs" / "peer" / "1")
        packages = [word for package in PACKAGES[way] for word in ("--with", package)]
        options = {
            "data": pictures, "network": recipe, "size": size, "epochs": epochs, "batch": BATCH,
            "lr": lr, "momentum": MOMENTUM, "loaders": os.cpu_count(),
        }  # fmt: skip
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        project = ["uv", "run", "--project", str(JOBS.parent), *packages, "python"]
        # The packages are installed before the clock starts.
        subprocess.run([*project, "-c", ""], check=True, capture_output=True)
        return measure([*project, str(SCRIPTS / f"train_{way}.py"), *words], folder, None)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("recipe", nargs="?", choices=RECIPES, help="both, if left out")
    parser.add_argument("--only", action="append", choices=WAYS, help="all, if left out")
    parser.add_argument("--limit", type=int, help="images of each split; all, if left out")
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    for recipe in [args.recipe] if args.recipe else RECIPES:
        with tempfile.TemporaryDirectory() as name:
            write_pictures(recipe, args.limit, Path(name))
            for way in args.only or WAYS:
                facts = train(way, recipe, Path(name), args.epochs)
                print(json.dumps({"recipe": recipe, "way": way} | facts), flush=True)


if __name__ == "__main__":
    main()
