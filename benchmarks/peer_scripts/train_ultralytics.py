"""Train with Ultralytics' classification trainer, its augmentation and warm-up switched off."""

import tempfile
import time
from typing import Any

import torch
from common import CLASSES, mark, network, peer_arguments
from torch import Tensor, nn
from torch.nn import functional as F
from ultralytics.models.yolo.classify import ClassificationTrainer
from ultralytics.nn.tasks import BaseModel

args = peer_arguments()


class Classifier(BaseModel):
    """The network behind the interface that Ultralytics expects of a model."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(network(args.network, args.size))
        self.save, self.stride = list[int](), torch.tensor([1])
        self.criterion = None  # the trainer asks for it after each epoch
        self.names, self.yaml = {k: str(k) for k in range(CLASSES)}, {"nc": CLASSES, "channels": 3}

    def predict(self, x: Tensor, *rest: Any, **options: Any) -> Any:
        logits = self.model(x)
        return logits if self.training else (logits.softmax(1), logits)

    def loss(self, batch: dict[str, Tensor], preds: Any = None) -> Any:
        preds = self.forward(batch["img"]) if preds is None else preds
        loss = F.cross_entropy(preds[1] if isinstance(preds, tuple) else preds, batch["cls"])
        return loss, {"loss": loss.detach()}


class Trainer(ClassificationTrainer):
    def setup_model(self) -> None:
        self.model = Classifier()


start, stepped = 0.0, False


def begin_epoch(trainer: Any) -> None:
    global start
    start = time.perf_counter()


def end_batch(trainer: Any) -> None:
    global stepped
    if not stepped:
        stepped = True
        mark(step=1)


def end_epoch(trainer: Any) -> None:
    mark(images_per_s=len(trainer.train_loader.dataset) / (time.perf_counter() - start))


with tempfile.TemporaryDirectory() as folder:
    trainer = Trainer(
        overrides={
            "model": "custom", "data": str(args.data), "imgsz": args.size, "epochs": args.epochs,
            "batch": args.batch, "nbs": args.batch, "optimizer": "SGD", "lr0": args.lr, "lrf": 1.0,
            "momentum": args.momentum, "weight_decay": 0.0, "warmup_epochs": 0, "amp": False,
            "workers": args.loaders, "pretrained": False, "plots": False, "verbose": False,
            "auto_augment": None, "erasing": 0.0, "fliplr": 0.0, "scale": 1.0, "hsv_h": 0.0,
            "hsv_s": 0.0, "hsv_v": 0.0, "project": folder, "name": "run", "exist_ok": True,
        }
    )  # fmt: skip
    trainer.add_callback("on_train_epoch_start", begin_epoch)
    trainer.add_callback("on_train_batch_end", end_batch)
    trainer.add_callback("on_train_epoch_end", end_epoch)
    trainer.train()
    mark(acc1=float(trainer.metrics["metrics/accuracy_top1"]))
