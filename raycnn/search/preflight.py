"""Check a search before it starts: all architectures, and the ends of all ranges."""

from collections.abc import Callable
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from raycnn.config import schema
from raycnn.config.changes import apply_changes
from raycnn.config.load import job_from_tree
from raycnn.config.messages import describe_error
from raycnn.config.schema import JobSpec
from raycnn.config.search import Architecture, Domain, TuneSpec
from raycnn.config.yaml_file import Tree
from raycnn.data.sources.base import files_of, multi_label
from raycnn.errors import SpecError, first_line
from raycnn.filesystem import is_uri
from raycnn.runs.metrics_file import MULTI_LABEL, SINGLE_LABEL
from raycnn.runs.preflight import (
    ResolvedJob,
    check_settings,
    check_writable,
    pin_paths,
    resolve_job,
    resolve_remote_job,
)
from raycnn.runs.remote.storage import check_reachable
from raycnn.runs.teacher import check_teacher
from raycnn.search.schedulers import SCHEDULERS, Pbt

# Trials that differ in these would be measured on different data, or not differ at all.
NOT_SEARCHABLE = (
    "name", "seed", "workers", "storage", "failure", "data.name", "data.val", "data.limit",
    "data.fold",
)  # fmt: skip
PINNED = ("model.weights", "train.distillation.teacher")  # keys whose values `pin_paths` changes


def check_search(search: TuneSpec, *, remote: bool = False) -> TuneSpec:
    """Check a search, and return it with the paths of its teachers and weights.

    With `remote`, data, storage, teachers and files of weights are on another machine, and are not
    checked. Raises SpecError, DataError or EnvironmentUnavailable for the first problem.
    """
    check_search_settings(search)
    resolve = resolve_remote_job if remote else resolve_job
    resolved = []
    for architecture in search.architectures:
        resolved.append(_resolve(search, architecture, resolve))
        _check_values(search, architecture, resolve)
    if remote:
        return search
    pinned = []
    for one, architecture in zip(resolved, search.architectures, strict=True):
        files_of(one.source)
        check_teacher(one.job, one.classes, one.shape)
        pinned.append(_pin_values(search, architecture, one))
    path = search.architectures[0].job.storage.path
    if is_uri(path):
        check_reachable(path)
    else:
        check_writable(Path(path).absolute())
    return search.model_copy(update={"architectures": pinned}).map_jobs(pin_paths)


def _pin_values(
    search: TuneSpec, architecture: Architecture, resolved: ResolvedJob
) -> Architecture:
    """Return the architecture with what `pin_paths` makes of the weights and teachers in its space.

    Raises SpecError or DataError for a teacher that cannot be used, or a file that is listed twice.
    """
    space = dict(architecture.space)
    for key, domain in space.items():
        path = next((path for path in PINNED if f"{path}.".startswith(f"{key}.")), None)
        if not path:
            continue
        place, values = search.space_key(architecture, key), []
        for value in domain.ends:
            job = _changed(architecture, {key: value})
            try:
                check_teacher(job, resolved.classes, resolved.shape)
                pinned = pin_paths(job).tree()
            except SpecError as error:
                raise search.error(place, f"{value!r}: {error}") from None
            values.append(_pin(value, pinned, key.split("."), path.split(".")))
        try:
            space[key] = Domain.model_validate({domain.kind: values})
        except ValidationError as error:
            message = describe_error(error.errors()[0])
            raise search.error(place, message) from None
    return architecture.model_copy(update={"space": space})


def _pin(value: Any, pinned: Tree, key: list[str], path: list[str]) -> Any:
    """Return the value of a key with what the pinned job has at a path in it, if it has that."""
    if key == path:
        return reduce(getitem, path, pinned)
    inner = path[len(key)]
    if not (isinstance(value, dict) and inner in value):
        return value
    return value | {inner: _pin(value[inner], pinned, [*key, inner], path)}


def _changed(architecture: Architecture, changes: Tree) -> JobSpec:
    return job_from_tree(apply_changes(architecture.job.tree(), {}, changes)[0])


def check_search_settings(search: TuneSpec) -> None:
    """Check what needs neither data nor networks. Raises SpecError for the first problem."""
    try:
        SCHEDULERS.options(search.tune.scheduler)
    except SpecError as error:
        raise search.error(error.key, error.message) from None
    scheduler = SCHEDULERS.build(search.tune.scheduler)
    _check_tune(search)
    for architecture in search.architectures:
        _check_job(search, architecture)
        if isinstance(scheduler, Pbt):
            _check_population(search, architecture, scheduler)
        _check_values(search, architecture, check_settings)


def _check_tune(search: TuneSpec) -> None:
    tune = search.tune
    if (tune.trials or 1) > 1 and not any(a.space for a in search.architectures):
        raise search.error("tune.space", f"is empty: {tune.trials} trials would be the same")
    if tune.folds and tune.scheduler.name != "none":
        raise search.error(
            "tune.folds",
            f"a mean over folds needs all of them, and {tune.scheduler.name} would stop some: "
            "leave tune.scheduler out",
        )
    if tune.folds and not tune.metric.startswith("val/"):
        raise search.error("tune.folds", f"{tune.metric} is not measured on what is held out")


def _check_job(search: TuneSpec, architecture: Architecture) -> None:
    job = architecture.job
    check_settings(job.change(_fold(search)))
    if job.workers.max_count > 1:
        raise search.error(
            "workers.count",
            f"{architecture.name} asks for {job.workers.count_text}: "
            "tune.pools says how many a trial has",
        )
    first = search.architectures[0].job.data
    if (job.data.name, job.data.val, job.data.limit) != (first.name, first.val, first.limit):
        raise search.error(
            "architectures",
            f"{architecture.name} has other data than {search.architectures[0].name}: "
            "data.name, data.val and data.limit must be the same",
        )
    if search.tune.metric.startswith("val/") and not (job.data.val or search.tune.folds):
        raise search.error("data.val", f"0 leaves no images for tune.metric {search.tune.metric}")


def _resolve(
    search: TuneSpec, architecture: Architecture, resolve: Callable[[JobSpec], ResolvedJob]
) -> ResolvedJob:
    job = architecture.job
    resolved = resolve(job.change(_fold(search)))
    known = MULTI_LABEL if multi_label(resolved.source) else SINGLE_LABEL
    if search.tune.metric not in known:
        raise search.error(
            "tune.metric",
            f"{search.tune.metric} is not measured on {job.data.name}: {', '.join(known)} are",
        )
    return resolved


def _fold(search: TuneSpec) -> Tree:
    """Return the change that holds out a fold, in cross-validation."""
    return {"data.fold": [0, search.tune.folds]} if search.tune.folds else {}


def _check_population(search: TuneSpec, architecture: Architecture, pbt: Pbt) -> None:
    name, epochs = architecture.name, architecture.job.train.epochs
    if search.tune.searcher != "random":
        raise search.error("tune.searcher", "must be random with pbt: its trials copy one another")
    if architecture.job.stages:
        raise search.error("stages", f"{name}: pbt sets them itself")
    if not architecture.space:
        raise search.error(
            "tune.space", f"{name} has no search space, so that pbt has nothing to change"
        )
    for key in architecture.space:
        if not schema.can_change(key):
            raise search.error(
                search.space_key(architecture, key),
                f"pbt changes settings during a run: {schema.CHANGEABLE} can",
            )
    if architecture.trials(search.tune.trials) < 2:
        raise search.error("tune.trials", f"pbt needs 2 or more trials of {name}")
    if pbt.interval >= epochs:
        raise search.error(
            "tune.scheduler.interval", f"must be less than the {epochs} epochs of {name}"
        )


def _check_values(
    search: TuneSpec, architecture: Architecture, check: Callable[[JobSpec], object]
) -> None:
    """Check the job of each value, or end of a range, in the search space."""
    for key, domain in architecture.space.items():
        place = search.space_key(architecture, key)
        if key == "data" or any(f"{key}.".startswith(f"{fixed}.") for fixed in NOT_SEARCHABLE):
            raise search.error(place, "trials that differ in it cannot be compared")
        for value in domain.ends:
            try:
                check(_changed(architecture, _fold(search) | {key: value}))
            except SpecError as error:
                why = first_line(error)  # a place in the file is known for the value alone
                message = f"{value!r} gives an invalid job of {architecture.name}: {why}"
                raise search.error(place, message) from None
