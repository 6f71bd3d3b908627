"""Optimizers: update rules over named parameters, with a group for each rate and weight decay.

The update rules are torch's functional ones. torch's Optimizer classes are not used, because
constructing one imports torch._dynamo, which takes about 9 s of CPU time: longer than everything
else before the first step, and not in parallel to it, because an import holds the GIL.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import Parameter
from torch.optim.adam import adam as adam_rule
from torch.optim.rmsprop import rmsprop as rmsprop_rule
from torch.optim.sgd import sgd as sgd_rule

from raycnn.config.components import OPTIMIZERS
from raycnn.config.schema import Fraction, OptimizerConfig, Positive
from raycnn.errors import SpecError, unknown
from raycnn.runtime.device import DEVICE_KINDS
from raycnn.training.schedules import Rates

NotNegative = Annotated[float, Field(ge=0)]
Betas = Annotated[list[Fraction], Field(min_length=2, max_length=2)]
NamedParameters = Iterable[tuple[str, Parameter]]


class ParameterGroup(NamedTuple):
    """Parameters that share their hyperparameters."""

    indices: list[int]
    """Their positions among the optimizer's parameters."""
    lr: float
    weight_decay: float


class Part(NamedTuple):
    """The arguments of an update rule, for one group."""

    parameters: list[Tensor]
    gradients: list[Tensor]
    state: dict[str, list[Any]]
    lr: float
    """The learning rate of this step."""
    weight_decay: float
    momentum: float | None
    """Momentum (Adam's first beta) of this step; None: the optimizer's own."""
    fused: bool
    skip: Tensor | None
    """Scalar tensor (), 1 if the step is to be skipped; for fused kernels only."""

    def init_state(self) -> None:
        """Allocate what is missing: zeros like each parameter, and `steps` as scalars.

        That is all before the first step; later what a changed option needs.
        """
        for key in self.state.keys() - {"steps"}:
            if self.state[key][0] is None:
                self.state[key] = [torch.zeros_like(p) for p in self.parameters]
        if self.state["steps"][0] is not None:
            return
        device = self.parameters[0].device if self.fused else "cpu"  # as in torch's own classes
        self.state["steps"] = [torch.zeros((), device=device) for _ in self.parameters]


class Optimizer:
    """Base of optimizers: an update rule over named parameters, with state tensors for each."""

    has_fused = True
    """Whether torch has fused kernels for the rule; without them a step waits for `skip`."""

    def __init__(
        self,
        named_parameters: NamedParameters,
        lr: float,
        weight_decay: float,
        state_keys: tuple[str, ...],
    ):
        self.parameters = {name: p for name, p in named_parameters if p.requires_grad}
        self.lr = lr
        self.groups = [ParameterGroup(list(range(len(self.parameters))), lr, weight_decay)]
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
        fused = self.has_fused and DEVICE_KINDS[parameters[0].device.type].fused
        if skip is not None and not fused and skip.item():  # only fused kernels check it
            return
        for group in self.groups:
            state = {
                key: [tensors[i] for i in group.indices] for key, tensors in self.state.items()
            }
            self._update(
                Part(
                    [parameters[i] for i in group.indices],
                    [gradients[i] for i in group.indices],
                    state,
                    group.lr * rates.factor,
                    group.weight_decay,
                    rates.momentum,
                    fused,
                    skip if fused else None,
                )
            )
            for key, tensors in state.items():
                for index, tensor in zip(group.indices, tensors, strict=True):
                    self.state[key][index] = tensor

    def gradients(self) -> list[Tensor]:
        """Return the gradients of all parameters that have one."""
        return [p.grad for p in self.parameters.values() if p.grad is not None]

    def _update(self, part: Part) -> None:
        """Update parameters in place, and the tensors or the lists of `part.state`."""
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
        fused = self.has_fused and DEVICE_KINDS[parameter.device.type].fused
        return saved.to(parameter.device) if fused else saved


class Sgd(Optimizer):
    """Stochastic gradient descent with momentum (Sutskever et al., ICML 2013), in torch's form."""

    def __init__(
        self,
        named_parameters: NamedParameters,
        lr: float,
        momentum: float,
        nesterov: bool,
        weight_decay: float,
    ):
        super().__init__(named_parameters, lr, weight_decay, ("momentum",))
        self.momentum, self.nesterov = momentum, nesterov

    def _update(self, part: Part) -> None:
        if part.skip is not None and part.state["momentum"][0] is None:
            # A skipped first step would leave the buffers uninitialized.
            part.state["momentum"] = [torch.zeros_like(p) for p in part.parameters]
        sgd_rule(
            part.parameters,
            part.gradients,
            part.state["momentum"],
            lr=part.lr,
            momentum=self.momentum if part.momentum is None else part.momentum,
            nesterov=self.nesterov,
            weight_decay=part.weight_decay,
            dampening=0.0,
            maximize=False,
            fused=part.fused,
            foreach=not part.fused,
            found_inf=part.skip,
        )


class Adam(Optimizer):
    """Adam (Kingma and Ba, arXiv:1412.6980).

    With `decoupled` weight decay it is AdamW (Loshchilov and Hutter, arXiv:1711.05101).
    """

    def __init__(
        self,
        named_parameters: NamedParameters,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        decoupled: bool,
    ):
        super().__init__(named_parameters, lr, weight_decay, ("mean", "square", "steps"))
        self.betas, self.eps, self.decoupled = betas, eps, decoupled

    def _update(self, part: Part) -> None:
        part.init_state()
        adam_rule(
            part.parameters,
            part.gradients,
            part.state["mean"],
            part.state["square"],
            [],
            part.state["steps"],
            lr=part.lr,
            beta1=self.betas[0] if part.momentum is None else part.momentum,
            beta2=self.betas[1],
            eps=self.eps,
            weight_decay=part.weight_decay,
            decoupled_weight_decay=self.decoupled,
            amsgrad=False,
            maximize=False,
            fused=part.fused,
            foreach=not part.fused,
            found_inf=part.skip,
        )


class Rmsprop(Optimizer):
    """RMSprop (Tieleman and Hinton, Coursera lecture 6.5, 2012), in torch's form."""

    has_fused = False

    def __init__(
        self,
        named_parameters: NamedParameters,
        lr: float,
        alpha: float,
        eps: float,
        momentum: float,
        centered: bool,
        weight_decay: float,
    ):
        keys = ("square", "steps", *["momentum"] * (momentum > 0), *["mean"] * centered)
        super().__init__(named_parameters, lr, weight_decay, keys)
        self.alpha, self.eps, self.momentum, self.centered = alpha, eps, momentum, centered

    def _update(self, part: Part) -> None:
        part.init_state()
        rmsprop_rule(
            part.parameters,
            part.gradients,
            part.state["square"],
            part.state.get("mean", []),
            part.state.get("momentum", []),
            part.state["steps"],
            lr=part.lr,
            alpha=self.alpha,
            eps=self.eps,
            weight_decay=part.weight_decay,
            momentum=part.momentum if self.momentum and part.momentum else self.momentum,
            centered=self.centered,
            foreach=True,
        )


class Lamb(Optimizer):
    """LAMB (You et al., arXiv:1904.00962, algorithm 2): AdamW with a step scaled to each layer.

    The update of a parameter has the norm of the parameter, times the learning rate, except where
    weight decay does not hold, as in timm and apex. Neither of their gradient clippings is part of
    it: `train.clip_norm` clips.
    """

    has_fused = False

    def __init__(
        self,
        named_parameters: NamedParameters,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ):
        super().__init__(named_parameters, lr, weight_decay, ("mean", "square", "steps"))
        self.betas, self.eps = betas, eps

    def _update(self, part: Part) -> None:
        part.init_state()
        mean, square, steps = part.state["mean"], part.state["square"], part.state["steps"]
        beta1, beta2 = self.betas[0] if part.momentum is None else part.momentum, self.betas[1]
        torch._foreach_add_(steps, 1)
        torch._foreach_lerp_(mean, part.gradients, 1 - beta1)
        torch._foreach_mul_(square, beta2)
        torch._foreach_addcmul_(square, part.gradients, part.gradients, 1 - beta2)
        step_count = steps[0].item()  # the counts are on the CPU, and equal for all parameters
        scale = torch._foreach_div(torch._foreach_sqrt(square), math.sqrt(1 - beta2**step_count))
        torch._foreach_add_(scale, self.eps)
        updates = torch._foreach_div(torch._foreach_div(mean, 1 - beta1**step_count), scale)
        if part.weight_decay:
            torch._foreach_add_(updates, part.parameters, alpha=part.weight_decay)
            norms = torch._foreach_norm(part.parameters), torch._foreach_norm(updates)
            torch._foreach_mul_(updates, [_trust_ratio(*pair) for pair in zip(*norms, strict=True)])
        torch._foreach_add_(part.parameters, updates, alpha=-part.lr)


def _trust_ratio(weight_norm: Tensor, update_norm: Tensor) -> Tensor:
    """Return the ratio () of two norms, or 1 if one of them is 0."""
    both_positive = (weight_norm > 0) & (update_norm > 0)
    return torch.where(both_positive, weight_norm / update_norm, 1.0)


def build_optimizer(choice: OptimizerConfig, named_parameters: NamedParameters) -> Optimizer:
    """Return the optimizer of a job, with a group for each learning rate and weight decay.

    Raises SpecError for a prefix without parameters.
    """
    optimizer = OPTIMIZERS.build(choice, named_parameters)
    for prefix in choice.lr_by_prefix:
        if not any(_begins_with(name, prefix) for name in optimizer.parameters):
            parts = {name.split(".")[0] for name in optimizer.parameters}
            raise SpecError(
                unknown("part of the network", prefix, parts),
                f"optimizer.lr_by_prefix.{prefix}",
            )
    decay = optimizer.groups[0].weight_decay
    groups: dict[tuple[float, float], list[int]] = {}
    for index, (name, parameter) in enumerate(optimizer.parameters.items()):
        is_decayed = choice.decay_norm_and_bias or parameter.ndim > 1
        key = (_lr(choice, optimizer, name), decay if is_decayed else 0.0)
        groups.setdefault(key, []).append(index)
    optimizer.groups = [ParameterGroup(indices, *values) for values, indices in groups.items()]
    return optimizer


def _lr(choice: OptimizerConfig, optimizer: Optimizer, name: str) -> float:
    """Return the learning rate of a parameter: that of its longest prefix, else `lr`."""
    matching = [prefix for prefix in choice.lr_by_prefix if _begins_with(name, prefix)]
    return choice.lr_by_prefix[max(matching, key=len)] if matching else optimizer.lr


def _begins_with(name: str, prefix: str) -> bool:
    """Return whether a dotted name is, or is below, the prefix."""
    return f"{name}.".startswith(f"{prefix}.")


def sgd(
    named_parameters: NamedParameters,
    *,
    lr: Positive,
    momentum: Fraction = 0.0,
    nesterov: bool = False,
    weight_decay: NotNegative = 0.0,
) -> Optimizer:
    """Return stochastic gradient descent. Raises SpecError for nesterov without momentum."""
    if nesterov and not momentum:
        raise SpecError("nesterov needs a momentum", "optimizer.nesterov")
    return Sgd(named_parameters, lr, momentum, nesterov, weight_decay)


def adam(
    named_parameters: NamedParameters,
    *,
    lr: Positive,
    betas: Betas = [0.9, 0.999],  # noqa: B006  read only
    eps: Positive = 1e-8,
    weight_decay: NotNegative = 0.0,
) -> Optimizer:
    """Return Adam; weight decay is added to the gradients."""
    return Adam(named_parameters, lr, (betas[0], betas[1]), eps, weight_decay, decoupled=False)


def adamw(
    named_parameters: NamedParameters,
    *,
    lr: Positive,
    betas: Betas = [0.9, 0.999],  # noqa: B006  read only
    eps: Positive = 1e-8,
    weight_decay: NotNegative = 0.01,
) -> Optimizer:
    """Return AdamW: Adam with decoupled weight decay."""
    return Adam(named_parameters, lr, (betas[0], betas[1]), eps, weight_decay, decoupled=True)


def rmsprop(
    named_parameters: NamedParameters,
    *,
    lr: Positive,
    alpha: Fraction = 0.99,
    eps: Positive = 1e-8,
    momentum: Fraction = 0.0,
    centered: bool = False,
    weight_decay: NotNegative = 0.0,
) -> Optimizer:
    """Return RMSprop; weight decay is added to the gradients."""
    return Rmsprop(named_parameters, lr, alpha, eps, momentum, centered, weight_decay)


def lamb(
    named_parameters: NamedParameters,
    *,
    lr: Positive,
    betas: Betas = [0.9, 0.999],  # noqa: B006  read only
    eps: Positive = 1e-6,
    weight_decay: NotNegative = 0.01,
) -> Optimizer:
    """Return LAMB, for large batches; weight decay is decoupled."""
    return Lamb(named_parameters, lr, (betas[0], betas[1]), eps, weight_decay)
