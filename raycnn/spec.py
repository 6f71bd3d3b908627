"""What a job is: one YAML file in, one frozen JobSpec out. Imports neither torch nor Ray."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    PrivateAttr,
    ValidationError,
    WrapValidator,
    model_validator,
)
from pydantic_core import ErrorDetails
from typing_extensions import Self

from raycnn import yaml_file
from raycnn.errors import SpecError, unknown
from raycnn.yaml_file import Tree, Where

MAX_EXTENDS = 8
CHANGING = "options of the optimizer, train.label_smoothing and train.clip_norm"


def _no_traversal(path: str) -> str:
    if not path or ".." in PurePath(path).parts or path.startswith("~") or "\0" in path:
        raise ValueError("is not a plain path: `..` and `~` are not followed")
    if "://" in path:
        raise ValueError("is a URI: only a local or a shared path can be used")
    return path


SafePath = Annotated[str, AfterValidator(_no_traversal)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Frozen(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
    )


class Choice(Frozen, extra="allow"):
    """An entry of a catalogue: `lenet`, or with options `{name: lenet, activation: relu}`."""

    name: str

    @property
    def options(self) -> dict[str, Any]:
        return self.model_extra or {}

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class Normalize(Frozen):
    mean: list[float]
    """Of each channel, on the scale 0 to 1."""
    std: list[Positive]
    """Of each channel, on the scale 0 to 1."""


class Data(Choice):
    """A data set of `raycnn list datasets`, with its options beside the keys below."""

    root: SafePath | None = None
    """Folder that holds the data; when absent RAYCNN_DATA, else `data`."""
    download: bool = False
    """Whether the data set may be fetched into `root` when it is not there."""
    val: Fraction = 0.1
    """Share of the training images held out, by class, to choose the best epoch. Of a data set's
    own validation images all are held out, or with 0 none: they are trained on as well."""
    limit: PositiveInt | None = None
    """Use only this many training images, drawn by class and seed, before `val` is held out."""
    max_bad: Annotated[int, Field(ge=0)] = 0
    """How many images that cannot be read may be left out, each named; more are an error."""
    cache: Literal["auto", "store", "stream"] = "auto"
    """store: images are decoded once, to disk; stream: each time; auto: once where they fit."""
    transforms: list[Choice] = []
    """What is done to a batch of images, in order, on the device; the random ones in training."""
    normalize: Normalize | None = None
    """When absent, the mean and deviation of the training images."""


class Model(Choice):
    """A network of `raycnn list models`, with its options beside the keys below."""

    weights: SafePath | None = None
    """To begin with: imagenet (torchvision's), a run's folder, a .safetensors or a .pt file."""
    freeze: list[str] = []
    """Parts that are not trained, by the beginning of their parameters' names: [features]."""


class Train(Frozen):
    epochs: PositiveInt
    batch_size: PositiveInt
    """Images per step over all workers: more workers change the speed, not the result, but that
    a batch norm takes each worker's share for the batch, unless `sync_batch_norm` is set."""
    micro_batch: PositiveInt | None = None
    """Images of a worker that go through the network at once, and are the batch of a batch norm;
    when absent its whole share."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the network, under autocast; weights and updates stay in fp32. fp16 scales the loss."""
    label_smoothing: Fraction = 0.0
    """Share of each label spread evenly over all classes."""
    clip_norm: Positive | None = None
    """Scale the gradients down to this L2 norm over all parameters."""
    class_weights: Literal["balanced"] | list[Positive] | None = None
    """Of each class in the loss, scaled to a mean of 1 over the images; balanced: the same sum."""
    balanced: bool = False
    """Draw every class equally often: rare ones repeatedly, of frequent ones only some."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of a running average of the weights: that is what is validated, tested and kept."""
    patience: PositiveInt | None = None
    """Stop after so many epochs without a better validation."""
    sync_batch_norm: bool = False
    """Batch norm over the batch of all workers, on cuda and npu."""
    channels_last: bool | None = None
    """Layout of images and weights; when absent the one that is quicker on the device."""
    compile: bool = False
    """torch.compile: quicker steps, after a minute or more at the start."""


def can_change(key: str) -> bool:
    """Whether a setting can be another from some epoch on: it is what a stage may name."""
    section, _, option = key.partition(".")
    changing = section == "optimizer" and option.isidentifier() and option != "name"
    return changing or key in ("train.label_smoothing", "train.clip_norm")


def _all_can_change(changes: Tree) -> Tree:
    for key in changes:
        if not can_change(key):
            raise ValueError(f"{key} cannot change in mid-run: {CHANGING} can")
    return changes


class Stage(Frozen):
    """A part of a run in which some settings are others."""

    epoch: PositiveInt
    """It begins once so many epochs are done."""
    changes: Annotated[dict[str, Any], Field(min_length=1), AfterValidator(_all_can_change)]
    """Dotted keys and their values from then on: options of the optimizer, train.label_smoothing
    and train.clip_norm. Schedules stay as they are, factors of the stage's own optimizer.lr."""


def _one_or_a_range(value: Any, check: Any) -> Any:
    """Raises ValueError, with one sentence for whatever is wrong."""
    try:
        count = check(value)
    except ValidationError:
        count = None
    if not count or (isinstance(count, list) and count[0] > count[1]):
        raise ValueError("must be a number of workers, or the least and the most: [2, 4]")
    return count


Range = Annotated[list[PositiveInt], Field(min_length=2, max_length=2)]


class Workers(Frozen):
    count: Annotated[PositiveInt | Range, WrapValidator(_one_or_a_range)] = 1
    """Processes that share every batch; each drives one device. [least, most]: on Ray as many as
    there is room for, fewer when a node goes and more when one comes; else as many as are started.
    """
    device: Literal["auto", "cpu", "cuda", "npu"] = "auto"
    """auto: the first of cuda, npu, cpu that is there."""
    cpus: PositiveInt | None = None
    """CPUs, and so threads, of each worker; when absent an equal share (without Ray: torch's)."""
    launcher: Literal["auto", "ray", "local"] = "auto"
    """auto: one worker without an address runs in this process, all else on Ray."""
    address: str | None = None
    """Of a running Ray cluster; when absent RAY_ADDRESS, else a Ray of the job's own."""
    timeout_s: Annotated[int, Field(ge=10)] = 600
    """How long a worker waits for the others, and a job for room for them, before it gives up."""

    @property
    def least(self) -> int:
        return self.count[0] if isinstance(self.count, list) else self.count

    @property
    def most(self) -> int:
        return self.count[1] if isinstance(self.count, list) else self.count

    @property
    def asked(self) -> str:
        """How many, for people."""
        return f"{self.least} to {self.most}" if self.least < self.most else str(self.most)


class Storage(Frozen):
    path: SafePath = "runs"
    """Folder of the runs, from here or from the root; nodes that do not see it send what they save.
    A search needs one that all nodes share."""
    every_steps: PositiveInt | None = None
    """Save also each time so many steps are done; the end of an epoch is always saved."""


class Failure(Frozen):
    retries: Annotated[int, Field(ge=0)] = 2
    """How often lost workers may send the job back to its last checkpoint."""
    rollbacks: Annotated[int, Field(ge=0)] = 0
    """How often a loss that is not finite may send the job back there, to go on with a smaller
    learning rate; 0: such a loss ends the job."""
    rollback_lr: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Factor of the learning rate from each rollback on."""


class JobSpec(Frozen):
    """A training, said completely. Keys not listed here are refused."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    """Names the folder of the runs: small letters, digits, `.`, `_` and `-`."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """First weights, order, augmentation, dropout and validation split follow from it."""
    data: Data
    model: Model
    optimizer: Choice
    """One of `raycnn list optimizers`."""
    schedule: Choice = Choice(name="constant")
    """One of `raycnn list schedules`: the learning rate as a function of the step."""
    train: Train
    stages: list[Stage] = []
    """Settings that change in mid-run, each stage on top of those before it."""
    workers: Workers = Workers()
    storage: Storage = Storage()
    failure: Failure = Failure()

    _where: Where = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _enough_to_share(self) -> Self:
        if self.train.batch_size < self.workers.most:
            raise ValueError(
                f"train.batch_size {self.train.batch_size} gives some of "
                f"{self.workers.most} workers nothing to do"
            )
        return self

    @model_validator(mode="after")
    def _stages_in_order(self) -> Self:
        begins = [stage.epoch for stage in self.stages]
        if begins != sorted({*begins}) or max(begins, default=0) >= self.train.epochs:
            raise ValueError(
                f"stages: begin after {begins} epochs: each must begin later than the one before, "
                f"and before train.epochs {self.train.epochs}"
            )
        return self

    def after(self, epochs: int) -> "JobSpec":
        """The job as its stages have it once so many epochs are done."""
        begun = [stage.changes for stage in self.stages if stage.epoch <= epochs]
        if not begun:
            return self
        changes = {key: value for stage in begun for key, value in stage.items()}
        return from_tree(put(self.tree(), {}, changes | {"stages": []})[0])

    def tree(self) -> Tree:
        """Plain values, every default filled in: what is printed, saved and sent."""
        return self.model_dump(mode="json")

    def change(self, changes: Iterable[str] | Mapping[str, Any]) -> Self:
        """A new spec with dotted keys set: `["optimizer.lr=0.2"]` or `{"optimizer.lr": 0.2}`."""
        pairs = parse_changes(changes) if not isinstance(changes, Mapping) else dict(changes)
        return validate(type(self), *put(self.tree(), dict(self._where), pairs))

    @contextmanager
    def located(self) -> Iterator[None]:
        """Give a SpecError raised inside the file and line of the key it is about."""
        try:
            yield
        except SpecError as error:
            raise SpecError(at(self._where, error.key, error.message)) from None


def load(path: Path, changes: Iterable[str] = ()) -> JobSpec:
    """The job of a file, with what it `extends` beneath it and the changes above it."""
    tree, where = read(path, changes)
    if "tune" in tree:
        raise SpecError(f"{path} is a search: `raycnn tune {path}`")
    return validate(JobSpec, tree, where)


def read(path: Path, changes: Iterable[str] = ()) -> tuple[Tree, Where]:
    """What a file and the changes say, unchecked, and where each key stands."""
    return put(*_read(path, path, 0), parse_changes(changes))


def from_tree(tree: Tree) -> JobSpec:
    return validate(JobSpec, tree, {})


def schema() -> dict[str, Any]:
    """JSON schema of the file: the fields above, and `extends`.

    Any part of a section may stand in the file below: what lacks is found when a job is loaded.
    """
    drawn = JobSpec.model_json_schema()
    for section in drawn["$defs"].values():
        section.pop("required", None)
    drawn["properties"]["extends"] = {
        "type": "string",
        "description": "A spec beside this one, or below it, whose keys this one changes.",
    }
    required = drawn.pop("required")
    drawn["anyOf"] = [{"required": required}, {"required": ["extends"]}]
    return drawn


def parse_changes(changes: Iterable[str]) -> Tree:
    pairs = {}
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals or not key.strip():
            raise SpecError(f"{change!r} is not a change: write key=value, e.g. train.epochs=3")
        pairs[key.strip()] = yaml_file.value_of(text)
    return pairs


def _read(path: Path, shown: Path, depth: int) -> tuple[Tree, Where]:
    tree, where = yaml_file.load(path, str(shown))
    base = tree.pop("extends", None)
    if base is None:
        return tree, where
    place = where.pop("extends")
    if depth == MAX_EXTENDS:
        raise SpecError(f"{place}: extends: more than {MAX_EXTENDS} files deep, or in a circle")
    if not isinstance(base, str) or PurePath(base).is_absolute() or ".." in PurePath(base).parts:
        raise SpecError(f"{place}: extends: {base!r} is not a file beside this one, or below it")
    folder = path.resolve().parent
    target = (folder / base).resolve()
    if not target.is_relative_to(folder) or not target.is_file():
        raise SpecError(f"{place}: extends: there is no {base} beside this file, or below it")
    below, below_where = _read(target, shown.parent / base, depth + 1)
    return _merge(below, tree), below_where | where


def _merge(below: Tree, above: Tree) -> Tree:
    """Keys of `above` win; another name makes another entry, and takes no options over."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if isinstance(value, dict) and isinstance(old, str):
            old = {"name": old}
        if isinstance(old, dict) and isinstance(value, dict) and _same_entry(old, value):
            merged[key] = _merge(old, value)
        else:
            merged[key] = value
    return merged


def _same_entry(below: Tree, above: Tree) -> bool:
    return bool(above.get("name", below.get("name")) == below.get("name"))


def put(tree: Tree, where: Where, pairs: Tree) -> tuple[Tree, Where]:
    """The tree with dotted keys set, and where each key stands then."""
    for path, value in pairs.items():
        *parents, leaf = path.split(".")
        change: Tree = {leaf: value}
        for key in reversed(parents):
            change = {key: change}
        tree = _merge(tree, change)
        added = {".".join([*parents, leaf][:depth]) for depth in range(1, len(parents) + 1)}
        where = dict.fromkeys(added, "command line") | where | {path: "command line"}
    return tree, where


def validate(kind: type[Any], tree: Tree, where: Where) -> Any:
    """A tree as a spec of this kind. Raises SpecError with a line for everything wrong in it."""
    try:
        spec = kind.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(kind, detail, where) for detail in error.errors()]
        raise SpecError("\n".join(lines)) from None
    spec._where.update(where)
    return spec


def _explain(kind: type[Any], detail: ErrorDetails, where: Where) -> str:
    key = ".".join(map(str, detail["loc"]))
    message = plain(detail)
    if detail["type"] == "extra_forbidden":
        *parents, leaf = detail["loc"]
        message = unknown("key", str(leaf), _fields(kind, parents))
    return at(where, key, message)


def plain(detail: ErrorDetails) -> str:
    """What pydantic found, as one plain sentence."""
    if detail["type"] == "missing":
        return "is missing"
    message = detail["msg"].removeprefix("Value error, ").replace("Input should", "must")
    message = re.sub(
        r"a valid dictionary or instance of (Choice|Data|Model)", "a name, or a mapping", message
    )
    message = re.sub(r"a valid dictionary or instance of \w+", "a mapping", message)
    return message if isinstance(detail["input"], dict) else f"{message}, not {detail['input']!r}"


def at(where: Where, key: str, message: str) -> str:
    """The message with the key it is about, and the file and line that this stands in."""
    place = key
    while place and place not in where:  # the nearest enclosing key that stands in a file,
        place = place.rpartition(".")[0]  # or the file itself
    return ": ".join(filter(None, [where.get(place, ""), key, message]))


def _fields(kind: type[Any], parents: Sequence[int | str]) -> list[str]:
    model: Any = kind
    for key in parents:
        fields = getattr(model, "model_fields", None)
        model = fields[key].annotation if fields else get_args(model)[-1]
        if get_origin(model) in (Union, UnionType):
            model = next(part for part in get_args(model) if part is not type(None))
    return [*model.model_fields, *(["extends"] if model is JobSpec else [])]
