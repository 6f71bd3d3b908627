"""Train with Ray's TorchTrainer on two workers, as its documentation for images does."""

import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import torch
from common import loader, mark, network, peer_arguments
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_data_loader, prepare_model
from torch.nn import functional as F

WORKERS = 2


def train(config: dict[str, Any]) -> None:
    args, marks = config["args"], Path(config["marks"])
    first = ray.train.get_context().get_world_rank() == 0
    args.batch //= WORKERS  # each worker's share
    model = prepare_model(network(args.network, args.size))
    optimizer = torch.optim.SGD(model.parameters(), args.lr, args.momentum)
    batches = prepare_data_loader(loader(args, "train"))
    for epoch in range(args.epochs):
        start = time.perf_counter()
        if hasattr(batches.sampler, "set_epoch"):
            batches.sampler.set_epoch(epoch)
        model.train()
        for images, labels in batches:
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if not (marks / "step").exists():
                (marks / "step").touch()
        rate = WORKERS * len(batches.sampler) / (time.perf_counter() - start)
        ray.train.report({"images_per_s": rate})
        if first:
            with (marks / "rates").open("a") as file:
                file.write(f"{rate}\n")
    hits = count = 0
    model.eval()
    with torch.inference_mode():
        for images, labels in prepare_data_loader(loader(args, "test")):
            hits += int((model(images).argmax(1) == labels).sum())
            count += len(labels)
    if first:
        (marks / "acc1").write_text(str(hits / count))  # of this worker's share


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        config = {"args": peer_arguments(), "marks": folder}
        config["args"].loaders //= WORKERS
        ray.init("local", log_to_driver=False)
        trainer = TorchTrainer(
            train, train_loop_config=config,
            scaling_config=ScalingConfig(num_workers=WORKERS),
            run_config=RunConfig(storage_path=folder),
        )  # fmt: skip
        trainer.fit()
        mark(step_at=(Path(folder) / "step").stat().st_mtime)
        for line in (Path(folder) / "rates").read_text().split():
            mark(images_per_s=float(line))
        mark(acc1=float((Path(folder) / "acc1").read_text()))
