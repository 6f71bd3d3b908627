"""What a terminal shows while a network is trained, and what it ends with."""

from collections.abc import Callable
from io import StringIO

import pytest
from rich.console import Console

from raycnn.cli.training_view import TerminalView, show_result
from raycnn.config.schema import JobSpec
from raycnn.training.callbacks import EpochEnded, Evaluated, Progress, StartingWorkers, Warned
from tests.support.runs import happened, train

MakeJob = Callable[..., JobSpec]
ROW = {"epoch": 2.0, "train/loss": 0.5, "train/acc1": 0.9, "val/loss": 0.6, "val/acc1": 0.8}
ROW |= {"lr": 0.1, "images_per_s": 900.0, "time_s": 3.0}


@pytest.fixture
def console() -> Console:
    return Console(file=StringIO(), force_terminal=True, width=80)


def shown(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_the_bar_shows_the_loss_and_spans_the_whole_run(console: Console) -> None:
    view = TerminalView(console, epochs=2)
    view.on_event(Progress(epoch=2, step=3, steps=10, loss=0.1234))
    (task,) = view.bar.tasks
    assert "0.1234" in task.description and (task.completed, task.total) == (13, 20)
    view.on_event(EpochEnded(metrics=ROW))
    assert view.bar.tasks[0].total is None and "test" in view.bar.tasks[0].description
    view.on_event(Evaluated(metrics={"acc1": 1.0, "count": 4}))
    assert "report" in view.bar.tasks[0].description


def test_the_start_of_ray_is_shown_step_by_step(console: Console) -> None:
    with TerminalView(console, epochs=2) as view:
        view.on_event(StartingWorkers(resources="2 CPU on 1 node", workers="2"))
    assert "2 CPU on 1 node" in shown(console)


def test_few_validation_images_are_warned_of_and_their_interval_shown(
    job: MakeJob, console: Console
) -> None:
    trained = train(job(train__epochs=1))
    found = (trained.result() or {})["val"]
    assert any(f"only {found['count']} " in event.text for event in happened(trained, Warned))
    show_result(console, trained)
    low, high = found["interval95"]
    assert low <= found["acc1"] <= high and f"{low:.2%} to {high:.2%}" in shown(console)
    for split in ("train", "test"):
        times = (trained.result() or {})[split]
        assert f"{times['data_ms_per_image']:.3g} ms data, {times['ms_per_image']:.3g} ms " in (
            shown(console)
        )
