import pytest
import torch

from raycnn.errors import EnvironmentUnavailable
from raycnn.training.callbacks import Event, MicroBatchHalved
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
