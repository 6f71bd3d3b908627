"""How fast raycnn trains, and how soon: ratios, measured beside plain scripts in one run.

    uv run python benchmarks/speed.py images [--peers FOLDER] [--recipe NAME]...
    uv run python benchmarks/speed.py start

`images` prints images/s of one worker in this process, the median epoch of several short ones, for
the recipes in their published form (their data must be at hand: RAYCNN_DATA). With --peers, a
folder with `seed_loop.py` (the tutorials' way) and `limit.py` (nothing but steps on one resident
batch), the loop and the limit's fastest form are run before and after it, and raycnn in that form:
contiguous or channels-last, eager or compiled. A recipe that a peer does not have is run without.
`start` prints the seconds from the command to the first step in process and on a local Ray with two
workers, beside a bare TorchTrainer script.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from raycnn.runs.directory import Run

JOBS = Path(__file__).parent.parent / "jobs"
FORMS = list(itertools.product([False, True], repeat=2))
"""Whether the network is channels-last, and whether it is compiled."""
FLAGS = ("--channels-last", "--compile")
UNKNOWN_RECIPE = 2  # argparse's exit status
RECIPES = {  # job, images of an epoch, epochs
    "lenet": ("lenet-mnist-published", 51_200, 4),
    "alexnet": ("alexnet-cifar10-published", 1_280, 3),
    "googlenet": ("googlenet-cifar10-published", 640, 3),
    "resnet34": ("resnet34-signs-published", 640, 3),
    "vgg11": ("vgg11-flowers-small", 1_280, 3),
}
BARE = """
import time, torch, ray.train, ray.train.torch
from torch import nn
def train(config):
    net = ray.train.torch.prepare_model(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    data = torch.utils.data.TensorDataset(torch.randn(128, 64), torch.randint(10, (128,)))
    loader = ray.train.torch.prepare_data_loader(torch.utils.data.DataLoader(data, 32))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for images, labels in loader:
        nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
        open(config["mark"], "w").close()
        break
ray.init("local")
ray.train.torch.TorchTrainer(
    train, train_loop_config={"mark": MARK},
    scaling_config=ray.train.ScalingConfig(num_workers=2),
).fit()
"""


class UnknownRecipe(Exception):
    """A peer does not have a recipe."""


def images(peers: Path | None, recipes: list[str]) -> None:
    for recipe in recipes:
        job, limit, epochs = RECIPES[recipe]
        path = str(JOBS / f"{job}.yaml")
        changes = [f"data.limit={limit}", "data.val=0", f"train.epochs={epochs}"]
        row: dict[str, object] = {}
        if peers:
            with suppress(UnknownRecipe):
                row = beside_peers(peers, recipe, path, changes)
        row = row or {"raycnn": raycnn_rate(path, changes)}
        print(json.dumps({"recipe": recipe} | row), flush=True)


def beside_peers(folder: Path, recipe: str, job: str, changes: list[str]) -> dict[str, object]:
    """Measure raycnn in the form in which the limit is fastest, and the peers before and after."""
    loops = [peer(folder, recipe, "seed_loop")]
    limits = {form: peer(folder, recipe, "limit", form) for form in FORMS}
    form = max(FORMS, key=lambda form: limits[form])
    channels_last, compiled = form
    form_changes = [f"train.channels_last={channels_last}", f"train.compile={compiled}"]
    rate = raycnn_rate(job, [*changes, *form_changes])
    loops.append(peer(folder, recipe, "seed_loop"))
    fastest = [limits[form], peer(folder, recipe, "limit", form)]
    return {
        "channels_last": channels_last,
        "compiled": compiled,
        "seed_loop": loops,
        "limit": fastest,
        "raycnn": rate,
        "of_seed_loop": round(rate / statistics.mean(loops), 2),
        "of_limit": round(rate / statistics.mean(fastest), 2),
        "limits": [*limits.values()],
    }


def peer(folder: Path, recipe: str, name: str, form: tuple[bool, bool] = (False, False)) -> float:
    """Return the images per second of a script. Raises UnknownRecipe if it lacks the recipe."""
    flags = [flag for flag, wanted in zip(FLAGS, form, strict=True) if wanted]
    command = [sys.executable, f"{name}.py", "--recipe", recipe, *flags]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode == UNKNOWN_RECIPE:
        raise UnknownRecipe
    done.check_returncode()
    return json.loads(done.stdout)["images_per_s"]


def torchrun(processes: int) -> list[str]:
    """Return the words that start a script in several processes, on a free port."""
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*run, f"--nproc-per-node={processes}"]


def raycnn_rate(job: str, changes: list[str], processes: int = 1) -> float:
    """Train a job, and return the images per second of the median epoch after the first."""
    start = torchrun(processes) if processes > 1 else [sys.executable]
    with tempfile.TemporaryDirectory() as folder:
        command = [*start, "-m", "raycnn", "train", job, *changes, "name=rate"]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        rows = Run(Path(folder, "runs", "rate", "1")).rows()
    return statistics.median(float(row["images_per_s"]) for row in rows[1:])


def start() -> None:
    quick = [
        sys.executable,
        "-m",
        "raycnn",
        "train",
        str(JOBS / "quickstart.yaml"),
        "train.epochs=1",
    ]
    for way, command in {
        "raycnn, in process": [*quick, "workers.count=1"],
        "raycnn, Ray, two workers": [*quick, "workers.count=2"],
        "bare TorchTrainer, two workers": None,
    }.items():
        with tempfile.TemporaryDirectory() as folder:
            mark = Path(folder, "mark")
            script = BARE.replace("MARK", repr(str(mark)))
            began = time.time()
            process = subprocess.Popen(
                command or [sys.executable, "-c", script],
                cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ,
            )  # fmt: skip
            sign = Path(folder, "runs", "quickstart", "1", "progress.json") if command else mark
            seen = None
            while process.poll() is None:
                if seen is None and sign.exists():
                    seen = sign.stat().st_mtime - began
                time.sleep(0.01)
        row = {
            "way": way,
            "first_step_s": round(seen or -1, 1),
            "all_s": round(time.time() - began, 1),
        }
        print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=["images", "start"])
    parser.add_argument("--peers", type=Path, help="folder with seed_loop.py and limit.py")
    parser.add_argument("--recipe", action="append", choices=RECIPES, help="all, if none is named")
    args = parser.parse_args()
    images(args.peers, args.recipe or [*RECIPES]) if args.what == "images" else start()


if __name__ == "__main__":
    main()
