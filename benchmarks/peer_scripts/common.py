"""What the scripts of benchmarks share: arguments, network, data and progress marks."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import models, transforms
from torchvision.datasets import ImageFolder

CLASSES = 10
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def common_parser() -> argparse.ArgumentParser:
    """Return a parser of the arguments that all scripts take."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    return parser


def peer_arguments() -> argparse.Namespace:
    """Return the arguments of a script of benchmarks/peers.py."""
    peer = common_parser()
    peer.add_argument("--network", choices=["lenet", "resnet18"], required=True)
    peer.add_argument("--lr", type=float, required=True)
    peer.add_argument("--momentum", type=float, required=True)
    peer.add_argument("--loaders", type=int, required=True)
    return peer.parse_args()


def network(name: str, size: int) -> nn.Module:
    """Return the network with the layers of raycnn's job."""
    torch.manual_seed(0)
    if name == "resnet18":
        return models.resnet18(num_classes=CLASSES)
    side = (size // 2 - 4) // 2
    return nn.Sequential(
        nn.Conv2d(3, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(16 * side * side, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(),
        nn.Linear(84, CLASSES),
    )  # fmt: skip


def loader(args: argparse.Namespace, split: str) -> "DataLoader[Any]":
    """Return torch's loader as torchvision's documentation makes it."""
    steps = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    images = ImageFolder(str(args.data / split), transforms.Compose(steps))
    return DataLoader(
        images, args.batch, shuffle=split == "train", num_workers=args.loaders,
        persistent_workers=args.loaders > 0,
    )  # fmt: skip


def mark(**facts: Any) -> None:
    """Tell the benchmark of progress: `step`, `images_per_s` of an epoch, or `acc1` of the test."""
    print("\nMARK", json.dumps(facts), flush=True)  # a progress bar may have begun the line
