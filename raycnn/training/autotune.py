"""Measure which memory format, precision and compilation train a network fastest on its device.

A job requests it by `auto`. All workers measure at once, as they train at once, and the slowest
counts; with distillation the teacher's forward pass is part of a step. The timings are kept in the
cache folder, for this machine, network, batch and these versions; the run records what was chosen,
so that a resumed run computes as it did before.
"""

import hashlib
import itertools
import json
import logging
import math
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from raycnn import __version__, io
from raycnn.config.components import SCHEDULES
from raycnn.config.schema import JobSpec
from raycnn.errors import EnvironmentUnavailable, first_line
from raycnn.paths import cache_folder
from raycnn.runtime import distributed
from raycnn.runtime.device import DEVICE_KINDS, layout, supports_bf16
from raycnn.training.callbacks import Autotuned, Callback
from raycnn.training.checkpoint import TrainingState
from raycnn.training.compilation import compile_in_place
from raycnn.training.distillation import Teacher
from raycnn.training.micro_batch import micro_batch_size
from raycnn.training.step import TrainStep, unlabeled_batch

SETTINGS = ("channels_last", "precision", "compile")
FOLDER = "autotune"  # name of the folder of timings in the cache folder
MIN_TRAINING_S = 60  # seconds: shorter runs take the default settings without measuring
MIN_COMPILED_S = 600  # seconds: shorter runs are not compiled, which takes a minute to measure
MIN_GAIN = 0.05  # fraction by which another setting must be faster than the default
MEASURED_S = 1.0  # seconds of steps for each combination of settings
GRAPHS = 5  # graphs compiled in a run: full and last batches, of training, validation and test

log = logging.getLogger("raycnn")

NewState = Callable[[JobSpec], TrainingState]


@dataclass(frozen=True)
class Candidate:
    """A combination of settings."""

    channels_last: bool
    precision: str
    compile: bool = False

    @property
    def name(self) -> str:
        """Name for display, and key of its timing: `channels-last bf16 compiled`."""
        layout = "channels-last" if self.channels_last else "contiguous"
        return f"{layout} {self.precision}{' compiled' if self.compile else ''}"

    def changes(self) -> dict[str, Any]:
        """Return the settings by dotted key."""
        return {f"train.{key}": getattr(self, key) for key in SETTINGS}


@dataclass(frozen=True)
class Timing:
    """Measured times of a candidate; infinite if it does not run."""

    step_s: float
    """Seconds of the fastest step."""
    compile_s: float = 0.0
    """Seconds by which the first step took longer than the fastest."""

    def total_s(self, steps: int) -> float:
        """Return the expected duration of a number of steps, in seconds."""
        return steps * self.step_s + GRAPHS * self.compile_s


Timings = dict[str, Timing]


def autotune(
    job: JobSpec,
    steps: int,
    shape: tuple[int, ...],
    device: torch.device,
    new_state: NewState,
    teacher: Teacher | None,
    callbacks: Callback,
) -> JobSpec:
    """Return the job with each `auto` replaced by the fastest setting for a run of `steps` steps.

    `shape` is that of an image (C, H, W); `new_state` returns a new training state for a job.
    A `teacher` is measured with it, and converted to its memory format.
    """
    if "auto" not in (getattr(job.train, key) for key in SETTINGS):
        return job
    path = _path(job, shape, device, teacher)
    timings: Timings = distributed.broadcast_from_rank_zero(lambda: _read(path))
    cached = len(timings)

    def measure(candidate: Candidate) -> Timing:
        if candidate.name not in timings:
            timings[candidate.name] = _measure(job, candidate, shape, device, new_state, teacher)
        return timings[candidate.name]

    chosen = fastest(list(_candidates(job, device)), job.train.compile, steps, measure)
    # A candidate that does not run may do so once a compiler is installed or memory is free.
    finite = {name: timing for name, timing in timings.items() if timing.step_s < math.inf}
    if distributed.is_rank_zero() and len(finite) > max(cached, 1):
        _write(path, finite)
    seconds = {name: timing.step_s for name, timing in finite.items()}
    callbacks.on_event(Autotuned(settings=chosen.changes(), seconds=seconds))
    job = job.change(chosen.changes())
    if teacher:
        teacher.set_layout(job.train.channels_last)
    return job


def fastest(
    candidates: list[Candidate],
    compiled: bool | str,
    steps: int,
    measure: Callable[[Candidate], Timing],
) -> Candidate:
    """Return the fastest candidate for a run of `steps` steps; the first one is the default.

    `compiled` is the job's setting: with `auto` the fastest is compared with itself compiled.
    """
    default = candidates[0]
    if measure(default).total_s(steps) < MIN_TRAINING_S:
        return default

    def cost(candidate: Candidate) -> float:
        gain = 0 if candidate == default else MIN_GAIN
        return measure(candidate).total_s(steps) / (1 - gain)

    best = min(candidates, key=cost)
    if compiled == "auto" and measure(best).total_s(steps) >= MIN_COMPILED_S:
        best = min([best, replace(best, compile=True)], key=cost)
    return best


def _candidates(job: JobSpec, device: torch.device) -> Iterator[Candidate]:
    """Yield the combinations of settings that the job allows, the default first.

    They are compiled if the job says so.
    """
    default = layout(device, None) == torch.channels_last
    setting = job.train.channels_last
    if setting == "auto":
        layouts = [default, not default]
    else:
        layouts = [default if setting is None else setting]
    precision = job.train.precision
    precisions = ["fp32", _low_precision_dtype(device)] if precision == "auto" else [precision]
    for channels_last, dtype in itertools.product(layouts, precisions):
        yield Candidate(channels_last, dtype, compile=job.train.compile is True)


def _low_precision_dtype(device: torch.device) -> str:
    """Return the 16-bit precision that suits the device."""
    return "bf16" if supports_bf16(device.type) else "fp16"


def _measure(
    job: JobSpec,
    candidate: Candidate,
    shape: tuple[int, ...],
    device: torch.device,
    new_state: NewState,
    teacher: Teacher | None,
) -> Timing:
    """Return the timing of a candidate on the slowest worker."""
    job = job.change(candidate.changes() | {"train.sync_batch_norm": False})
    try:
        first_s, step_s = _time_steps(job, shape, device, new_state, teacher)
    except Exception as error:  # without a compiler torch raises many types
        # A device may lack memory, or a kernel. If it does for all candidates, training says so.
        if not candidate.compile and not isinstance(error, RuntimeError):
            raise
        log.warning(f"{candidate.name} cannot be used: {first_line(error)}")
        first_s = step_s = math.inf
    compile_s = first_s - step_s if candidate.compile and step_s < math.inf else 0.0
    return Timing(distributed.all_reduce_max(step_s), distributed.all_reduce_max(compile_s))


def _time_steps(
    job: JobSpec,
    shape: tuple[int, ...],
    device: torch.device,
    new_state: NewState,
    teacher: Teacher | None,
) -> tuple[float, float]:
    """Return the seconds of the first step, and of the fastest of at least two later ones."""
    share = math.ceil(job.train.batch_size / distributed.world_size())
    state = new_state(job)
    if job.train.compile:
        compile_in_place(state.model)
    if teacher:
        teacher.set_layout(job.train.channels_last)
    train_step = TrainStep(
        replica=state.model, state=state, job=job, schedule=SCHEDULES.build(job.schedule, 100),
        micro_batch=micro_batch_size(job.train), class_weights=None, teacher=teacher,
    )  # fmt: skip
    batch = unlabeled_batch(torch.randn(share, *shape, device=device), job.train.batch_size)
    module, seconds = torch.get_device_module(device), list[float]()
    while len(seconds) < 3 or sum(seconds[1:]) < MEASURED_S:
        start = time.perf_counter()
        train_step(batch, 0)
        module.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds[0], min(seconds[1:])


def _path(
    job: JobSpec, shape: tuple[int, ...], device: torch.device, teacher: Teacher | None
) -> Path | None:
    """Return the file of the timings; None without a cache folder."""
    names = DEVICE_KINDS[device.type].names() or [platform.processor(), platform.node()]
    measured_on = [
        __version__, torch.__version__, names, torch.get_num_threads(), distributed.world_size(),
        shape, job.tree()["model"], job.tree()["optimizer"], job.train.batch_size,
        job.train.micro_batch, job.train.ema, job.train.deterministic,
        teacher and teacher.loaded.sha256,
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(measured_on).encode()).hexdigest()[:16]
    try:
        return cache_folder() / FOLDER / f"{digest}.json"
    except EnvironmentUnavailable:
        return None


def _read(path: Path | None) -> Timings:
    tree = (io.read_json(path) if path else None) or {}
    try:
        return {name: Timing(**fields) for name, fields in tree.items()}
    except TypeError:  # another version of raycnn wrote the file
        return {}


def _write(path: Path | None, timings: Timings) -> None:
    with suppress(OSError):  # if the cache cannot be written, the next run measures again
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            io.write_json(path, {name: asdict(timing) for name, timing in timings.items()})
