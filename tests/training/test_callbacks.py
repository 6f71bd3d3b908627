"""Events survive JSON, reach every callback, and a broken callback stops nothing."""

import json
from dataclasses import MISSING, fields
from typing import Any

import pytest

from raycnn.training.callbacks import EVENTS, CallbackList, Event, Failed, Resumed, Warned

SAMPLES: dict[Any, Any] = {
    int: 3,
    float: 0.5,
    str: "text",
    bool: True,
    Any: {"a": 1},
    str | None: None,
    list[str]: ["fc.weight"],
    dict[str, float]: {"epoch": 1.0, "acc1": 0.5, "count": 10.0},
    dict[str, int]: {"train": 2},
    dict[str, Any]: {"train.compile": False},
}


def example(kind: type[Event]) -> Event:
    needed = [f for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    return kind(**{f.name: SAMPLES[f.type] for f in needed})


@pytest.mark.parametrize("kind", EVENTS.values(), ids=list(EVENTS))
def test_an_event_comes_back_from_json(kind: type[Event]) -> None:
    event = example(kind)
    tree = json.loads(json.dumps(event.to_dict()))
    assert tree["type"] == kind.__name__ and tree["message"]
    assert Event.from_dict(tree) == event


def test_events_of_another_version_are_passed_by() -> None:
    assert Event.from_dict({"time": 1.0, "type": "Teleported", "rank": 0}) is None
    assert Event.from_dict(Warned(text="hot").to_dict() | {"new_field": 1}) is None
    assert Event.from_dict({"time": 1.0, "event": "words"}) is None


def test_history_is_for_subscribers_and_not_stored() -> None:
    assert "history" not in Resumed(epoch=1, step=0, history=[{"epoch": 1.0}]).to_dict()


def test_a_broken_callback_keeps_no_event_from_the_others() -> None:
    class Broken:
        def on_event(self, event: Event) -> None:
            raise ValueError("broken")

    class Collector:
        def __init__(self) -> None:
            self.events: list[Event] = []

        def on_event(self, event: Event) -> None:
            self.events.append(event)

    last = Collector()
    CallbackList([Broken(), last], rank=2).on_event(Failed(error="full", kind="OSError"))
    assert last.events[0].rank == 2 and isinstance(last.events[0], Failed)
