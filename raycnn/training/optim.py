"""Optimizers and learning-rate schedules. The rate is a function of the step alone.

The update rules are torch's functional ones. torch's Optimizer classes are not used, because
constructing one imports torch._dynamo, which takes about 9 s of CPU time: longer than everything
else before the first step, and not in parallel to it, because an import holds the GIL.
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
Between = Annotated[float, Field(gt=0, lt=1)]
Betas = Annotated[list[BelowOne], Field(min_length=2, max_length=2)]


class Rates(NamedTuple):
    """The hyperparameters that a schedule sets for one step."""

    factor: float
    """Factor on the optimizer's `lr`."""
    momentum: float | None = None
    """Momentum (Adam's first beta), where the schedule cycles it; else None."""


Schedule = Callable[[int], Rates]
"""Function from a step of the run, from 0, to its rates."""
NamedParameters = Iterable[tuple[str, Parameter]]


class Optimizer:
    """Base of optimizers: an update rule over named parameters, with state tensors for each."""

    def __init__(self, named: NamedParameters, lr: float, state_keys: tuple[str, ...]):
        self.parameters = {name: p for name, p in named if p.requires_grad}
        self.lr = lr
        self.state: dict[str, list[Any]] = {
            key: [None] * len(self.parameters) for key in state_keys
        }
        """State tensors by key, one for each parameter; None before the first step."""

    @torch.no_grad()
    def step(self, rates: Rates, skip: Tensor | None = None) -> None:
        """Update the parameters, unless the scalar tensor `skip` (), on their device, is 1."""
        parameters: list[Tensor] = list(self.parameters.values())
        gradients = self.gradients()
        assert len(gradients) == len(parameters), "every parameter takes part in every step"
        fused = DEVICE_KINDS[parameters[0].device.type].fused
        if skip is not None and not fused and skip.item():  # only fused kernels check it
            return
        self._update(parameters, gradients, rates, fused, skip if fused else None)

    def gradients(self) -> list[Tensor]:
        """Return the gradients of all parameters that have one."""
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
        """Set all gradients to None."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state tensors by `key/parameter`; empty before the first step."""
        return {
            f"{key}/{name}": tensor
            for key, tensors in self.state.items()
            for name, tensor in zip(self.parameters, tensors, strict=True)
            if tensor is not None
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load tensors returned by `state_dict`, from any device."""
        for key, tensors in self.state.items():
            for index, (name, parameter) in enumerate(self.parameters.items()):
                saved = state.get(f"{key}/{name}")
                tensors[index] = None if saved is None else self._like(saved, parameter)

    def _like(self, saved: Tensor, parameter: Tensor) -> Tensor:
        """Return a saved tensor on the device and in the memory format of its parameter.

        The fused kernels require both.
        """
        if saved.shape == parameter.shape:
            return torch.empty_like(parameter).copy_(saved)
        return saved.to(parameter.device) if DEVICE_KINDS[parameter.device.type].fused else saved


class Sgd(Optimizer):
    """Stochastic gradient descent with momentum (Sutskever et al., ICML 2013), in torch's form."""

    def __init__(
        self,
        named: NamedParameters,
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
        if skip is not None and self.state["momentum"][0] is None:
            # A skipped first step would leave the buffers uninitialized.
            self.state["momentum"] = [torch.zeros_like(p) for p in parameters]
        sgd_rule(
            parameters,
            gradients,
            self.state["momentum"],
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
    """Adam (Kingma and Ba, arXiv:1412.6980).

    With `decoupled` weight decay it is AdamW (Loshchilov and Hutter, arXiv:1711.05101).
    """

    def __init__(
        self,
        named: NamedParameters,
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
        if self.state["steps"][0] is None:
            self.state["mean"] = [torch.zeros_like(p) for p in parameters]
            self.state["square"] = [torch.zeros_like(p) for p in parameters]
            where = parameters[0].device if fused else "cpu"  # as in torch's own classes
            self.state["steps"] = [torch.zeros((), device=where) for _ in parameters]
        adam_rule(
            parameters,
            gradients,
            self.state["mean"],
            self.state["square"],
            [],
            self.state["steps"],
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
    named: NamedParameters,
    *,
    lr: Positive,
    momentum: BelowOne = 0.0,
    nesterov: bool = False,
    weight_decay: NotNegative = 0.0,
) -> Optimizer:
    """Return stochastic gradient descent. Raises SpecError for nesterov without momentum."""
    if nesterov and not momentum:
        raise SpecError("nesterov needs a momentum", "optimizer.nesterov")
    return Sgd(named, lr, momentum, nesterov, weight_decay)


def adam(
    named: NamedParameters,
    *,
    lr: Positive,
    betas: Betas = [0.9, 0.999],  # noqa: B006  read only
    eps: Positive = 1e-8,
    weight_decay: NotNegative = 0.0,
) -> Optimizer:
    """Return Adam; weight decay is added to the gradients."""
    return Adam(named, lr, (betas[0], betas[1]), eps, weight_decay, decoupled=False)


def adamw(
    named: NamedParameters,
    *,
    lr: Positive,
    betas: Betas = [0.9, 0.999],  # noqa: B006  read only
    eps: Positive = 1e-8,
    weight_decay: NotNegative = 0.01,
) -> Optimizer:
    """Return AdamW: Adam with decoupled weight decay."""
    return Adam(named, lr, (betas[0], betas[1]), eps, weight_decay, decoupled=True)


def constant(steps: int, *, warmup: BelowOne = 0.0) -> Schedule:
    """Return a constant rate, after a linear warm-up over the fraction `warmup` of the run."""
    return _with_warmup(steps, warmup, lambda done: 1.0)


def step(
    steps: int,
    *,
    milestones: list[Between] = [0.5, 0.75],  # noqa: B006  read only
    gamma: Positive = 0.1,
    warmup: BelowOne = 0.0,
) -> Schedule:
    """Return a rate that is multiplied by `gamma` at each milestone, a fraction of the run."""
    return _with_warmup(steps, warmup, lambda done: gamma ** sum(done >= m for m in milestones))


def cosine(steps: int, *, end_factor: BelowOne = 0.0, warmup: BelowOne = 0.0) -> Schedule:
    """Return a rate that decays along half a cosine to `end_factor` times its start.

    "SGDR", Loshchilov and Hutter 2016, arXiv:1608.03983, equation 5.
    """

    def factor(done: float) -> float:
        eased = (done - warmup) / (1 - warmup)
        return end_factor + (1 - end_factor) * (1 + math.cos(math.pi * eased)) / 2

    return _with_warmup(steps, warmup, factor)


def one_cycle(
    steps: int,
    *,
    pct_start: Between = 0.3,
    div_factor: Positive = 25.0,
    final_div_factor: Positive = 1e4,
    max_momentum: BelowOne | None = None,
    base_momentum: BelowOne | None = None,
) -> Schedule:
    """Return a rate that rises to `lr` over the fraction `pct_start` of the run, then falls.

    It starts at lr / div_factor and ends at lr / div_factor / final_div_factor, as in torch's
    OneCycleLR; the momentum, where given, goes from its maximum to its base and back.
    "Super-Convergence", Smith and Topin 2017, arXiv:1708.07120.
    """
    if (max_momentum is None) != (base_momentum is None):
        raise SpecError("needs both max_momentum and base_momentum, or neither", "schedule")
    start = 1 / div_factor
    final = start / final_div_factor
    top = max(1e-9, pct_start * steps - 1)

    def rates(k: int) -> Rates:
        up = k <= top
        t = k / top if up else (k - top) / max(1e-9, steps - 1 - top)
        factor = _ease(start, 1.0, t) if up else _ease(1.0, final, t)
        if max_momentum is None or base_momentum is None:
            return Rates(factor)
        ends = (max_momentum, base_momentum) if up else (base_momentum, max_momentum)
        return Rates(factor, _ease(*ends, t))

    return rates


def _ease(begin: float, end: float, t: float) -> float:
    """Interpolate from `begin` to `end` along half a cosine, at the fraction `t`."""
    return end + (begin - end) * (1 + math.cos(math.pi * min(1.0, t))) / 2


def _with_warmup(steps: int, warmup: float, factor: Callable[[float], float]) -> Schedule:
    """Return a schedule with a linear warm-up over the fraction `warmup` of the run.

    After it the rate is `factor` of the completed fraction of the run.
    """
    rising = math.ceil(warmup * steps)

    def rates(k: int) -> Rates:
        return Rates((k + 1) / rising if k < rising else factor(k / steps))

    return rates


def scale_lr(schedule: Schedule, factor: float) -> Schedule:
    """Return the schedule with its learning rates multiplied by `factor`."""

    def rates(k: int) -> Rates:
        own = schedule(k)
        return own._replace(factor=own.factor * factor)

    return rates
