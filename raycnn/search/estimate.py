"""Estimate the duration of trials on this machine from one timed step per architecture."""

import time

import torch

from raycnn.config.schema import JobSpec
from raycnn.config.search import TuneSpec
from raycnn.data.splits import open_splits
from raycnn.training.loop import new_training_state
from raycnn.training.step import forward, unlabeled_batch

SAMPLE = 32  # images of the timed step


def epoch_s(search: TuneSpec, device: torch.device) -> dict[str, float]:
    """Return the seconds per epoch of each architecture, without augmentation and saving."""
    return {a.name: _epoch_s(a.job, device) for a in search.architectures}


def _epoch_s(job: JobSpec, device: torch.device) -> float:
    splits = open_splits(job)
    state = new_training_state(job, splits, device)
    size = min(SAMPLE, job.train.batch_size)
    batch = unlabeled_batch(torch.zeros(size, *splits.shape, device=device), size)
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
