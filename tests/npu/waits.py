"""Train a job on the simulated NPU and print, as JSON, the operations for which a host waits.

The simulation never waits: counted is what does so on a card. Run as `python -m tests.npu.waits`.
"""

import json
import sys
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import raycnn
from raycnn.data import loader

SIZED_BY_DATA = {"nonzero", "masked_select", "unique_dim", "_unique2", "unique_consecutive"}


class Uploads(TorchFunctionMode):
    """Count the tensors made on the device of values of the host, which is a copy that waits."""

    def __init__(self, counts: Counter[str]):
        super().__init__()
        self.counts = counts

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.tensor, torch.as_tensor) and result.device.type != "cpu":
            self.counts[func.__name__] += 1
        return result


class Waits(TorchDispatchMode):
    """Count the operations on the device whose result the host needs before it goes on."""

    def __init__(self, counts: Counter[str]):
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = [leaf for leaf in tree_leaves([args, kwargs]) if isinstance(leaf, Tensor)]
        if self._waits(func, inputs, result, args, kwargs or {}):
            self.counts[str(func)] += 1
        return result

    def _waits(
        self, func: Any, inputs: list[Tensor], result: Any, args: tuple[Any, ...], kwargs: Any
    ) -> bool:
        name = func._schema.name.removeprefix("aten::")
        if name in ("copy_", "_to_copy"):
            source, other = inputs[-1], result
            if source.device == other.device:
                return False
            is_queued = kwargs.get("non_blocking") or (name == "copy_" and args[2:] == (True,))
            host = source if source.device.type == "cpu" else other
            return not (is_queued and host.is_pinned())
        if all(each.device.type == "cpu" for each in inputs):
            return False
        is_mask = name.startswith("index") and any(i.dtype == torch.bool for i in inputs[1:])
        return name == "_local_scalar_dense" or name in SIZED_BY_DATA or is_mask


if __name__ == "__main__":
    # The reader's copies are made by this thread: the mode sees no other.
    loader.prefetch = map  # type: ignore[assignment]
    counts = Counter[str]()
    with Uploads(counts), Waits(counts):
        raycnn.train(sys.argv[1], progress=False, workers__device="npu")
    print(json.dumps(counts))
