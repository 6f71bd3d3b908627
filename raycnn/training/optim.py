"""Optimizers and learning-rate schedules by name. A rate is a function of the step alone.

The update rules are torch's own functional ones. Its Optimizer classes are left out: constructing
one imports torch._dynamo, which takes longer than everything else before the first step.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import Parameter
from torch.optim.adam import adam as adam_rule
from torch.optim.sgd import sgd as sgd_rule

from raycnn.errors import SpecError
from raycnn.runtime.device import DEVICE_KINDS

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]


class Rates(NamedTuple):
    """What a schedule sets for one step."""

    factor: float
    """Of the optimizer's `lr`."""
    momentum: float | None = None
    """In place of the optimizer's own (Adam's first beta), where the schedule cycles it."""


Schedule = Callable[[int], Rates]
Named = Iterable[tuple[str, Parameter]]


class Optimizer:
    """An update rule over named parameters, and the tensors it keeps for each of them."""

    def __init__(self, named: Named, lr: float, kept: tuple[str, ...]):
        self.parameters = {name: p for name, p in named if p.requires_grad}
        self.lr = lr
        self.kept: dict[str, list[Any]] = {key: [None] * len(self.parameters) for key in kept}
        """Tensors, and None before the first step."""

    @torch.no_grad()
    def step(self, rates: Rates, skip: Tensor | None = None) -> None:
        """Update the parameters, unless `skip` (), on their device, is 1."""
        parameters: list[Tensor] = list(self.parameters.values())
        gradients = self.gradients()
        assert len(gradients) == len(parameters), "every parameter takes part in every step"
        fused = DEVICE_KINDS[parameters[0].device.type].fused
        if skip is not None and not fused and skip.item():  # only the fused kernels look for it
            return
        self._update(parameters, gradients, rates, fused, skip if fused else None)

    def gradients(self) -> list[Tensor]:
        return [p.grad for p in self.parameters.values() if p.grad is not None]

    def _update(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        rates: Rates,
        fused: bool,
        skip: Tensor | None,
    ) -> None:
        raise NotImplementedError

    def zero_grad(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """The kept tensors, as `kind/parameter`; none before the first step."""
        return {
            f"{key}/{name}": tensor
            for key, tensors in self.kept.items()
            for name, tensor in zip(self.parameters, tensors, strict=True)
            if tensor is not None
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        for key, tensors in self.kept.items():
            for index, (name, parameter) in enumerate(self.parameters.items()):
                saved = state.get(f"{key}/{name}")
                tensors[index] = None if saved is None else self._placed(saved, parameter)

    def _placed(self, saved: Tensor, parameter: Tensor) -> Tensor:
        """On the device and in the layout of its parameter, as the fused kernels need it."""
        if saved.shape == parameter.shape:
            return torch.empty_like(parameter).copy_(saved)
        return saved.to(parameter.device) if DEVICE_KINDS[parameter.device.type].fused else saved


class Sgd(Optimizer):
    def __init__(
        self,
        named: Named,
        lr: float,
        momentum: float,
        nesterov: bool,
        weight_decay: float,
    ):
        super().__init__(named, lr, ("momentum",))
        self.momentum, self.nesterov, self.weight_decay = momentum, nesterov, weight_decay

    def _update(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        rates: Rates,
        fused: bool,
        skip: Tensor | None,
    ) -> None:
        if skip is not None and self.kept["momentum"][0] is None:  # a first step that is skipped
            self.kept["momentum"] = [torch.zeros_like(p) for p in parameters]  # would leave noise
        sgd_rule(
            parameters,
            gradients,
            self.kept["momentum"],
            lr=self.lr * rates.factor,
            momentum=self.momentum if rates.momentum is None else rates.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
            dampening=0.0,
            maximize=False,
            fused=fused,
            foreach=not fused,
            found_inf=skip,
        )


class Adam(Optimizer):
    """Kingma and Ba, arXiv:1412.6980; `decoupled`: Loshchilov and Hutter, arXiv:1711.05101."""

    def __init__(
        self,
        named: Named,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        decoupled: bool,
    ):
        super().__init__(named, lr, ("mean", "square", "steps"))
        self.betas, self.eps, self.weight_decay = betas, eps, weight_decay
        self.decoupled = decoupled

    def _update(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        rates: Rates,
        fused: bool,
        skip: Tensor | None,
    ) -> None:
        if self.kept["steps"][0] is None:
            self.kept["mean"] = [torch.zeros_like(p) for p in parameters]
            self.kept["square"] = [torch.zeros_like(p) for p in parameters]
            where = parameters[0].device if fused else "cpu"  # as torch's own classes keep it
            self.kept["steps"] = [torch.zeros((), device=where) for _ in parameters]
        adam_rule(
            parameters,
            gradients,
            self.kept["mean"],
            self.kept["square"],
            [],
            self.kept["steps"],
            lr=self.lr * rates.factor,
            beta1=self.betas[0] if rates.momentum is None else rates.momentum,
            beta2=self.betas[1],
            eps=self.eps,
            weight_decay=self.weight_decay,
            decoupled_weight_decay=self.decoupled,
            amsgrad=False,
            maximize=False,
            fused=fused,
            foreach=not fused,
            found_inf=skip,
        )


def sgd(
    named: Named,
    *,
    lr: Positive,
    momentum: BelowOne = 0.0,
    nesterov: bool = False,
    weight_decay: NotNegative = 0.0,
) -> Optimizer:
    if nesterov and not momentum:
        raise SpecError("nesterov needs a momentum", "optimizer.nesterov")
    return Sgd(named, lr, momentum, nesterov, weight_decay)


def adam(
    named: Named,
    *,
    lr: Positive,
    beta1: BelowOne = 0.9,
    beta2: BelowOne = 0.999,
    eps: Positive = 1e-8,
    weight_decay: NotNegative = 0.0,
) -> Optimizer:
    return Adam(named, lr, (beta1, beta2), eps, weight_decay, decoupled=False)


def adamw(
    named: Named,
    *,
    lr: Positive,
    beta1: BelowOne = 0.9,
    beta2: BelowOne = 0.999,
    eps: Positive = 1e-8,
    weight_decay: NotNegative = 0.01,
) -> Optimizer:
    return Adam(named, lr, (beta1, beta2), eps, weight_decay, decoupled=True)


def constant(steps: int, *, warmup: BelowOne = 0.0) -> Schedule:
    """The same rate throughout."""
    return _warmed(steps, warmup, lambda done: 1.0)


def step(
    steps: int,
    *,
    at: list[Annotated[float, Field(gt=0, lt=1)]] = [0.5, 0.75],  # noqa: B006  read only
    gamma: Positive = 0.1,
    warmup: BelowOne = 0.0,
) -> Schedule:
    """Times `gamma` at each of these shares of the run."""
    return _warmed(steps, warmup, lambda done: gamma ** sum(done >= share for share in at))


def cosine(steps: int, *, final: BelowOne = 0.0, warmup: BelowOne = 0.0) -> Schedule:
    """Down along half a cosine ("SGDR", Loshchilov and Hutter, arXiv:1608.03983, equation 5)."""

    def factor(done: float) -> float:
        eased = (done - warmup) / (1 - warmup)
        return final + (1 - final) * (1 + math.cos(math.pi * eased)) / 2

    return _warmed(steps, warmup, factor)


def one_cycle(
    steps: int,
    *,
    rise: Annotated[float, Field(gt=0, lt=1)] = 0.3,
    start: Positive = 0.04,
    final: Positive = 4e-6,
    momentum: Annotated[list[BelowOne], Field(min_length=2, max_length=2)] | None = None,
) -> Schedule:
    """Up to `lr` and down again ("Super-Convergence", Smith and Topin 2017, arXiv:1708.07120).

    `start` and `final` are factors of `lr`; `momentum: [0.95, 0.85]` goes the other way round.
    """
    top = max(1e-9, rise * steps - 1)

    def rates(k: int) -> Rates:
        up = k <= top
        t = k / top if up else (k - top) / max(1e-9, steps - 1 - top)
        factor = _ease(start, 1.0, t) if up else _ease(1.0, final, t)
        if momentum is None:
            return Rates(factor)
        high, low = momentum
        return Rates(factor, _ease(high, low, t) if up else _ease(low, high, t))

    return rates


def _ease(begin: float, end: float, t: float) -> float:
    return end + (begin - end) * (1 + math.cos(math.pi * min(1.0, t))) / 2


def _warmed(steps: int, warmup: float, factor: Callable[[float], float]) -> Schedule:
    """Linearly up during the share `warmup` of the run, then as `factor` of the share done says."""
    rising = math.ceil(warmup * steps)

    def rates(k: int) -> Rates:
        return Rates((k + 1) / rising if k < rising else factor(k / steps))

    return rates


def scale_lr(schedule: Schedule, factor: float) -> Schedule:
    """The schedule with its learning rates times `factor`."""

    def rates(k: int) -> Rates:
        own = schedule(k)
        return own._replace(factor=own.factor * factor)

    return rates
