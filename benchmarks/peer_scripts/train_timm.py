"""Train with timm's datasets, loader and optimizer, in the loop of its train.py."""

import time

import torch
from common import MEAN, STD, mark, network, peer_arguments
from timm.data import create_dataset, create_loader
from timm.optim import create_optimizer_v2
from torch import nn

args = peer_arguments()
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def loader(split: str) -> torch.utils.data.DataLoader:  # type: ignore[type-arg]
    return create_loader(
        create_dataset("", root=str(args.data), split=split),
        input_size=(3, args.size, args.size), batch_size=args.batch, is_training=split == "train",
        no_aug=True, mean=MEAN, std=STD, crop_pct=1.0, num_workers=args.loaders, device=device,
    )  # fmt: skip


model = network(args.network, args.size).to(device)
optimizer = create_optimizer_v2(
    model, "momentum", lr=args.lr, momentum=args.momentum, weight_decay=0
)
loss_of = nn.CrossEntropyLoss().to(device)
train, test = loader("train"), loader("test")
for epoch in range(args.epochs):
    model.train()
    start, images = time.perf_counter(), 0
    for step, (batch, labels) in enumerate(train):
        loss = loss_of(model(batch), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        images += len(labels)
        if not epoch + step:
            mark(step=1)
    mark(images_per_s=images / (time.perf_counter() - start))
model.eval()
with torch.inference_mode():
    hits = [(model(batch).argmax(1) == labels).double().sum() for batch, labels in test]
mark(acc1=float(sum(hits)) / len(test.dataset))
