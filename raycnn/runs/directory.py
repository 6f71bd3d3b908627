"""The run folder: what is written where, and found again.

runs/<job>/<n>/
    job.yaml            the resolved spec
    environment.json    what it ran on
    metrics.csv         a row for each epoch
    events.jsonl        what happened to it: gone on, passed over, lost
    checkpoints/        see checkpoint.py
    logs/               a file for each worker; TensorBoard events in logs/tensorboard
    result.json         when done: the test, and what was best
    per_class.json      the test class by class, and which class was taken for which how often
    progress.json       while it trains: where it is

Nothing in it is found by a path from outside, so it can be moved.
"""

import csv
import faulthandler
import json
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial, reduce
from pathlib import Path
from typing import Any, Protocol

import torch
from filelock import FileLock, Timeout

from raycnn.config import yaml_file
from raycnn.config.load import job_from_tree, load_job
from raycnn.config.schema import JobSpec
from raycnn.errors import DataError, EnvironmentUnavailable, SpecError, unknown
from raycnn.runtime import distributed
from raycnn.runtime.device import DEVICE_KINDS, package
from raycnn.training import checkpoint
from raycnn.training.checkpoint import Row, TrainingState
from raycnn.training.metrics import confidence_interval, per_class

COLUMNS = [
    "epoch", "step", "train/loss", "train/acc1", "val/loss", "val/acc1", "val/acc5",
    "lr", "images_per_s", "memory_mib", "time_s",
]  # fmt: skip
IMMUTABLE_ON_RESUME = [
    "name",
    "seed",
    "data",
    "model",
    "optimizer.name",
    "train.batch_size",
    "train.balanced",
]  # once a run has begun
PLACES = {"root", "download", "cache", "max_bad"}
RESULT, PER_CLASS = "result.json", "per_class.json"
LOCK_S = 2  # a listing of runs holds the lock for a moment
POLL_INTERVAL_S = 0.25  # between two looks at what was asked, and two signs of life
STACK_SHARE = 0.7  # of the time that others wait for a worker: then it is said where it is

log = logging.getLogger("raycnn")


class Run:
    """One execution of a job."""

    def __init__(self, folder: Path):
        self.folder = self.home = folder
        """Where it is worked in, and where a person finds it: the same, but for a copy."""
        self.checkpoints = folder / "checkpoints"

    @classmethod
    def create(cls, job: JobSpec) -> "Run":
        """A new folder, numbered after the ones that are there."""
        parent = Path(job.storage.path).absolute() / job.name
        try:
            run = cls(create_numbered(parent))
            run.initialize(job)
        except OSError as error:
            raise EnvironmentUnavailable(
                f"storage.path: cannot write to {parent}: {error}"
            ) from None
        return run

    def initialize(self, job: JobSpec) -> None:
        """Put into the folder what every run has from its first moment."""
        for inner in (self.checkpoints, self.folder / "logs"):
            inner.mkdir(parents=True)
        self.write_job(job)
        write_json(self.folder / "environment.json", environment())

    @classmethod
    def find(cls, text: str, root: str = "runs") -> "Run":
        """By its folder, by `job/n`, or the latest of `job`. Raises SpecError for none."""
        return cls(resolve_run("run", text, root, "job.yaml"))

    @classmethod
    def all(cls, root: str = "runs") -> list["Run"]:
        return [cls(folder) for folder in list_folders(root, "job.yaml")]

    @property
    def name(self) -> str:
        return f"{self.folder.parent.name}/{self.folder.name}"

    def job(self) -> JobSpec:
        return load_job(self.folder / "job.yaml")

    def write_job(self, job: JobSpec) -> None:
        temporary = self.folder / ".job.yaml"
        with temporary.open("w", encoding="utf-8") as file:
            yaml_file.dump(job.tree(), file)
        os.replace(temporary, self.folder / "job.yaml")

    def reopen(self, job: JobSpec) -> list[str]:
        """Make it a run under way, of the job as it is now; returns what changed, in words."""
        changes = _changes(self.job().tree(), job.tree())
        try:
            self.write_job(job)
            for name in (RESULT, PER_CLASS):
                (self.folder / name).unlink(missing_ok=True)
        except OSError as error:
            raise EnvironmentUnavailable(f"cannot write to {self.folder}: {error}") from None
        for change in changes:
            _best_effort(partial(self.add_event, change))
        return changes

    def result(self) -> dict[str, Any] | None:
        """Return the result of a run that is done, without what grows with the classes."""
        return read_json(self.folder / RESULT)

    def per_class(self) -> dict[str, Any] | None:
        """Return `per_class` and `confusion` of the test of a run that is done."""
        return read_json(self.folder / PER_CLASS)

    def add_event(self, text: str) -> None:
        line = json.dumps({"time": time.time(), "event": text}) + "\n"
        with (self.folder / "events.jsonl").open("a+b") as file:
            if end := file.seek(0, os.SEEK_END):
                file.seek(end - 1)
                if file.read(1) != b"\n":  # a full disk cut the line before short
                    line = "\n" + line
            file.write(line.encode())

    def events(self) -> list[str]:
        """What happened to the run, in words, oldest first."""
        try:
            lines = (self.folder / "events.jsonl").read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return []
        return [event for line in lines if (event := _event(line))]

    def progress(self) -> dict[str, Any]:
        return read_json(self.folder / "progress.json") or {}

    def training(self) -> bool:
        """Whether there is a step to save."""
        return bool(self.progress().get("epoch"))

    def rows(self) -> list[dict[str, str]]:
        try:
            with (self.folder / "metrics.csv").open(newline="") as file:
                return list(csv.DictReader(file))
        except (FileNotFoundError, UnicodeDecodeError, csv.Error):  # torn; written anew by a resume
            return []

    def state(self) -> str:
        """done, running, failed or stopped: one word for a list."""
        if self.result():
            return "done"
        said = self.events()
        idle = "failed" if said and said[-1].startswith("failed") else "stopped"
        try:
            with FileLock(self.folder / ".lock", timeout=0):
                return idle
        except Timeout:
            return "running"
        except OSError:  # read-only: nobody trains in it
            return idle

    @contextmanager
    def lock(self, patience_s: float = LOCK_S) -> Iterator[None]:
        """Keep every other process from training in this folder."""
        try:
            lock = FileLock(self.folder / ".lock", timeout=patience_s)
            lock.acquire()
        except Timeout:
            raise EnvironmentUnavailable(
                f"{self.folder} is being trained by another process"
            ) from None
        except OSError as error:
            raise EnvironmentUnavailable(f"cannot write to {self.folder}: {error}") from None
        try:
            # What was asked of, and said by, those who trained here before is over.
            for name in (".stop", "progress.json"):
                (self.folder / name).unlink(missing_ok=True)
            yield
        finally:
            lock.release()

    def ask_to_stop(self) -> None:
        """Have the workers save and stop, wherever they are."""
        (self.folder / ".stop").touch()

    def asked_to_stop(self) -> bool:
        return (self.folder / ".stop").exists()

    def flush(self) -> None:
        """Return when what was written is where it stays: here at once. OSError: it cannot be."""

    def log_end(self, rank: int) -> str:
        """What a worker said since it last started; nothing, where it has no log."""
        try:
            said = (self.folder / "logs" / f"rank-{rank}.log").read_text(errors="replace")
        except OSError:
            return ""
        return said.rpartition(", process ")[2]

    def newest(self) -> tuple[Path | None, list[str]]:
        """The newest checkpoint that is whole, and what is wrong with any newer one."""
        return checkpoint.newest(self.checkpoints)

    def weights(self, which: str) -> Path:
        """The checkpoint `best` or `last`. Raises DataError when it is not there, or damaged."""
        if which not in ("best", "last"):
            raise SpecError(unknown("checkpoint", which, ["best", "last"]))
        name = checkpoint.read_index(self.checkpoints).get(which)
        if not name:
            raise DataError(f"{self.folder} has no {which} checkpoint: no epoch of it is done")
        fault = checkpoint.verify(self.checkpoints / name)
        if fault:
            raise DataError(fault)
        return self.checkpoints / name


def create_numbered(parent: Path) -> Path:
    """A new folder in `parent`, numbered after the ones that are there."""
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        taken = [int(path.name) for path in parent.iterdir() if path.name.isdigit()]
        folder = parent / str(max(taken, default=0) + 1)
        try:
            folder.mkdir()
            return folder
        except FileExistsError:  # another process was quicker
            continue


def resolve_run(kind: str, text: str, root: str, spec_name: str) -> Path:
    """A folder of this kind, which `spec_name` is in: by its path, by `name/n`, or the latest."""
    for path in (Path(text), Path(root) / text):
        if (path / spec_name).is_file():
            return path.absolute()
    there = list_folders(root, spec_name)
    of_name = [path for path in there if path.parent.name == text]
    if of_name:
        return of_name[-1]
    names = {name for p in there for name in (f"{p.parent.name}/{p.name}", p.parent.name)}
    raise SpecError(unknown(kind, text, names) + f"; looked for a folder and in {root}/")


def list_folders(root: str, spec_name: str) -> list[Path]:
    """The numbered folders that a file of this name is in, by name and number."""
    there = [path.parent.absolute() for path in Path(root).glob(f"*/*/{spec_name}")]
    numbered = [path for path in there if path.name.isdigit()]
    return sorted(numbered, key=lambda path: (path.parent, int(path.name)))


class View(Protocol):
    """Where a person watches."""

    def progress(self, epoch: int, step: int, steps: int) -> None:
        """Of an epoch, counted from 1, or of the images to decode before it."""

    def row(self, row: Row) -> None: ...

    def note(self, text: str) -> None: ...


class Recorder:
    """The loop's watch: puts what happens into the run folder. Only rank 0 writes.

    Others wait `timeout_s` for this worker; 0: there are none.
    """

    def __init__(
        self,
        run: Run,
        view: View | None,
        asked: Callable[[], bool] = lambda: False,
        timeout_s: int = 0,
    ):
        self.run, self.view, self.asked, self.timeout_s = run, view, asked, timeout_s
        self.leads = distributed.rank() == 0
        self._looked = 0.0
        self._stop = False
        self._events: Path | None = None
        self._file = _log_to(run.folder / "logs" / f"rank-{distributed.rank()}.log")
        log.info(f"rank {distributed.rank()} of {distributed.world_size()}, process {os.getpid()}")
        self._alive()

    def close(self) -> None:
        faulthandler.cancel_dump_traceback_later()
        log.removeHandler(self._file)
        with suppress(OSError):  # a full disk, that some lines are still to be written to
            self._file.close()

    def _alive(self) -> None:
        """A worker that gives no other sign of life for long writes into its log where it is."""
        if self.timeout_s and isinstance(self._file, _LogFile) and self._file.stream:
            faulthandler.dump_traceback_later(STACK_SHARE * self.timeout_s, file=self._file.stream)

    def restore(self, state: TrainingState) -> bool:
        path, faults = self.run.newest()
        if not path:
            return False
        for fault in faults:
            self.note(f"passed over: {fault}")
        read = checkpoint.read_state(path)
        saved = read["about"]
        _same_job(read, state.about["spec"])
        if saved["data"] != state.about["data"]:
            raise DataError("the images or labels are not the ones this run was begun with")
        for name, then in saved["versions"].items():
            if then != state.about["versions"][name]:
                self.note(f"begun with {name} {then}: results may differ in the last digits")
        checkpoint.restore(state, path)
        if self.leads and checkpoint.read_index(path.parent).get("last") != path.name:
            checkpoint.point_to(path, state.is_best)
        self.note(f"going on after {state.epoch} epochs and {state.step} steps")
        if self.leads:
            self._write_rows(state.history)
        return True

    def reading(self, done: int, total: int) -> None:
        where = {"epoch": 0, "step": done, "steps": total}
        _best_effort(lambda: write_json(self.run.folder / "progress.json", where))
        if self.view:
            self.view.progress(**where)

    def step(self, state: TrainingState, steps: int) -> bool:
        now = time.monotonic()
        if now - self._looked < POLL_INTERVAL_S:
            return self._stop or self.asked()
        self._looked = now
        self._alive()
        if self.leads:
            self._stop = self.run.asked_to_stop()
            where = {"epoch": state.epoch + 1, "step": state.step, "steps": steps}
            _best_effort(lambda: write_json(self.run.folder / "progress.json", where))
            if self.view:
                self.view.progress(**where)
        return self._stop or self.asked()

    def save(self, state: TrainingState) -> None:
        if not self.leads:
            return
        try:
            checkpoint.save(state, self.run.checkpoints)
            self.run.flush()
        except OSError as error:
            raise EnvironmentUnavailable(
                f"cannot save a checkpoint: {error}; the one before it is whole, and "
                f"`raycnn resume {self.run.home}` goes on from there"
            ) from None

    def close_epoch(self, state: TrainingState) -> None:
        row = state.history[-1]
        if not self.leads:
            return
        log.info(plain_row(row))
        self._write_rows(state.history)
        _best_effort(lambda: self._write_events(row))
        if self.view:
            self.view.row(row)

    def restore_best(self, state: TrainingState) -> None:
        try:
            checkpoint.load_weights(state.model, self.run.weights("best"))
        except DataError as error:
            self.note(f"the last weights are tested, for the best cannot be: {error}")
            state.best = state.epoch

    def keep_micro_batch(self, size: int) -> None:
        _best_effort(lambda: self.run.write_job(self.run.job().change({"train.micro_batch": size})))

    def finish(self, result: dict[str, Any]) -> None:
        if not self.leads:
            return
        log.info(f"test {result['test']}")
        try:
            large = {key: result[key] for key in ("per_class", "confusion")}
            write_json(self.run.folder / PER_CLASS, large)
            write_json(
                self.run.folder / RESULT, {k: v for k, v in result.items() if k not in large}
            )
            self.run.flush()
        except OSError as error:
            raise EnvironmentUnavailable(
                f"cannot write the result: {error}; `raycnn resume` tests again"
            ) from None

    def note(self, text: str) -> None:
        log.info(text)
        if not self.leads:
            return
        _best_effort(lambda: self.run.add_event(text))
        if self.view:
            self.view.note(text)

    def _write_rows(self, history: list[Row]) -> None:
        def write() -> None:
            temporary = self.run.folder / ".metrics.csv"
            with temporary.open("w", newline="") as file:
                table = csv.DictWriter(file, COLUMNS, restval="")
                table.writeheader()
                table.writerows(history)
            os.replace(temporary, self.run.folder / "metrics.csv")

        _best_effort(write)

    def _write_events(self, row: Row) -> None:
        """For TensorBoard, whose own writer has a thread that a full disk kills, aloud."""
        from tensorboard.compat.proto.event_pb2 import (  # type: ignore[import-untyped]
            Event,
            SessionLog,
        )
        from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]
        from tensorboard.summary.writer.record_writer import (  # type: ignore[import-untyped]
            RecordWriter,
        )

        values = [Summary.Value(tag=key, simple_value=value) for key, value in row.items()]
        events = [{"step": int(row["epoch"]), "summary": Summary(value=values)}]
        path, self._events = self._events, None  # a file that broke off is not gone on with
        if path is None:
            now = time.time_ns()
            path = self.run.folder / "logs" / "tensorboard" / f"events.out.tfevents.{now}"
            path.parent.mkdir(exist_ok=True)
            begins = SessionLog(status=SessionLog.START)  # what other files have after it is void
            events = [
                {"file_version": "brain.Event:2"},
                {"step": events[0]["step"], "session_log": begins},
                *events,
            ]
        with path.open("ab") as file:
            for event in events:
                record = Event(wall_time=time.time(), **event).SerializeToString()
                RecordWriter(file).write(record)
        self._events = path


def result_of(state: TrainingState, test: Any) -> dict[str, Any]:
    """Return what result.json and per_class.json say."""
    low, high = confidence_interval(test.hits, test.count)
    return {
        "test": {
            "acc1": test.acc1,
            "interval95": [low, high],
            "acc5": test.acc5,
            "loss": test.mean_loss,
            "count": test.count,
            "images_per_s": test.count / test.seconds,
        },
        "best_epoch": state.best,
        "best": state.history[state.best - 1] if state.best else None,
        "epochs": state.epoch,
        "time_s": state.history[-1]["time_s"] if state.history else 0.0,
        "confusion": test.confusion,
        "per_class": per_class(test.confusion, tuple(state.about["classes"])),
    }


def plain_row(row: Row) -> str:
    """One epoch on one line."""
    shown = {key: row[key] for key in COLUMNS if key in row}
    return "  ".join(f"{key} {_short(key, value)}" for key, value in shown.items())


def _short(key: str, value: float) -> str:
    if key in ("epoch", "step"):
        return str(int(value))
    return f"{value:,.0f}" if key == "images_per_s" else f"{value:.4g}"


def environment() -> dict[str, Any]:
    packages = ["raycnn", "torch", "torchvision", "torch_npu", "ray", "numpy", "safetensors"]
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpus": DEVICE_KINDS["cpu"].count(),
        "packages": {name: package(name) for name in packages},
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "devices": [name for kind in DEVICE_KINDS.values() for name in kind.names()],
    }


def _changes(before: dict[str, Any], now: dict[str, Any], path: str = "") -> list[str]:
    words = []
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            words += _changes(old, new, f"{path}{key}.")
        elif old != new:
            words.append(f"changed {path}{key} from {old} to {new}")
    return words


def validate_resume(run: Run, job: JobSpec) -> int:
    """How many epochs the run has done.

    Raises SpecError when this job is not its job any more, or ends before what is done.
    """
    path, _ = run.newest()
    if not path:
        return 0
    saved = checkpoint.read_state(path)
    _same_job(saved, job.tree())
    begun = saved["epoch"] + (saved["step"] > 0)
    if job.train.epochs < begun:
        raise SpecError(f"is {job.train.epochs}, and {begun} have begun", "train.epochs")
    return int(saved["epoch"])


def _same_job(state: dict[str, Any], own: dict[str, Any]) -> None:
    """Of a checkpoint's state, and of the job that is to go on from it."""
    saved = job_from_tree(state["about"]["spec"]).tree()  # with the defaults of keys newer than it
    under_way = state["epoch"] + (state["step"] > 0)
    begun = [[s for s in tree["stages"] if s["epoch"] < under_way] for tree in (saved, own)]
    if begun[0] != begun[1]:
        raise SpecError("what has begun cannot change: train it as a new job", "stages")
    for path in IMMUTABLE_ON_RESUME:
        before, now = (reduce(dict.__getitem__, path.split("."), tree) for tree in (saved, own))
        if isinstance(now, dict):  # where and how it is read may change
            before, now = ({k: v for k, v in d.items() if k not in PLACES} for d in (before, now))
        if before != now:
            raise SpecError("cannot change in a run that has begun: train it as a new job", path)


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk: a line is lost, and training goes on."""


def _log_to(path: Path) -> logging.Handler:
    try:
        handler: logging.Handler = _LogFile(path)
    except OSError:  # a log that cannot be written never stops training
        handler = logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    return handler


def _best_effort(write: Callable[[], None]) -> None:
    """Do what training can go on without: a full disk is said in the log, and that is all."""
    try:
        write()
    except OSError as error:
        log.warning(f"not written: {error}")


def write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(value, indent=1))
    os.replace(temporary, path)


def _event(line: str) -> str | None:
    """What a line of events.jsonl says; nothing, where a full disk or a kill cut it short."""
    try:
        return str(json.loads(line)["event"])
    except (ValueError, TypeError, KeyError):
        return None


def read_json(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError):
        return None
