"""The schema of a search: a job file with `tune:` and `architectures:`. Imports no torch or Ray.

The file's other keys are the base job, which each architecture changes: `lenet`, `other.yaml` (a
job of its own), or `{name: wide, model: ..., optimizer: ..., space: ...}`.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    PositiveInt,
    PrivateAttr,
    ValidationError,
    model_serializer,
    model_validator,
)
from typing_extensions import Self

from raycnn.config.changes import apply_changes
from raycnn.config.load import job_from_tree, read_spec, with_former_defaults
from raycnn.config.messages import describe_error, locate, validate
from raycnn.config.recipes import find_job_file
from raycnn.config.schema import (
    ComponentConfig,
    DeviceName,
    Frozen,
    JobSpec,
    Positive,
    Workers,
    check_count,
    json_schema,
)
from raycnn.config.yaml_file import Tree, Where
from raycnn.errors import SpecError

DEFAULT_CONFIGURATIONS = 10  # per architecture, if `trials` is absent
SMALLER, LARGER = 0.8, 1.2  # perturbation factors (Jaderberg et al. 2017, arXiv:1711.09846)
STEP_FROM_ZERO = 0.1  # fraction of the range by which zero is perturbed

Values = Annotated[list[Any], Field(min_length=1)]
Bounds = Annotated[list[float], Field(min_length=2, max_length=2)]
IntBounds = Annotated[list[int], Field(min_length=2, max_length=2)]


class Domain(Frozen):
    """The search domain of one key: exactly one of these."""

    choice: Values | None = None
    """Sample one of these values with equal probability."""
    grid: Values | None = None
    """Try each of these values, combined with all values of the other grids."""
    uniform: Bounds | None = None
    """Sample uniformly between two numbers."""
    loguniform: Bounds | None = None
    """Sample log-uniformly between two positive numbers."""
    randint: IntBounds | None = None
    """Sample an integer from the first to the second, both included."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if sum(getattr(self, kind) is not None for kind in type(self).model_fields) != 1:
            raise ValueError(f"must be exactly one of {', '.join(type(self).model_fields)}")
        if self.is_list:
            for index, value in enumerate(self.ends):
                if any(type(e) is type(value) and e == value for e in self.ends[:index]):
                    raise ValueError(f"{self.kind}: {value!r} is listed twice")
            return self
        low, high = self.ends
        if low >= high:
            raise ValueError(f"{self.kind} [{low}, {high}]: the first must be the smaller")
        if self.kind == "loguniform" and low <= 0:
            raise ValueError(f"loguniform [{low}, {high}]: both must be greater than 0")
        return self

    @property
    def kind(self) -> str:
        """The name of the one field that is set."""
        return next(k for k in type(self).model_fields if getattr(self, k) is not None)

    @property
    def is_list(self) -> bool:
        """Whether the domain lists its values instead of giving a range."""
        return self.kind in ("choice", "grid")

    @property
    def ends(self) -> list[Any]:
        """All values of a list, or the two bounds of a range."""
        return list(getattr(self, self.kind))

    @property
    def size(self) -> float:
        """The number of distinct values; infinite for a range of real numbers."""
        if self.is_list:
            return len(self.ends)
        return self.ends[1] - self.ends[0] + 1 if self.kind == "randint" else math.inf

    def at_quantile(self, u: float) -> Any:
        """Return the value at quantile `u`, 0 ≤ u < 1, of the domain."""
        if self.is_list:
            return self.ends[int(u * len(self.ends))]
        low, high = self.ends
        if self.kind == "randint":
            return low + int(u * (high - low + 1))
        if self.kind == "uniform":
            return self.rounded(low + u * (high - low))
        return self.rounded(low * math.exp(u * math.log(high / low)))

    def perturb(self, value: Any, u: float) -> Any:
        """Return a value near `value`: the lower one for u < 0.5, else the higher.

        A number is multiplied by 0.8 or 1.2 and clamped to its range; a list gives the neighbor.
        """
        if self.is_list:
            index = self.ends.index(value)
            neighbors = self.ends[max(index - 1, 0) : index] + self.ends[index + 1 : index + 2]
            return neighbors[int(u * len(neighbors))] if neighbors else value
        low, high = self.ends
        up = u >= 0.5
        if self.kind == "randint":
            step = max(1, round(abs(value) * (LARGER - 1)))
            return min(max(value + (step if up else -step), low), high)
        if not value:  # no factor changes zero
            return self.rounded((high - low) * STEP_FROM_ZERO * (1 if up else -1))
        return self.rounded(value * (LARGER if up else SMALLER))

    def rounded(self, value: float) -> float:
        """Round to four significant digits, so that the value displayed is the value used.

        A uniform domain is rounded relative to its range.
        """
        low, high = self.ends
        if self.kind == "uniform":
            value = round(value, 4 - math.ceil(math.log10(high - low)))
        else:
            value = float(f"{value:.4g}")
        return min(max(value, low), high)

    @model_serializer
    def _serialize(self) -> dict[str, Any]:
        return {self.kind: self.ends}


Space = dict[str, Domain]


class Pool(Frozen):
    """A pool of devices of one kind to run trials on."""

    device: DeviceName = "auto"
    """Device kind; auto: the first of cuda, npu, xpu and cpu that is available."""
    cpus: PositiveInt = 1
    """CPUs and threads per worker."""
    workers: PositiveInt = 1
    """Workers per trial; more than one take Ray half a minute to start, for every trial."""

    @model_validator(mode="after")
    def _check_count(self) -> Self:
        check_count(self.device, self.workers)
        return self

    @property
    def worker_config(self) -> Workers:
        """The `workers` section of a trial that runs in this pool."""
        return Workers(count=self.workers, device=self.device, cpus=self.cpus)


class Tune(Frozen):
    """Settings of a hyperparameter search."""

    space: Space = {}
    """Search space: dotted keys of the job, each with its domain."""
    trials: PositiveInt | None = None
    """Configurations per architecture, or per point of its grid, of the keys that are not in a
    grid; by default 10. Trials are distinct: a pure grid runs once, and a small space has no more
    trials than values."""
    metric: Literal[
        "val/acc1", "val/acc5", "val/loss", "train/acc1", "train/loss", "val/map", "val/f1",
        "val/f1_macro", "train/f1",
    ] = "val/acc1"  # fmt: skip
    """Metric to compare trials by, at the best epoch of each; multi-label: map, f1, f1_macro."""
    mode: Literal["max", "min"] | None = None
    """Direction of the metric; by default min for a loss, max for all else."""
    scheduler: ComponentConfig = ComponentConfig(name="none")
    """Trial scheduler: asha or median stop poor trials, pbt lets them copy better ones; or none."""
    searcher: Literal["random", "optuna"] = "random"
    """random: a Sobol sequence, which fills the space evenly; optuna: model-based (TPE)."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the sampler; jobs keep their own seed, so that all trials see the same images."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """Cross-validation: train every trial once per fold, each time holding out another fold instead
    of `data.val`, and compare the mean."""
    concurrency: PositiveInt | None = None
    """Maximum number of concurrent trials; by default as many as the resources allow."""
    time_budget_s: Positive | None = None
    """Seconds after which to save and stop; `raycnn tune --resume` gets the same budget again."""
    pools: Annotated[list[Pool], Field(min_length=1)] = [Pool()]
    """Device pools to run the trials on; each trial takes the first pool with free resources. By
    default one, of `workers.device` and `workers.cpus`."""

    @property
    def sign(self) -> int:
        """The factor that makes larger metrics better: -1 if a smaller one is better, else 1."""
        return 1 if self.mode == "max" or (not self.mode and "loss" not in self.metric) else -1


class Architecture(Frozen):
    """One architecture of a search: its base job and its search space."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,31}$")]
    job: JobSpec
    space: Space

    def job_of(self, search_name: str, changes: Tree, pool: Pool) -> JobSpec:
        """Return the job of one trial; trained outside the search, it gives the same result."""
        workers = pool.worker_config.model_dump() | {"timeout_s": self.job.workers.timeout_s}
        fixed = {"name": f"{search_name}-{self.name}", "workers": workers}
        return job_from_tree(apply_changes(self.job.tree(), {}, changes | fixed)[0])

    @property
    def grid(self) -> dict[str, list[Any]]:
        """The keys of the grid, with the values that are all combined with one another."""
        return {key: domain.ends for key, domain in self.space.items() if domain.grid}

    @property
    def sampled(self) -> Space:
        """The keys whose values are sampled at each point of the grid."""
        return {key: domain for key, domain in self.space.items() if not domain.grid}

    def trials(self, configurations: int | None) -> int:
        """Return the number of distinct trials for a number of configurations (`tune.trials`)."""
        points = math.prod(len(values) for values in self.grid.values())
        distinct = math.prod(domain.size for domain in self.sampled.values())
        return points * int(min(configurations or DEFAULT_CONFIGURATIONS, distinct))


@dataclass(frozen=True)
class TrialKey:
    """The identity of one trial of a search, started or not."""

    architecture: Architecture
    number: int
    """Index of its configuration, from 0."""
    fold: int | None = None
    """Index of the fold held out, from 0, in cross-validation."""

    @property
    def id(self) -> str:
        """The name of the trial's folder: `lenet-003`, or `lenet-003-fold1`."""
        part = "" if self.fold is None else f"-fold{self.fold}"
        return f"{self.architecture.name}-{self.number:03d}{part}"


class TuneSpec(Frozen):
    """A resolved search: every architecture with its complete job and space."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,30}$")]
    tune: Tune
    architectures: Annotated[list[Architecture], Field(min_length=1)]

    _where: Where = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [architecture.name for architecture in self.architectures]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two architectures are called {name!r}: give one a `name`")
        if self.tune.searcher == "optuna" and any(a.grid for a in self.architectures):
            raise ValueError("tune.searcher optuna has no grid: use choice")
        return self

    @property
    def folds(self) -> list[int | None]:
        """The folds of each configuration; [None] without cross-validation."""
        return list(range(self.tune.folds)) if self.tune.folds else [None]

    def trials(self) -> list[TrialKey]:
        """Return all trials of the search, alternating between architectures."""
        counts = [(a, a.trials(self.tune.trials)) for a in self.architectures]
        return [
            TrialKey(architecture, number, fold)
            for number in range(max(count for _, count in counts))
            for architecture, count in counts
            if number < count
            for fold in self.folds
        ]

    def map_jobs(self, change: Callable[[JobSpec], JobSpec]) -> "TuneSpec":
        """Return the search with each of its jobs changed by `change`."""
        changed = [one.model_copy(update={"job": change(one.job)}) for one in self.architectures]
        return self.model_copy(update={"architectures": changed})

    def tree(self) -> Tree:
        """Return the search as plain values, with all defaults filled in."""
        return self.model_dump(mode="json")

    def space_key(self, architecture: Architecture, key: str) -> str:
        """Return the dotted key under which the file has a key of an architecture's space."""
        index = self.architectures.index(architecture)
        own = f"architectures.{index}.space.{key}"
        return own if own in self._where else f"tune.space.{key}"

    def error(self, key: str, message: str) -> SpecError:
        """Return a SpecError with the file and line of a key."""
        return SpecError(locate(self._where, key, message))


class _Entry(Frozen, extra="allow"):
    """An entry of `architectures` as written; its other keys are changes to the base job."""

    name: str | None = None
    """Name of the architecture; by default that of its model, or of its job."""
    job: str | None = None
    """File of a complete job, beside this one or below it, instead of the base job."""
    space: Space = {}
    """Keys to search for this architecture, in addition to those of `tune.space`."""

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return {"job": value} if PurePath(value).suffix in (".yaml", ".yml") else {"name": value}


class _Sections(Frozen, extra="ignore"):
    """The sections of a search file that are not part of its base job."""

    tune: Tune
    architectures: Annotated[list[_Entry], Field(min_length=1)] | None = None

    _where: Where = PrivateAttr(default_factory=dict)


def load_search(path: Path, changes: Iterable[str] = ()) -> TuneSpec:
    """Read a search from a file. Raises SpecError, with file and line, for what is invalid."""
    path = find_job_file(path)
    tree, where = read_spec(path, changes)
    if "tune" not in tree:
        raise SpecError(f"{path}: tune: is missing: it says what to search, and how")
    sections: _Sections = validate(_Sections, tree, where)
    base = {key: value for key, value in tree.items() if key not in ("tune", "architectures")}
    entries = sections.architectures
    if entries is None:
        job = validate(JobSpec, base, where)
        name = job.model.name
        architectures = [_make_architecture(name, job, sections.tune.space, where, "model")]
    else:
        architectures = [
            _architecture(entry, f"architectures.{index}", path, (base, where), sections.tune)
            for index, entry in enumerate(entries)
        ]
        unused = next((key for key in base if key != "name"), None)
        if unused and all(entry.job for entry in entries):
            raise SpecError(
                locate(where, unused, "is not used: every architecture has its own job")
            )
    tune = sections.tune
    if "pools" not in tune.model_fields_set:
        tune = tune.model_copy(update={"pools": [_default_pool(architectures, where)]})
    try:
        search = TuneSpec(name=base.get("name", ""), tune=tune, architectures=architectures)
    except ValidationError as error:
        raise _spec_error(error, where) from None
    search._where.update(where)
    return search


def _default_pool(architectures: list[Architecture], where: Where) -> Pool:
    """Return a pool of the device and CPUs of `workers`. Raises SpecError where they differ."""
    pools = []
    for architecture in architectures:
        workers = architecture.job.workers
        pools.append(Pool(device=workers.device, cpus=workers.cpus or Pool().cpus))
        if pools[-1] != pools[0]:
            message = (
                f"{architecture.name} has other workers.device or workers.cpus than "
                f"{architectures[0].name}: tune.pools says where all trials run"
            )
            raise SpecError(locate(where, "architectures", message))
    return pools[0]


def search_json_schema() -> dict[str, Any]:
    """Return the JSON schema of a search file: `tune`, `architectures`, and any key of a job."""
    schema = json_schema()
    del schema["anyOf"]
    sections = _Sections.model_json_schema()
    schema["$defs"] |= sections["$defs"]
    entry = schema["$defs"]["_Entry"]
    entry["properties"] = schema["properties"] | entry["properties"]
    del entry["properties"]["extends"]
    schema["properties"] = schema["properties"] | sections["properties"]
    schema["properties"]["architectures"] = {
        "type": "array",
        "minItems": 1,
        "items": {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/_Entry"}]},
    }
    return schema | {"title": "TuneSpec", "required": sections["required"]}


def load_resolved_search(path: Path) -> TuneSpec:
    """Return the search in a file that `TuneSpec.tree` was saved to. Raises SpecError."""
    tree, where = read_spec(path)
    architectures = tree.get("architectures")
    if isinstance(architectures, list):
        tree = tree | {"architectures": [_with_former_defaults(entry) for entry in architectures]}
    return validate(TuneSpec, tree, where)


def _with_former_defaults(entry: Any) -> Any:
    """Return a saved architecture with the values that settings of its job had before."""
    if not isinstance(entry, dict) or not isinstance(entry.get("job"), dict):
        return entry
    return entry | {"job": with_former_defaults(entry["job"])}


def _architecture(
    entry: _Entry, dotted: str, path: Path, base: tuple[Tree, Where], tune: Tune
) -> Architecture:
    tree, where = base
    changes, place = dict(entry.model_extra or {}), where.get(dotted, where["architectures"])
    lines = {
        key.removeprefix(f"{dotted}."): line
        for key, line in where.items()
        if key.startswith(f"{dotted}.") and key.split(".")[2] not in _Entry.model_fields
    }
    if entry.job is not None:
        tree, below = read_spec(_job_file(path, entry.job, where, f"{dotted}.job"))
    else:
        below = where | {"": place}
        if "model" not in changes and entry.name:
            changes["model"] = entry.name
    tree, located = apply_changes(tree, below, changes, place)
    job = validate(JobSpec, tree, located | lines)
    name = entry.name or (job.name if entry.job else job.model.name)
    return _make_architecture(name, job, tune.space | entry.space, where, f"{dotted}.name")


def _make_architecture(
    name: str, job: JobSpec, space: Space, where: Where, dotted: str
) -> Architecture:
    try:
        return Architecture(name=name.replace(":", "-"), job=job, space=space)
    except ValidationError as error:
        raise _spec_error(error, where, dotted) from None


def _spec_error(error: ValidationError, where: Where, dotted: str = "") -> SpecError:
    detail = error.errors()[0]
    key = dotted or ".".join(map(str, detail["loc"]))
    return SpecError(locate(where, key, describe_error(detail)))


def _job_file(path: Path, name: str, where: Where, dotted: str) -> Path:
    folder = path.resolve().parent
    target = (folder / name).resolve()
    if not target.is_relative_to(folder) or not target.is_file():
        raise SpecError(locate(where, dotted, f"there is no {name} beside this file, or below it"))
    return path.parent / name
