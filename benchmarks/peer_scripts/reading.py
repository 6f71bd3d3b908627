"""What the scripts of benchmarks/data.py share: a network that takes no time, and its epochs."""

import argparse
import time
from collections.abc import Iterable

import torch
from common import common_parser, mark
from torch import Tensor, nn
from torch.nn import functional as F

EACH = 8  # of so many pixels along a side the network sees one


def arguments() -> argparse.Namespace:
    reading = common_parser()
    reading.add_argument("--processes", type=int, required=True)
    return reading.parse_args()


class Training:
    """A linear layer on a few pixels: nearly all time goes into the batches."""

    def __init__(self, size: int, classes: int):
        torch.set_num_threads(1)
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(3 * (size // EACH) ** 2, classes))
        self.optimizer = torch.optim.SGD(self.network.parameters(), 0.01)

    def epoch(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        start, count = time.perf_counter(), 0
        for images, labels in batches:
            F.cross_entropy(self.network(images[..., ::EACH, ::EACH]), labels).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            count += len(labels)
        mark(images_per_s=count / (time.perf_counter() - start))
