"""The job specs of the repository, and a tiny one."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
SEARCHES = sorted((ROOT / "jobs").glob("*.tune.yaml"))
JOBS = sorted({*(ROOT / "jobs").glob("*.yaml")} - {*SEARCHES})

TINY = {
    "name": "tiny",
    "data": {"name": "digits", "limit": 200, "transforms": [{"name": "resize", "size": 12}]},
    "model": {"name": "lenet", "activation": "relu"},
    "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9},
    "schedule": {"name": "cosine", "warmup": 0.2},
    "train": {"epochs": 3, "batch_size": 32},
    "storage": {"report": False},
}
