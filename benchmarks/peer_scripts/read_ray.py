"""Read with Ray Data, on as many CPUs as there are to be processes."""

from collections.abc import Iterator

import numpy as np
import ray
import torch
from common import MEAN, STD
from ray.data.datasource.partitioning import Partitioning
from reading import Training, arguments
from torch import Tensor

args = arguments()
ray.init("local", num_cpus=args.processes, log_to_driver=False)
ray.data.DataContext.get_current().enable_progress_bars = False
classes = sorted(path.name for path in args.data.iterdir())
numbers = {name: number for number, name in enumerate(classes)}
mean, std = (torch.tensor(each).reshape(1, 3, 1, 1) * 255 for each in (MEAN, STD))


def with_labels(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    labels = np.array([numbers[name] for name in batch["class"]])
    return {"image": batch["image"], "label": labels}


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    for batch in images.iter_torch_batches(
        batch_size=args.batch, local_shuffle_buffer_size=4 * args.batch
    ):
        yield (batch["image"].permute(0, 3, 1, 2) - mean) / std, batch["label"]


# Ray Data resizes without keeping the ratio of the sides; decoding is the same.
images = ray.data.read_images(
    str(args.data), size=(args.size, args.size), mode="RGB",
    partitioning=Partitioning("dir", field_names=["class"], base_dir=str(args.data)),
).map_batches(with_labels)  # fmt: skip
training = Training(args.size, len(classes))
for _ in range(args.epochs):
    training.epoch(batches())
