"""Train with Lightning's Trainer."""

import time
from typing import Any

import lightning as L
import torch
from common import loader, mark, network, peer_arguments
from torch import Tensor
from torch.nn import functional as F

args = peer_arguments()


class Classifier(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = network(args.network, args.size)
        self.hits = self.images = 0

    def training_step(self, batch: Any, step: int) -> Tensor:
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def test_step(self, batch: Any, step: int) -> None:
        self.hits += int((self.network(batch[0]).argmax(1) == batch[1]).sum())
        self.images += len(batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), args.lr, args.momentum)


class Marks(L.Callback):
    def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == 1:
            mark(step=1)

    def on_train_epoch_start(self, *rest: Any) -> None:
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Any, *rest: Any) -> None:
        images = len(trainer.train_dataloader.dataset)
        mark(images_per_s=images / (time.perf_counter() - self.start))


trainer = L.Trainer(
    max_epochs=args.epochs, devices=1, logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False, callbacks=[Marks()],
)  # fmt: skip
classifier = Classifier()
trainer.fit(classifier, loader(args, "train"))
trainer.test(classifier, loader(args, "test"), verbose=False)
mark(acc1=classifier.hits / classifier.images)
