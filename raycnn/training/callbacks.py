"""Typed events of training, and the callbacks that receive them.

An event is a frozen dataclass with a time, the rank that sent it, its own fields, and a message for
display. Code decides by type and fields, never by the message. Imports neither torch nor Ray, so
that programs which only show or store events start fast.
"""

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Protocol

from raycnn.errors import plural
from raycnn.training.main_metric import LABELS, main_metric

log = logging.getLogger("raycnn")

UNSAVED = {"saved": False}  # metadata of a field that callbacks receive but no file stores


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all events of a run."""

    transient: ClassVar[bool] = False
    """Whether the event is shown but not stored, because the next of its type replaces it."""

    time: float = field(default_factory=time.time)
    """Seconds since 1970."""
    rank: int = 0
    """Rank of the worker that sent it; the driver sends as rank 0."""

    @property
    def message(self) -> str:
        """The event as one line for display."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Return the event as plain values for JSON: `time`, `type`, `rank`, fields, `message`."""
        saved = [f.name for f in fields(self) if f.metadata.get("saved", True)]
        values = {name: getattr(self, name) for name in saved}
        head = {"time": values.pop("time"), "type": type(self).__name__, "rank": values.pop("rank")}
        return head | values | {"message": self.message}

    @staticmethod
    def from_dict(tree: Mapping[str, Any]) -> "Event | None":
        """Return the event of a `to_dict` tree; None for an unknown type or unknown fields.

        Another version of raycnn may have written it.
        """
        kind = EVENTS.get(str(tree.get("type")))
        if kind is None:
            return None
        try:
            return kind(**{key: tree[key] for key in tree if key not in ("type", "message")})
        except TypeError:
            return None


@dataclass(frozen=True, kw_only=True)
class Decoding(Event):
    """Images are being decoded before the first step."""

    transient = True

    done: int
    total: int

    @property
    def message(self) -> str:
        return f"decoded {self.done} of {self.total} images"


@dataclass(frozen=True, kw_only=True)
class Progress(Event):
    """The current epoch and step; sent at most a few times per second."""

    transient = True

    epoch: int
    """Current epoch, from 1."""
    step: int
    """Steps completed in this epoch."""
    steps: int
    """Steps per epoch."""
    loss: float | None = None
    """Mean training loss of recent steps on this worker; None before the first is known."""

    @property
    def message(self) -> str:
        return f"epoch {self.epoch}, step {self.step} of {self.steps}"


@dataclass(frozen=True, kw_only=True)
class ConnectingToRay(Event):
    """Ray is being started, or connected to, which takes a while."""

    address: str | None

    @property
    def message(self) -> str:
        if self.address:
            return f"connecting to Ray at {self.address}"
        return "starting Ray: 10 to 30 seconds"


@dataclass(frozen=True, kw_only=True)
class StartingWorkers(Event):
    """Ray is connected, and now starts the workers."""

    resources: str
    """Resources of the cluster, for display."""
    workers: str
    """Number of workers that the job requests."""

    @property
    def message(self) -> str:
        return f"Ray has {self.resources}; starting the workers: {self.workers}"


@dataclass(frozen=True, kw_only=True)
class WorkersConnected(Event):
    """All workers have started, and now prepare the data and the network."""

    workers: int

    @property
    def message(self) -> str:
        subject = "the worker is" if self.workers == 1 else f"{self.workers} workers are"
        return f"{subject} connected; preparing data and network"


@dataclass(frozen=True, kw_only=True)
class RunOpened(Event):
    """The run folder has been created or opened."""

    location: str
    """The folder, or its URI."""

    @property
    def message(self) -> str:
        return f"run {self.location}"


@dataclass(frozen=True, kw_only=True)
class SpecWritten(Event):
    """A job was generated from a folder of images, and its spec written to the run folder."""

    found: str
    """Number of images and classes, and their folder, for display."""
    path: str

    @property
    def message(self) -> str:
        return f"{self.found}; spec {self.path}"


@dataclass(frozen=True, kw_only=True)
class SettingChanged(Event):
    """A resumed run continues with another value of a setting."""

    key: str
    before: Any
    after: Any

    @property
    def message(self) -> str:
        return f"changed {self.key} from {self.before} to {self.after}"


@dataclass(frozen=True, kw_only=True)
class Warned(Event):
    """A warning for the user."""

    text: str

    @property
    def message(self) -> str:
        return self.text


@dataclass(frozen=True, kw_only=True)
class WeightsLoaded(Event):
    """Training starts from existing weights."""

    source: str
    """The value of `model.weights`."""
    new_layers: list[str]
    """Parameters that keep their random values, because the number of classes differs."""
    changes: list[str] = field(default_factory=list)
    """Changes made to the weights to fit the network, for display."""

    @property
    def message(self) -> str:
        new = f"new, for other classes: {', '.join(self.new_layers)}"
        parts = [f"loaded the weights of {self.source}", *self.changes]
        return "; ".join([*parts, new] if self.new_layers else parts)


@dataclass(frozen=True, kw_only=True)
class TeacherLoaded(Event):
    """The network is trained on the outputs of another one, its teacher, as well."""

    teacher: str
    """The value of `train.distillation.teacher`."""
    sha256: str
    """Digest of the teacher's weights."""
    model: str
    """Name of its network."""
    epoch: int
    """Epoch of its best weights, from 1."""
    size: list[int] | None = None
    """Height and width that images are resized to for it; None if the size is the same."""

    @property
    def message(self) -> str:
        text = f"teacher {self.teacher}: {self.model}, best epoch {self.epoch}"
        if not self.size:
            return text
        height, width = self.size
        return f"{text}; the images are resized to {height}x{width} for it"


@dataclass(frozen=True, kw_only=True)
class CheckpointSkipped(Event):
    """A checkpoint is damaged, so the previous one is used."""

    fault: str

    @property
    def message(self) -> str:
        return f"skipped a corrupt checkpoint: {self.fault}"


@dataclass(frozen=True, kw_only=True)
class VersionDiffers(Event):
    """The checkpoint was written with another version of a package."""

    package: str
    saved: str
    current: str

    @property
    def message(self) -> str:
        return (
            f"checkpoint written by {self.package} {self.saved}, this is {self.current}: results "
            "may differ in the last digits"
        )


@dataclass(frozen=True, kw_only=True)
class Resumed(Event):
    """Training resumes from a checkpoint."""

    epoch: int
    """Completed epochs."""
    step: int
    """Steps completed in the current epoch."""
    history: list[dict[str, float]] = field(default_factory=list, repr=False, metadata=UNSAVED)
    """Metrics of each completed epoch."""

    @property
    def message(self) -> str:
        return f"resuming from epoch {self.epoch}" + (f", step {self.step}" if self.step else "")


@dataclass(frozen=True, kw_only=True)
class TrainingStarted(Event):
    """Data, network and device are ready; the first step follows."""

    model: str
    parameters: int
    images: dict[str, int]
    """Number of images of each split."""
    device: str
    workers: int
    flops: int | None = None
    """Floating-point operations for one image; None if they cannot be counted."""

    @property
    def message(self) -> str:
        size = f"{self.parameters:,} parameters"
        if self.flops:
            size += f", {format_flops(self.flops)} per image"
        images = ", ".join(f"{count:,} {split}" for split, count in self.images.items())
        devices = f"{self.workers} x {self.device}" if self.workers > 1 else self.device
        return f"{self.model}, {size}; images: {images}; on {devices}"


@dataclass(frozen=True, kw_only=True)
class Autotuned(Event):
    """The settings that the job leaves to be measured have been chosen."""

    settings: dict[str, Any]
    """Chosen values by dotted key of the spec."""
    seconds: dict[str, float]
    """Measured seconds of a step by combination of settings; without those that do not run."""

    @property
    def message(self) -> str:
        chosen = ", ".join(f"{key}={value}" for key, value in self.settings.items())
        times = ", ".join(f"{name} {1000 * s:.3g} ms" for name, s in self.seconds.items())
        return f"measured {times} a step; using {chosen}"


@dataclass(frozen=True, kw_only=True)
class MicroBatchHalved(Event):
    """The device ran out of memory; the micro-batch is halved from here on."""

    size: int

    @property
    def message(self) -> str:
        return (
            f"out of memory on the device: micro-batches of {self.size} images from here on, "
            "which are what batch norm takes its statistics of"
        )


@dataclass(frozen=True, kw_only=True)
class RolledBack(Event):
    """The loss was not finite; training restarts from the last checkpoint with a smaller rate."""

    reason: str
    lr_factor: float
    """Factor on the learning rate, over all rollbacks so far."""
    rollback: int
    rollbacks: int
    """Maximum number of rollbacks."""

    @property
    def message(self) -> str:
        return (
            f"{self.reason}: rolled back to the last checkpoint, with the learning rate times "
            f"{self.lr_factor:g} (rollback {self.rollback} of {self.rollbacks})"
        )


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(Event):
    """A checkpoint has been written."""

    epoch: int
    step: int
    """Steps completed in the current epoch; 0 at the end of an epoch."""
    name: str
    """Name of its folder in `checkpoints`."""
    best: bool
    """Whether it has the best validation so far."""

    @property
    def message(self) -> str:
        return f"saved checkpoint {self.name}{' (best)' if self.best else ''}"


@dataclass(frozen=True, kw_only=True)
class EpochEnded(Event):
    """An epoch has been trained, validated and saved."""

    metrics: dict[str, float]
    """`epoch`, `step`, `train/loss`, ...: a row of metrics.csv."""

    @property
    def message(self) -> str:
        return "  ".join(
            f"{key} {_format_value(key, value)}" for key, value in self.metrics.items()
        )


@dataclass(frozen=True, kw_only=True)
class StoppedEarly(Event):
    """Validation has not improved for `train.patience` epochs."""

    patience: int

    @property
    def message(self) -> str:
        return f"stopped early: no better validation for {self.patience} epochs"


@dataclass(frozen=True, kw_only=True)
class StoppedOnRequest(Event):
    """Training stopped on request, after saving a checkpoint."""

    epoch: int
    """Completed epochs."""
    step: int
    """Steps completed in the current epoch."""

    @property
    def message(self) -> str:
        epochs = f"{self.epoch} {plural('epoch', self.epoch)}"
        steps = f"{self.step} {plural('step', self.step)}"
        return f"stopped on request, and saved, after {epochs} and {steps}"


@dataclass(frozen=True, kw_only=True)
class StopRequested(Event):
    """The workers were asked to save and stop, and have not done so yet."""

    @property
    def message(self) -> str:
        return "saving, then stopping; press Ctrl-C again to stop now"


@dataclass(frozen=True, kw_only=True)
class Evaluated(Event):
    """The best weights were evaluated on every test image once."""

    metrics: dict[str, float]
    """`acc1`, `acc5` (or `map`, `f1`, `f1_macro`), `loss`, `count`, `images_per_s`."""

    @property
    def message(self) -> str:
        name = main_metric(self.metrics)
        value, count = self.metrics[name], self.metrics["count"]
        return f"test {LABELS[name]} {value:.2%} on {count:,.0f} images"


@dataclass(frozen=True, kw_only=True)
class ReportWritten(Event):
    """The report of a finished run and its figures are in the run folder."""

    file: str

    @property
    def message(self) -> str:
        return f"wrote {self.file}"


@dataclass(frozen=True, kw_only=True)
class Failed(Event):
    """The run ended with an error."""

    error: str
    kind: str
    """Class name of the error."""

    @property
    def message(self) -> str:
        return f"failed: {self.error}"


@dataclass(frozen=True, kw_only=True)
class WorkersRestarted(Event):
    """Workers were lost or ran out of memory; all restart from the last checkpoint."""

    error: str
    """Error of the first lost worker."""
    cause: str
    """`lost` counts as a retry; `preempted` (its node was taken away) and `memory` do not."""
    retry: int = 0
    """Number of retries used, including this one."""
    retries: int = 0
    """Maximum number of retries."""

    @property
    def message(self) -> str:
        notes = {
            "lost": f" (retry {self.retry} of {self.retries})",
            "preempted": " (preempted)",
            "memory": " (a smaller micro-batch)",
        }
        return f"worker lost: {self.error}: restarting{notes.get(self.cause, '')}"


@dataclass(frozen=True, kw_only=True)
class RestartPlanned(Event):
    """The workers were asked to save, because their number or their nodes are about to change."""

    reason: str

    @property
    def message(self) -> str:
        return f"{self.reason}: saving"


@dataclass(frozen=True, kw_only=True)
class WaitingForResources(Event):
    """The cluster currently lacks the resources for the workers."""

    reason: str

    @property
    def message(self) -> str:
        return f"waiting for resources: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class WorldResized(Event):
    """Training continues with another number of workers."""

    workers: int
    wanted: str
    """Number of workers that the job requests: `1 to 3`."""

    @property
    def message(self) -> str:
        return f"now {self.workers} {plural('worker', self.workers)}, of {self.wanted}"


@dataclass(frozen=True, kw_only=True)
class TrialStopped(Event):
    """The scheduler of a search stopped this trial."""

    reason: str

    @property
    def message(self) -> str:
        return f"stopped: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class TrialExploited(Event):
    """In population-based training, this trial copied the weights of a better one."""

    parent: str
    epoch: int

    @property
    def message(self) -> str:
        return f"copied {self.parent} after {self.epoch} epochs"


@dataclass(frozen=True, kw_only=True)
class StorageUnreachable(Event):
    """The file system of the run is unreachable; the operation is retried."""

    uri: str
    error: str
    timeout_s: float

    @property
    def message(self) -> str:
        return (
            f"storage.path: {self.uri} cannot be reached: {self.error}: trying again for "
            f"{self.timeout_s:g} s (storage.timeout_s)"
        )


@dataclass(frozen=True, kw_only=True)
class StorageReached(Event):
    """The file system of the run is reachable again."""

    uri: str
    waited_s: float

    @property
    def message(self) -> str:
        return f"storage.path: {self.uri} is reachable again, after {self.waited_s:.0f} s"


EVENTS: dict[str, type[Event]] = {kind.__name__: kind for kind in Event.__subclasses__()}


class Callback(Protocol):
    """A subscriber to the events of a run."""

    def on_event(self, event: Event) -> None:
        """Handle an event. Training waits for this call, so it must not block for long."""


class CallbackList:
    """A callback that forwards every event to several, stamped with the rank of this worker.

    A callback that raises is logged, and never stops training.
    """

    def __init__(self, callbacks: Iterable[Callback] = (), rank: int = 0):
        self.callbacks, self.rank = list(callbacks), rank

    def on_event(self, event: Event) -> None:
        event = replace(event, rank=self.rank)
        for callback in self.callbacks:
            try:
                callback.on_event(event)
            except Exception as error:
                name = type(callback).__name__
                # An OSError, most often a full disk, needs no traceback.
                trace = None if isinstance(error, OSError) else error
                log.warning(f"{name}: {type(event).__name__} is lost: {error}", exc_info=trace)


def format_flops(flops: int) -> str:
    """Return a number of floating-point operations for display: `8.18 GFLOPs`."""
    unit, name = (1e9, "GFLOPs") if flops >= 1e8 else (1e6, "MFLOPs")
    return f"{flops / unit:.3g} {name}"


def _format_value(key: str, value: float) -> str:
    if key in ("epoch", "step"):
        return str(int(value))
    return f"{value:,.0f}" if key == "images_per_s" else f"{value:.4g}"
