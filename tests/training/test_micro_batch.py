"""Micro-batches halved until they fit, on fakes: no device that runs out of memory is at hand."""

from functools import partial

import pytest
import torch

from raycnn.errors import EnvironmentUnavailable
from raycnn.training.callbacks import CallbackList, Event, MicroBatchHalved
from raycnn.training.micro_batch import find_micro_batch_size


def test_a_batch_too_large_for_the_device_is_halved_until_it_fits() -> None:
    """The device is a fake that holds ten images: no other is at hand in every test run."""
    events: list[Event] = []

    class Collector:
        def on_event(self, event: Event) -> None:
            events.append(event)

    def attempt(size: int) -> None:
        if size > 10:
            raise torch.OutOfMemoryError

    assert find_micro_batch_size(attempt, 64, Collector()) == 8
    assert [event.size for event in events if isinstance(event, MicroBatchHalved)] == [32, 16, 8]
    with pytest.raises(EnvironmentUnavailable, match="one image is too much"):
        find_micro_batch_size(lambda size: attempt(11), 64, Collector())


def test_not_all_devices_have_an_error_of_their_own_for_a_lack_of_memory() -> None:
    def attempt(size: int, text: str) -> None:
        if size > 10:
            raise RuntimeError(text)

    for text in ("MPS backend out of memory (MPS allocated: 9 GB)", "CUBLAS_STATUS_ALLOC_FAILED"):
        assert find_micro_batch_size(partial(attempt, text=text), 64, CallbackList()) == 8
    with pytest.raises(EnvironmentUnavailable, match=r"smaller network \(.*unable to find an eng"):
        text = "GET was unable to find an engine to execute this computation"
        find_micro_batch_size(lambda size: attempt(11, text), 64, CallbackList())
    with pytest.raises(RuntimeError, match="shapes do not match"):
        find_micro_batch_size(partial(attempt, text="shapes do not match"), 64, CallbackList())
