"""Measure what a trial of a search costs besides its training, in seconds, two ways in one run.

    uv run python benchmarks/search.py [--trials N] [--only]

Trials of one worker on the embedded digits run one after another: by `raycnn tune`, which trains
them in an actor that stays, and by the pattern of Ray's documentation, a Tune function that starts
a TorchTrainer for each, with the same loop in its worker. A trial takes from the end of the one
before it to its own; the first, which pays for the start, is left out. What is not training is
overhead: validation, checkpoints and the test that `raycnn train` ends with are in it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from raycnn.runs.directory import Run

JOB = """\
name: tiny
data: {name: digits, transforms: [{name: resize, size: 12}]}
model: {name: lenet, activation: relu}
optimizer: {name: sgd, lr: 0.05, momentum: 0.9}
train: {epochs: 2, batch_size: 64}
workers: {cpus: 1}
"""
NESTED = """
import json, sys, time
import ray, torch
from ray import tune
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

def train(config):
    from raycnn.config.load import job_from_tree
    from raycnn.launch.worker import train_worker
    from raycnn.runs.directory import Run
    from raycnn.runs.heartbeat_channel import FolderChannel
    job = job_from_tree(config["job"]).change({"optimizer.lr": config["lr"]})
    run = Run.create(job)
    train_worker(job, run, torch.device("cpu"), FolderChannel(run, 60))
    last = run.rows()[-1]
    ray.train.report({"acc1": float(last["val/acc1"]), "training_s": float(last["time_s"])})

def trial(config):
    done = TorchTrainer(
        train, train_loop_config=config, scaling_config=ScalingConfig(num_workers=1),
        run_config=RunConfig(
            name=f"inner-{config['number']}", storage_path=config["folder"],
            callbacks=[TuneReportCallback()],
        ),
    ).fit()

class Ends(tune.Callback):
    def on_trial_complete(self, iteration, trials, trial, **info):
        row = [time.time(), trial.last_result["training_s"]]
        with open(FOLDER + "/ends", "a") as file:
            print(json.dumps(row), file=file)

from pathlib import Path
from raycnn.config.load import load_job
JOB_FILE, FOLDER, TRIALS = sys.argv[1], sys.argv[2], int(sys.argv[3])
job = load_job(Path(JOB_FILE)).change({"storage.path": FOLDER + "/runs"}).tree()
ray.init("local")
tune.Tuner(
    trial,
    param_space={
        "number": tune.grid_search(list(range(TRIALS))),
        "lr": tune.loguniform(1e-3, 1e-1), "job": job, "folder": FOLDER,
    },
    tune_config=tune.TuneConfig(max_concurrent_trials=1),
    run_config=tune.RunConfig(name="outer", storage_path=FOLDER, callbacks=[Ends()]),
).fit()
"""


def raycnn(folder: Path, trials: int) -> list[list[float]]:
    """Return when each trial ended, in seconds since 1970, and how long it was trained."""
    space = "space: {optimizer.lr: {loguniform: [1e-3, 1e-1]}}, pools: [{device: cpu}]"
    (folder / "tiny.tune.yaml").write_text(
        JOB.replace("workers: {cpus: 1}\n", "")
        + f"tune: {{trials: {trials}, concurrency: 1, {space}}}\n"
    )
    command = [sys.executable, "-m", "raycnn", "tune", "tiny.tune.yaml"]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    found = (folder / "runs" / "tiny" / "1" / "trials").iterdir()
    return [
        [(one / "trial.json").stat().st_mtime, float(Run(one).rows()[-1]["time_s"])]
        for one in found
    ]


def nested(folder: Path, trials: int) -> list[list[float]]:
    (folder / "tiny.yaml").write_text(JOB)
    (folder / "nested.py").write_text(NESTED)
    command = [sys.executable, "nested.py", "tiny.yaml", str(folder), str(trials)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(command, cwd=folder, check=True, **quiet)
    return [json.loads(line) for line in (folder / "ends").read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=5, help="of each way; the first is left out")
    parser.add_argument("--only", action="store_true", help="measure `raycnn tune` alone")
    args = parser.parse_args()
    trials, ways = args.trials, {"raycnn tune": raycnn}
    if not args.only:
        ways["TorchTrainer in a Tune function"] = nested
    for way, measure in ways.items():
        with tempfile.TemporaryDirectory() as folder:
            ends = sorted(measure(Path(folder), trials))
        walls = [later[0] - earlier[0] for earlier, later in zip(ends, ends[1:], strict=False)]
        training = [seconds for _, seconds in ends[1:]]
        over = [wall - own for wall, own in zip(walls, training, strict=True)]
        row = {
            "way": way,
            "trials": len(walls),
            "trial_s": round(statistics.median(walls), 2),
            "training_s": round(statistics.median(training), 2),
            "overhead_s": round(statistics.median(over), 2),
            "overhead_most_s": round(max(over), 2),
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
