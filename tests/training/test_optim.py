import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm.optim
import torch
from torch.nn import functional as F

from raycnn import models
from raycnn.config.components import OPTIMIZERS
from raycnn.config.schema import ComponentConfig, Model, OptimizerConfig
from raycnn.errors import SpecError
from raycnn.shape import Shape
from raycnn.training.optim import Optimizer, build_optimizer
from raycnn.training.schedules import Rates


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(
    ("name", "options", "theirs"),
    [
        ("sgd", {"lr": 0.1}, lambda p: torch.optim.SGD(p, lr=0.1)),
        (
            "sgd",
            {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3},
            lambda p: torch.optim.SGD(p, 0.1, 0.9, nesterov=True, weight_decay=1e-3),
        ),
        (
            "adam",
            {"lr": 1e-3, "weight_decay": 1e-2},
            lambda p: torch.optim.Adam(p, lr=1e-3, weight_decay=1e-2),
        ),
        ("adamw", {"lr": 1e-3}, lambda p: torch.optim.AdamW(p, lr=1e-3)),
        ("rmsprop", {"lr": 1e-3}, lambda p: torch.optim.RMSprop(p, lr=1e-3)),
        (
            "rmsprop",
            {"lr": 1e-3, "alpha": 0.9, "momentum": 0.9, "centered": True, "weight_decay": 1e-2},
            lambda p: torch.optim.RMSprop(
                p, 1e-3, 0.9, momentum=0.9, centered=True, weight_decay=1e-2
            ),
        ),
        (
            "lamb",
            {"lr": 1e-2, "weight_decay": 0.1},
            lambda p: timm.optim.Lamb(p, 1e-2, weight_decay=0.1, max_grad_norm=None),
        ),
        (
            "lamb",
            {"lr": 1e-2, "weight_decay": 0.0},
            lambda p: timm.optim.Lamb(p, 1e-2, weight_decay=0.0, max_grad_norm=None),
        ),
    ],
)
def test_an_optimizer_steps_as_torchs_own(
    name: str, options: dict[str, Any], theirs: Callable[[Any], Any], layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    model = models.build_model(Model(name="lenet", activation="tanh"), Shape(3, 16, 16), 10)
    twin = copy.deepcopy(model)
    model.to(memory_format=layout)
    ours = OPTIMIZERS.build(ComponentConfig(name=name, **options), model.named_parameters())
    reference = theirs(twin.parameters())
    for _ in range(6):
        images, labels = torch.randn(8, 3, 16, 16), torch.randint(10, (8,))
        F.cross_entropy(model(images), labels).backward()
        ours.step(Rates(1.0))
        ours.zero_grad()
        reference.zero_grad()
        F.cross_entropy(twin(images), labels).backward()
        reference.step()
    for own, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(own, other, atol=1e-4 if name != "sgd" else 1e-5)


def build(named: Any, **options: Any) -> Optimizer:
    return build_optimizer(
        OptimizerConfig.model_validate({"name": "sgd", "lr": 0.1} | options), named
    )


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_norms_and_biases_do_not_decay_unless_asked(name: str) -> None:
    for decayed in (False, True):
        network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
        before = {key: p.detach().clone() for key, p in network.named_parameters()}
        named = network.named_parameters()
        optimizer = build(named, name=name, weight_decay=0.5, decay_norm_and_bias=decayed)
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step(Rates(1.0))
        changed = {key for key, p in network.named_parameters() if not torch.equal(p, before[key])}
        assert changed == ({"0.weight", "0.bias", "1.weight"} if decayed else {"0.weight"})


def test_a_prefix_has_its_own_rate_and_the_longest_wins() -> None:
    network = models.build_model(Model(name="lenet"), Shape(1, 16, 16), 10)
    before = {key: p.detach().clone() for key, p in network.named_parameters()}
    rates = {"stage1": 0.01, "stage1.0": 0.02}
    optimizer = build(network.named_parameters(), lr_by_prefix=rates)
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(Rates(0.5))
    for name, parameter in network.named_parameters():
        expected = 0.02 if name.startswith("stage1.0.") else 0.01 if "stage1" in name else 0.1
        assert torch.allclose(before[name] - parameter, torch.tensor(expected / 2), atol=1e-6), name


def test_groups_change_nothing_where_their_values_are_alike() -> None:
    def trained(**options: Any) -> list[torch.Tensor]:
        torch.manual_seed(0)
        network = models.build_model(Model(name="lenet"), Shape(1, 16, 16), 10)
        optimizer = build(network.named_parameters(), momentum=0.9, **options)
        for _ in range(3):
            F.cross_entropy(network(torch.randn(4, 1, 16, 16)), torch.arange(4)).backward()
            optimizer.step(Rates(1.0))
            optimizer.zero_grad()
        return [*network.parameters(), *optimizer.state_dict().values()]

    pairs = zip(trained(), trained(lr_by_prefix={"stage1": 0.1}), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_prefix_of_nothing_is_refused() -> None:
    with pytest.raises(SpecError, match=r"optimizer.lr_by_prefix.head: "):
        build(
            torch.nn.Sequential(torch.nn.Linear(1, 1)).named_parameters(),
            lr_by_prefix={"head": 1.0},
        )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lr": 0}, "optimizer.lr: must be greater than 0"),
        ({"lr": -0.1}, "optimizer.lr: must be greater than 0"),
        ({"lr": float("nan")}, "optimizer.lr: must be"),
        ({"lr": float("inf")}, "optimizer.lr: must be a finite number"),
        ({"lr": 0.1, "momentum": 1}, "optimizer.momentum: must be less than 1"),
        ({"lr": 0.1, "nesterov": True}, "optimizer.nesterov: nesterov needs a momentum"),
        ({}, "optimizer.lr: is missing"),
    ],
)
def test_a_wrong_rate_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as caught:
        OPTIMIZERS.build(ComponentConfig(name="sgd", **options), [])
    assert said in str(caught.value)


def test_the_state_of_an_optimizer_is_named_after_its_parameters() -> None:
    layer = torch.nn.Linear(2, 2)
    adam = OPTIMIZERS.build(ComponentConfig(name="adam", lr=0.1), layer.named_parameters())
    assert adam.state_dict() == {}
    layer(torch.ones(1, 2)).sum().backward()
    adam.step(Rates(1.0))
    assert set(adam.state_dict()) == {
        f"{k}/{n}" for k in ("mean", "square", "steps") for n in ("weight", "bias")
    }
