"""Summarize a network: its layers in execution order, their cost and their receptive fields.

Every operation is recorded while the network maps one image. Receptive fields propagate from tensor
to tensor, so branches need no special care: for a convolution or pool of kernel k and stride s,
field' = field + (k - 1) * stride and stride' = stride * s (Araujo et al., "Computing receptive
fields of convolutional neural networks", Distill 2019, doi:10.23915/distill.00021); where paths
join, it is the union. Attention, and reshapes that do not flatten, are not followed: layers after
them have no field.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from raycnn.models import count_parameters
from raycnn.models.flops import OperationMode
from raycnn.shape import Shape

aten = torch.ops.aten
POOLS = {aten.max_pool2d_with_indices, aten.avg_pool2d}
ADAPTIVE = {aten._adaptive_avg_pool2d, aten.adaptive_max_pool2d}
RESHAPES = {aten.view, aten._unsafe_view, aten.mean, aten.sum, aten.amax}

Extent = tuple[int, int]
InputFields = list[tuple[Tensor, "ReceptiveField"]]
"""Those inputs of an operation that depend on the image."""


@dataclass(frozen=True)
class Layer:
    """One call of one module, on one image."""

    name: str
    """The prefix of its keys in the state dict."""
    kind: str
    shape: tuple[int, ...]
    """The shape of its output, without the batch."""
    parameters: int
    """The number of its own parameters, counted only at its first call."""
    multiply_adds: int
    receptive_field: Extent | None
    """Receptive field: rows and columns of pixels, padding included; None if not followed."""
    stride: Extent | None
    """Cumulative stride in pixels; None also where there are no rows and columns."""


@dataclass(frozen=True)
class Summary:
    """The layers of a network, and its totals for one image."""

    layers: list[Layer]
    parameters: int
    """The number of parameters of the whole network, including parts unused in evaluation."""
    multiply_adds: int
    activations: int
    """The number of values that operations write for one image, in evaluation."""


@dataclass(frozen=True)
class Span:
    """The receptive field along an axis: pixels i * stride + (first to last) of output i."""

    first: int = 0
    last: int = 0
    stride: int = 1

    @property
    def size(self) -> int:
        return self.last - self.first + 1

    def through(self, kernel: int, stride: int, padding: int) -> "Span":
        first = self.first - padding * self.stride
        return Span(first, self.last + (kernel - 1 - padding) * self.stride, stride * self.stride)

    def union(self, other: "Span") -> "Span":
        first, last = min(self.first, other.first), max(self.last, other.last)
        return Span(first, last, min(self.stride, other.stride))  # the larger one is broadcast


@dataclass(frozen=True)
class ReceptiveField:
    """The receptive field of the elements of a tensor."""

    rows: Span = Span()
    columns: Span = Span()
    axes: tuple[int, ...] = (-2, -1)
    """The axes of rows and columns, from the end; empty if all elements share one field."""

    @property
    def receptive_field(self) -> Extent:
        return self.rows.size, self.columns.size

    @property
    def stride(self) -> Extent | None:
        return (self.rows.stride, self.columns.stride) if self.axes else None

    def through(self, *windows: Sequence[int]) -> "ReceptiveField":
        """Return the field after windows of (kernel, stride, padding) for rows and columns."""
        rows, columns = zip(*windows, strict=True)
        return replace(self, rows=self.rows.through(*rows), columns=self.columns.through(*columns))

    def union(self, other: "ReceptiveField") -> "ReceptiveField":
        rows, columns = self.rows.union(other.rows), self.columns.union(other.columns)
        return ReceptiveField(rows, columns, self.axes or other.axes)


def summarize(network: nn.Module, image: Shape) -> Summary:
    """Summarize a network for images of a shape; it is left in evaluation mode.

    One on the meta device is given memory: torch imports its compiler for operations there.
    """
    recorder = OperationRecorder()
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    if device.type == "meta":
        device = torch.device("cpu")
        _allocate(network)
    with ExitStack() as hooks, torch.no_grad():
        for name, module in network.eval().named_modules():
            hooks.enter_context(module.register_forward_pre_hook(recorder.enter))
            hooks.enter_context(module.register_forward_hook(recorder.leave(name)))
        pixels = torch.empty(1, *image, device=device)
        recorder.receptive_fields[pixels] = ReceptiveField()
        with recorder:
            network(pixels)
    total = sum(layer.multiply_adds for layer in recorder.layers)
    return Summary(recorder.layers, count_parameters(network), total, recorder.activations)


def _allocate(network: nn.Module) -> None:
    """Move a network from the meta device to the CPU, with zeros as values.

    (`to_empty` would import torch's compiler, and a state dict lacks buffers that are not saved.)
    """
    for module in network.modules():
        for name, buffer in [*module.named_buffers(recurse=False)]:
            setattr(module, name, torch.zeros(buffer.shape, dtype=buffer.dtype))
        for name, parameter in [*module.named_parameters(recurse=False)]:
            zeros = torch.zeros(parameter.shape, dtype=parameter.dtype)
            setattr(module, name, nn.Parameter(zeros, parameter.requires_grad))


class OperationRecorder(OperationMode):
    """Records the layers of a network with their costs, and propagates receptive fields."""

    def __init__(self) -> None:
        super().__init__()
        # ReceptiveField, or None if not followed, of each tensor that depends on the image.
        self.receptive_fields: Any = WeakTensorKeyDictionary()
        self.layers: list[Layer] = []
        self.activations = 0
        # The cost of each module that is running, without that of the modules inside it.
        self._costs: list[int] = []
        self._counted: set[nn.Parameter] = set()

    def record(self, func: Any, args: Any, kwargs: dict[str, Any], out: Any, flops: int) -> None:
        if flops:
            self._costs[-1] += flops // 2
        inputs = [
            (x, self.receptive_fields[x])
            for x in _tensors((args, kwargs))
            if x in self.receptive_fields
        ]
        outs = _tensors(out)
        if inputs and outs:
            if not any(result.alias_info for result in func._schema.returns):
                self.activations += outs[0].numel()
            followed = all(field for _, field in inputs)
            field = _after(func, _named(func, args, kwargs), inputs, outs[0]) if followed else None
            for tensor in outs:
                self.receptive_fields[tensor] = field

    def enter(self, module: nn.Module, args: Any) -> None:
        self._costs.append(0)

    def leave(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        """Return a forward hook that records a module's layer."""

        def hook(module: nn.Module, args: Any, out: Any) -> None:
            cost, tensor = self._costs.pop(), _tensors(out)[0]
            new_parameters = set(module.parameters(recurse=False)) - self._counted
            self._counted |= new_parameters
            if isinstance(module, nn.Linear) and tensor.ndim > 2:
                # Inside the layer, rows and columns are flattened to one axis.
                self.receptive_fields[tensor] = self.receptive_fields.get(args[0])
            if new_parameters or cost or not any(module.children()):
                field = self.receptive_fields.get(tensor)
                shape, parameters = tuple(tensor.shape[1:]), sum(p.numel() for p in new_parameters)
                size, stride = (field.receptive_field, field.stride) if field else (None, None)
                kind = type(module).__name__
                self.layers.append(Layer(name, kind, shape, parameters, cost, size, stride))

        return hook


def _after(
    func: Any, named: dict[str, Any], inputs: InputFields, out: Tensor
) -> ReceptiveField | None:
    """Return the receptive field of an operation's output; None if it is not followed."""
    operation, (tensor, field) = func.overloadpacket, inputs[0]
    if operation is aten.convolution:
        kernel = named["weight"].shape[2:]
        return None if named["transposed"] else _window(field, kernel, named)
    if operation in POOLS:
        return _window(field, named["kernel_size"], named)
    if operation is aten.permute:
        return _moved(field, named["dims"])
    if operation is aten.transpose:
        order = list(range(tensor.ndim))
        one, other = named["dim0"], named["dim1"]
        order[one], order[other] = order[other], order[one]
        return _moved(field, order)
    if operation is aten.constant_pad_nd and field.axes == (-2, -1):
        return field.through((1, 1), (1, 1), (*named["pad"], 0, 0)[2::-2])
    if operation in ADAPTIVE | RESHAPES:
        return _gathered(operation, tensor, field, out)
    return _joined(inputs, out)


def _window(field: ReceptiveField, kernel: Any, named: dict[str, Any]) -> ReceptiveField | None:
    """Return the receptive field after a convolution or a pool."""
    if not field.axes:  # a 1 x 1 map: everything around it is padding
        return field
    if field.axes != (-2, -1):
        return None
    stride, dilation = named["stride"] or kernel, named.get("dilation", 1)
    spread = zip(_pair(kernel), _pair(dilation), strict=True)
    wide = [d * (k - 1) + 1 for k, d in spread]
    return field.through(wide, _pair(stride), _pair(named["padding"]))


def _gathered(
    operation: Any, tensor: Tensor, field: ReceptiveField, out: Tensor
) -> ReceptiveField | None:
    """Return the receptive field after a flattening, a reduction, or an adaptive pool."""
    sides = [tensor.shape[axis] for axis in field.axes]
    out_sides = [out.shape[axis] for axis in field.axes if -axis <= out.ndim]
    flat = out.ndim == 2 and len(out) == len(tensor)
    if sides and (flat or set(out_sides) == {1}):
        return replace(field.through(sides, sides, (0, 0)), axes=())
    if sides and operation in ADAPTIVE:
        return field.through(*zip(*map(_adaptive, sides, out_sides), strict=True), (0, 0))
    return field if sides == out_sides else None


def _adaptive(size: int, places: int) -> Extent:
    """Return the largest window of an adaptive pool, and the largest step between two windows."""
    starts = [place * size // places for place in range(places + 1)]
    ends = [-(-place * size // places) for place in range(1, places + 1)]
    steps = (after - before for before, after in pairwise(starts))
    return max(end - start for start, end in zip(starts, ends, strict=False)), max(steps)


def _joined(inputs: InputFields, out: Tensor) -> ReceptiveField | None:
    """Return the union of the inputs' fields, if their rows and columns coincide, else None."""
    field = inputs[0][1]
    for tensor, other in inputs:
        out_sides = [out.shape[axis] for axis in other.axes if -axis <= out.ndim]
        if [tensor.shape[axis] for axis in other.axes] != out_sides:
            return None
        field = field.union(other)
    return field if all(other.axes in ((), field.axes) for _, other in inputs) else None


def _moved(field: ReceptiveField, order: Sequence[int]) -> ReceptiveField:
    count = len(order)
    places = [place % count for place in order]
    return replace(field, axes=tuple(places.index(axis % count) - count for axis in field.axes))


def _pair(value: Any) -> Extent:
    values = [value] if isinstance(value, int) else list(value)
    return values[0], values[-1]


def _named(func: Any, args: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of an operation by name, including defaults."""
    arguments = func._schema.arguments
    given = {argument.name: value for argument, value in zip(arguments, args, strict=False)}
    return {argument.name: argument.default_value for argument in arguments} | given | kwargs


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]
