"""Settings that a job leaves to be measured on the device."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from raycnn.config.schema import JobSpec
from raycnn.errors import Interrupted
from raycnn.runs.directory import Run
from raycnn.training import autotune
from raycnn.training.autotune import Candidate, Timing, fastest
from raycnn.training.callbacks import Autotuned
from tests.support.runs import happened, same, train, weights

MakeJob = Callable[..., JobSpec]
USUAL, OTHER = Candidate(False, "fp32"), Candidate(True, "fp32")
COMPILED = Candidate(True, "fp32", compile=True)


@pytest.fixture
def worth_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A run of a second is measured too, with a cache of its own."""
    monkeypatch.setattr(autotune, "MIN_TRAINING_S", 0)
    monkeypatch.setattr(autotune, "MIN_COMPILED_S", 0)
    monkeypatch.setattr(autotune, "MEASURED_S", 0.01)
    monkeypatch.setenv("RAYCNN_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("worth_it")
def test_what_is_chosen_is_recorded_and_trains_as_if_the_job_had_said_it(job: MakeJob) -> None:
    spec = job(train__channels_last="auto", train__precision="auto")
    run = train(spec)
    (event,) = happened(run, Autotuned)
    assert len(event.seconds) == 4 and all(0 < s < math.inf for s in event.seconds.values())
    chosen = run.job().train
    assert isinstance(chosen.channels_last, bool) and chosen.precision in ("fp32", "bf16")
    same_settings = {
        "train__channels_last": chosen.channels_last,
        "train__precision": chosen.precision,
    }
    assert same(weights(run), weights(train(job(**same_settings))))


@pytest.mark.usefixtures("worth_it")
def test_a_machine_measures_once(job: MakeJob) -> None:
    spec = job(train__channels_last="auto")
    first, second = (happened(train(spec), Autotuned)[0] for _ in range(2))
    assert first.seconds == second.seconds


@pytest.mark.usefixtures("worth_it")
def test_a_resumed_run_keeps_its_settings_on_another_machine(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = job(train__channels_last="auto")
    unbroken, run = train(spec), Run.create(spec)
    with pytest.raises(Interrupted):
        train(spec, run, stop_at=4)
    monkeypatch.setenv("RAYCNN_CACHE", str(tmp_path / "another"))
    resumed = train(run.job(), Run.open(run.folder))
    assert len(happened(resumed, Autotuned)) == 1
    assert same(weights(resumed), weights(unbroken))


def test_a_short_run_is_not_measured(job: MakeJob) -> None:
    run = train(job(train__channels_last="auto", train__compile="auto"))
    assert len(happened(run, Autotuned)[0].seconds) == 1
    assert run.job().train.channels_last is False and run.job().train.compile is False


@pytest.mark.usefixtures("worth_it")
def test_what_cannot_be_compiled_is_trained_without(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # As without a compiler.
    monkeypatch.setattr("torch.nn.Module.compile", lambda model, **_: 1 / 0)
    run = train(job(train__compile="auto"))
    assert run.job().train.compile is False
    assert len(happened(run, Autotuned)[0].seconds) == 1
    assert "compiled cannot be used: division by zero" in caplog.text


@pytest.mark.parametrize(
    ("steps", "usual_s", "other_s", "compiled", "chosen"),
    [
        (100, 0.1, 0.05, None, USUAL),  # ten seconds in all
        (1000, 0.1, 0.05, None, OTHER),
        (1000, 0.1, 0.099, None, USUAL),  # as good as equal
        (1000, 0.1, 0.08, Timing(0.04, 1), OTHER),  # a minute: not worth a try
        (10_000, 0.1, 0.08, Timing(0.06, 100), OTHER),  # three graphs take longer than is gained
        (10_000, 0.1, 0.08, Timing(0.04, 60), COMPILED),
        (10_000, 0.1, 0.08, Timing(math.inf), OTHER),
    ],
)  # fmt: skip
def test_the_fastest_for_the_whole_run_is_chosen(
    steps: int, usual_s: float, other_s: float, compiled: Timing | None, chosen: Candidate
) -> None:
    timings = {USUAL: Timing(usual_s), OTHER: Timing(other_s), COMPILED: compiled}
    setting = "auto" if compiled else False
    assert fastest([USUAL, OTHER], setting, steps, timings.__getitem__) == chosen  # type: ignore[arg-type]
