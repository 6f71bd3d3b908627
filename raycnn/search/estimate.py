"""Estimate the duration of trials on this machine from one timed step per architecture."""

import time

import torch

from raycnn.config.schema import JobSpec
from raycnn.config.search import TuneSpec
from raycnn.data.loader import Batch
from raycnn.data.splits import open_splits
from raycnn.training.loop import new_training_state
from raycnn.training.step import forward

SAMPLE = 32  # images of the timed step


def epoch_s(search: TuneSpec, device: torch.device) -> dict[str, float]:
    """Return the seconds per epoch of each architecture, without augmentation and saving."""
    return {a.name: _epoch_s(a.job, device) for a in search.architectures}


def _epoch_s(job: JobSpec, device: torch.device) -> float:
    splits = open_splits(job)
    state = new_training_state(job, splits, device)
    size = min(SAMPLE, job.train.batch_size)
    batch = Batch(
        images=torch.zeros(size, *splits.shape, device=device),
        labels=torch.zeros(size, dtype=torch.int64, device=device),
        mixed_labels=None, mix_weights=None, first=0, total=size, count=size,
    )  # fmt: skip
    state.model.train()
    for _ in range(2):  # the first step includes one-time initialization
        start = time.perf_counter()
        _, loss = forward(state.model, batch, job.train)
        loss.backward()
        loss.item()
        took = time.perf_counter() - start
    # A validation image costs a third of a training image: the backward pass takes two thirds.
    images = len(splits.labels("train")) + len(splits.labels("val")) / 3
    return took / size * images
