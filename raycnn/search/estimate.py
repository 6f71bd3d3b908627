"""Estimate the duration of trials on this machine from one timed step per architecture."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from raycnn.config.components import SCHEDULES
from raycnn.config.schema import JobSpec
from raycnn.config.search import TuneSpec
from raycnn.data.splits import open_splits
from raycnn.runs.teacher import load_job_teacher
from raycnn.training.setup import new_training_state
from raycnn.training.step import TrainStep, forward, unlabeled_batch
from raycnn.training.tta import with_tta

SAMPLE = 32  # images of the timed step


def epoch_s(search: TuneSpec, device: torch.device) -> dict[str, float]:
    """Return the seconds per epoch of each architecture, without augmentation and saving."""
    return {a.name: _epoch_s(a.job, device) for a in search.architectures}


def _epoch_s(job: JobSpec, device: torch.device) -> float:
    splits = open_splits(job)
    state = new_training_state(job, splits, device)
    size = min(SAMPLE, job.train.batch_size)
    batch = unlabeled_batch(torch.zeros(size, *splits.shape, device=device), size)
    step = TrainStep(
        replica=state.model, state=state, job=job, schedule=SCHEDULES.build(job.schedule, 100),
        micro_batch=size, class_weights=None, teacher=load_job_teacher(job, splits, device),
    )  # fmt: skip

    def train() -> Tensor:
        _, loss = step.loss(batch)
        loss.backward()
        return loss

    def validate() -> Tensor:
        with torch.inference_mode():
            return forward(with_tta(state.model, job.train.tta), batch, job.train)[1]

    train_s = _seconds(train)
    state.model.eval()
    images = {split: len(splits.labels(split)) / size for split in ("train", "val")}
    return train_s * images["train"] + _seconds(validate) * images["val"]


def _seconds(work: Callable[[], Tensor]) -> float:
    """Return the duration of the second call: the first includes one-time initialization."""
    for _ in range(2):
        start = time.perf_counter()
        work().item()
        seconds = time.perf_counter() - start
    return seconds
