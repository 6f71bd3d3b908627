"""What a job is: one YAML file in, one frozen JobSpec out. Imports neither torch nor Ray."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePath
from typing import Annotated, Any, ClassVar, Literal

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
from typing_extensions import Self

from raycnn.config.changes import apply_changes, parse_changes
from raycnn.config.messages import locate, validate
from raycnn.config.yaml_file import Tree, Where
from raycnn.errors import SpecError
from raycnn.filesystem import check_uri, is_uri, local_path

CHANGING = "options of the optimizer, train.label_smoothing and train.clip_norm"


def _no_traversal(path: str) -> str:
    if not path or ".." in PurePath(path).parts or path.startswith("~") or "\0" in path:
        raise ValueError("is not a plain path: `..` and `~` are not followed")
    if is_uri(path):
        raise ValueError("is a URI: only a local or a shared path can be used")
    return path


def _path_or_uri(place: str) -> str:
    return local_path(check_uri(place)) if is_uri(place) else _no_traversal(place)


SafePath = Annotated[str, AfterValidator(_no_traversal)]
Uri = Annotated[str, AfterValidator(check_uri)]
PathOrUri = Annotated[str, AfterValidator(_path_or_uri)]
"""A path, or a URI that pyarrow.fs or fsspec opens: s3://bucket/folder?region=eu-west-1."""
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


class ComponentConfig(Frozen, extra="allow"):
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


def _one_of_folds(fold: list[int]) -> list[int]:
    if len(fold) != 2 or not 0 <= fold[0] < fold[1] or fold[1] < 2:
        raise ValueError(f"{fold}: must be the part, from 0, and how many there are: [0, 5]")
    return fold


class Data(ComponentConfig):
    """A data set of `raycnn list datasets`, with its options beside the keys below."""

    root: SafePath | None = None
    """Folder that holds the data; when absent RAYCNN_DATA, else `data`."""
    download: bool = False
    """Whether the data set may be fetched into `root` when it is not there."""
    val: Fraction = 0.1
    """Share of the training images held out, by class, to choose the best epoch. Of a data set's
    own validation images all are held out, or with 0 none: they are trained on as well."""
    fold: Annotated[list[int], AfterValidator(_one_of_folds)] | None = None
    """[k, n]: hold out part k, from 0, of n equal parts of all training and validation images, by
    class and seed, instead of `val`. `tune.folds` sets it: n trainings validate on each image once.
    """
    limit: PositiveInt | None = None
    """Use only this many training images, drawn by class and seed, before `val` is held out."""
    max_bad: Annotated[int, Field(ge=0)] = 0
    """How many images that cannot be read may be left out, each named; more are an error."""
    cache: Literal["auto", "store", "stream"] = "auto"
    """store: images are decoded once, to disk; stream: each time; auto: once where they fit."""
    transforms: list[ComponentConfig] = []
    """What is done to a batch of images, in order, on the device; the random ones in training."""
    normalize: Normalize | None = None
    """When absent, the mean and deviation of the training images."""


class Model(ComponentConfig):
    """A network of `raycnn list models`, with its options beside the keys below."""

    weights: SafePath | None = None
    """To begin with: imagenet (torchvision's), a run's folder, a .safetensors or a .pt file."""
    freeze: list[str] = []
    """Parts that are not trained, by the beginning of their parameters' names: [features]."""


def _balanced_or_weights(value: Any, check: Any) -> Any:
    """Raise ValueError with one sentence for whatever is wrong."""
    try:
        return check(value)
    except ValidationError:
        raise ValueError(
            "must be `balanced`, or a list of one positive number per class, in the order of "
            "the class names"
        ) from None


ClassWeights = Annotated[
    Literal["balanced"] | list[Positive] | None, WrapValidator(_balanced_or_weights)
]


class Train(Frozen):
    epochs: PositiveInt
    batch_size: PositiveInt = 64
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
    class_weights: ClassWeights = None
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
    path: PathOrUri = "runs"
    """Folder of the runs: a path, or a URI such as s3://bucket/runs. Nodes that do not see a path
    send what they save."""
    timeout_s: Annotated[int, Field(ge=1)] = 300
    """How long a file system that cannot be reached is waited for, before the job ends, resumable.
    """
    every_steps: PositiveInt | None = None
    """Save also each time so many steps are done; the end of an epoch is always saved."""
    report: bool = True
    """Write report.html and its pictures when the run ends; else `raycnn report RUN` does."""


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
    optimizer: ComponentConfig = ComponentConfig.model_validate({"name": "adamw", "lr": 1e-3})
    """One of `raycnn list optimizers`."""
    schedule: ComponentConfig = ComponentConfig(name="constant")
    """One of `raycnn list schedules`: the learning rate as a function of the step."""
    train: Train
    stages: list[Stage] = []
    """Settings that change in mid-run, each stage on top of those before it."""
    workers: Workers = Workers()
    storage: Storage = Storage()
    failure: Failure = Failure()
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = ["tensorboard"]
    """Where metrics go besides the run folder; each but tensorboard is a package of its own."""

    file_keys: ClassVar = ["extends"]  # of a file, beside the fields

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
        return validate(JobSpec, apply_changes(self.tree(), {}, changes | {"stages": []})[0], {})

    def tree(self) -> Tree:
        """Plain values, every default filled in: what is printed, saved and sent."""
        return self.model_dump(mode="json")

    def change(self, changes: Iterable[str] | Mapping[str, Any]) -> Self:
        """A new spec with dotted keys set: `["optimizer.lr=0.2"]` or `{"optimizer.lr": 0.2}`."""
        pairs = parse_changes(changes) if not isinstance(changes, Mapping) else dict(changes)
        return validate(type(self), *apply_changes(self.tree(), dict(self._where), pairs))

    @contextmanager
    def located(self) -> Iterator[None]:
        """Give a SpecError raised inside the file and line of the key it is about."""
        try:
            yield
        except SpecError as error:
            raise SpecError(locate(self._where, error.key, error.message)) from None


def json_schema() -> dict[str, Any]:
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
