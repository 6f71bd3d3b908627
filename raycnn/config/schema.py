"""The schema of a job spec, as frozen pydantic models. Imports neither torch nor Ray."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    PrivateAttr,
    ValidationError,
    WrapValidator,
    model_validator,
)
from typing_extensions import Self

from raycnn.config.changes import DEFAULTS, apply_changes, over_default, parse_changes
from raycnn.config.messages import locate, validate
from raycnn.config.yaml_file import Tree, Where
from raycnn.errors import SpecError
from raycnn.filesystem import check_uri, is_uri, local_path
from raycnn.runtime.device import DEVICE_KINDS

CHANGEABLE = "options of the optimizer, train.label_smoothing and train.clip_norm"


def _no_traversal(path: str) -> str:
    if not path or ".." in PurePath(path).parts or path.startswith("~") or "\0" in path:
        raise ValueError("is not a plain path: `..` and `~` are not followed")
    if is_uri(path):
        raise ValueError("is a URI: only a local or a shared path can be used")
    return path


def _path_or_uri(text: str) -> str:
    return local_path(check_uri(text)) if is_uri(text) else _no_traversal(text)


SafePath = Annotated[str, AfterValidator(_no_traversal)]
Uri = Annotated[str, AfterValidator(check_uri)]
PathOrUri = Annotated[str, AfterValidator(_path_or_uri)]
"""A path, or a URI that pyarrow.fs or fsspec opens: s3://bucket/folder?region=eu-west-1."""
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Frozen(BaseModel):
    """Base of all spec models: immutable, strictly typed, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        hide_input_in_errors=True,
    )


class ComponentConfig(Frozen, extra="allow"):
    """A registered component: `lenet`, or with options `{name: lenet, activation: relu}`."""

    name: str

    @property
    def options(self) -> dict[str, Any]:
        return self.model_extra or {}

    @model_validator(mode="before")
    @classmethod
    def _bare_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class Normalize(Frozen):
    """Mean and standard deviation to normalize images with."""

    mean: list[float]
    """Mean of each channel, for pixel values from 0 to 1."""
    std: list[Positive]
    """Standard deviation of each channel, for pixel values from 0 to 1."""


def _one_of_folds(fold: list[int]) -> list[int]:
    if len(fold) != 2 or not 0 <= fold[0] < fold[1] or fold[1] < 2:
        raise ValueError(f"{fold}: must be the part, from 0, and how many there are: [0, 5]")
    return fold


class Data(ComponentConfig):
    """A data set from `raycnn list datasets`; its own options stand next to the keys below."""

    root: SafePath | None = None
    """Folder of the data; by default RAYCNN_DATA, else `data`."""
    download: bool = False
    """Whether to download the data set into `root` when it is missing."""
    val: Fraction = 0.1
    """Fraction of the training images held out, stratified by class, to choose the best epoch. A
    data set's own validation split is held out whole; with 0 it is added to the training images."""
    fold: Annotated[list[int], AfterValidator(_one_of_folds)] | None = None
    """[k, n]: cross-validation, instead of `val`. Hold out fold k (from 0) of n equal folds of all
    training and validation images, stratified by class and drawn by seed. `tune.folds` sets it."""
    limit: PositiveInt | None = None
    """Use only this many training images, stratified by class and drawn by seed, before `val`."""
    max_bad: Annotated[int, Field(ge=0)] = 0
    """Number of unreadable images to skip, each with a warning; more are an error."""
    cache: Literal["auto", "store", "stream"] = "auto"
    """store: decode images once, to disk; stream: every epoch; auto: store where they fit."""
    transforms: list[ComponentConfig] = []
    """Transforms of each batch, in order, on the device; random ones only in training."""
    normalize: Normalize | None = None
    """Mean and standard deviation; by default those of the training images, or with
    `model.weights: imagenet` those that the weights were trained with."""


class Model(ComponentConfig):
    """A network from `raycnn list models`; its own options stand next to the keys below."""

    weights: SafePath | None = None
    """Initial weights: imagenet (torchvision's), a run folder, a .safetensors or a .pt file."""
    freeze: list[str] = []
    """Name prefixes of parameters that are not trained: [features]."""


class OptimizerConfig(ComponentConfig):
    """An optimizer from `raycnn list optimizers`; its own options stand next to the keys below."""

    lr_by_prefix: dict[str, Positive] = {}
    """Learning rates for the parameters whose names begin with a prefix, instead of `lr`:
    {features: 1e-4}. The longest prefix wins; the schedule scales all rates alike."""
    decay_norm_and_bias: bool = False
    """Whether `weight_decay` holds for biases and the parameters of norms too, which have one
    dimension; the default of torch."""


def _balanced_or_weights(value: Any, check: Any) -> Any:
    """Validate `class_weights`. Raises ValueError with one sentence for any invalid value."""
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


class Distillation(Frozen):
    """Knowledge distillation: learn the outputs of a trained network too (Hinton et al. 2015)."""

    teacher: PathOrUri
    """The run whose best weights teach: a run folder, a URI, `job/n`, or `job` for the latest."""
    alpha: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Weight of the KL divergence from the teacher's outputs; that of the labels is 1 - alpha."""
    temperature: Positive = 4.0
    """Divisor of the logits of both networks in the divergence, which is then multiplied by the
    square of it."""


class Train(Frozen):
    """Settings of the training loop."""

    epochs: PositiveInt
    """Number of passes over the training images."""
    batch_size: PositiveInt = 64
    """Images per step over all workers: more workers change the speed, not the result. Only batch
    norm depends on them: it sees one worker's share, unless `sync_batch_norm` is set."""
    micro_batch: PositiveInt | None = None
    """Images per forward pass of a worker (gradient accumulation), which are also the batch that
    batch norm sees; by default the worker's whole share."""
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    """Precision of the network under autocast; weights stay in fp32. fp16 uses loss scaling. auto:
    fp32, or the 16-bit precision that suits the device where a measurement finds it faster."""
    label_smoothing: Fraction = 0.0
    """Fraction of each label that is spread evenly over all classes, in training only."""
    clip_norm: Positive | None = None
    """Clip the gradients to this L2 norm over all parameters."""
    class_weights: ClassWeights = None
    """Weight of each class in the loss, scaled to mean 1 over the training images; balanced:
    inversely proportional to the number of its images."""
    balanced: bool = False
    """Sample every class equally often: oversample rare classes, undersample frequent ones."""
    distillation: Distillation | None = None
    """Knowledge distillation from a run, the teacher; none by default."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay of the exponential moving average of the weights, which is validated and tested."""
    tta: Literal["horizontal_flip"] | None = None
    """Test-time augmentation: average the logits of each image and its mirror image in validation,
    test, predictions and exported networks, which take twice the time. Training is the same; a
    teacher's outputs are not averaged."""
    patience: PositiveInt | None = None
    """Stop early after this many epochs without improvement on the validation images."""
    sync_batch_norm: bool = False
    """Use SyncBatchNorm, over the batch of all workers; not for cpu and mps."""
    channels_last: bool | Literal["auto"] | None = None
    """Whether to use the channels-last memory format; by default the usual one of the device. auto:
    the one that a measurement at the start finds faster, for a run of more than a minute."""
    compile: bool | Literal["auto"] = False
    """Use torch.compile: faster steps, after a minute or more of compilation at the start. auto: if
    a measurement at the start finds the whole run faster with it."""
    deterministic: bool = False
    """Use only deterministic algorithms, which may be slower: a job repeated on the same devices of
    cuda or npu then gives equal weights, as it does on CPUs anyway. An operation that has no such
    algorithm on the device ends the job."""


def can_change(key: str) -> bool:
    """Return whether a stage may change this dotted key during a run."""
    section, _, option = key.partition(".")
    is_optimizer_option = section == "optimizer" and option.isidentifier() and option != "name"
    return is_optimizer_option or key in ("train.label_smoothing", "train.clip_norm")


def _all_can_change(changes: Tree) -> Tree:
    for key in changes:
        if not can_change(key):
            raise ValueError(f"{key} cannot change during a run: {CHANGEABLE} can")
    return changes


class Stage(Frozen):
    """A change of settings from some epoch of the run on."""

    epoch: PositiveInt
    """Number of completed epochs after which the stage begins."""
    changes: Annotated[dict[str, Any], Field(min_length=1), AfterValidator(_all_can_change)]
    """Dotted keys and their new values: options of the optimizer, train.label_smoothing and
    train.clip_norm. The schedule continues, as a factor of the stage's optimizer.lr."""


def _one_or_a_range(value: Any, check: Any) -> Any:
    """Validate a worker count or range. Raises ValueError with one sentence for any other value."""
    try:
        count = check(value)
    except ValidationError:
        count = None
    if not count or (isinstance(count, list) and count[0] > count[1]):
        raise ValueError("must be a number of workers, or the least and the most: [2, 4]")
    return count


Range = Annotated[list[PositiveInt], Field(min_length=2, max_length=2)]


if TYPE_CHECKING:
    DeviceName = str  # a type checker takes no computed Literal
else:
    DeviceName = Literal[("auto", *DEVICE_KINDS)]


def check_count(device: str, workers: int) -> None:
    """Raise ValueError where devices of this type cannot train with so many workers."""
    if workers > 1 and device != "auto" and not DEVICE_KINDS[device].all_reduce:
        raise ValueError(f"device {device} is for one worker: torch has no all-reduce for it")


class Workers(Frozen):
    """The processes that train, and where they run."""

    count: Annotated[PositiveInt | Range, WrapValidator(_one_or_a_range)] = 1
    """Number of data-parallel processes, one device each. [min, max]: elastic; on Ray as many as
    the cluster has resources for, adapting as nodes leave and join; else as many as are started."""
    device: DeviceName = "auto"
    """Device kind; auto: the first of cuda, npu, xpu and cpu that is available."""
    cpus: PositiveInt | None = None
    """CPUs per worker, for torch's threads and for decoding images; by default an equal share
    (without Ray: torch's default number of threads)."""
    launcher: Literal["auto", "ray", "local"] = "auto"
    """auto: a single worker without an address runs in this process, all else on Ray."""
    address: str | None = None
    """Address of a Ray cluster; by default RAY_ADDRESS, else the job starts a local Ray."""
    timeout_s: Annotated[int, Field(ge=10)] = 600
    """Seconds that a worker waits for the other workers, and a job for cluster resources."""

    @model_validator(mode="after")
    def _check_count(self) -> Self:
        check_count(self.device, self.max_count)
        return self

    @property
    def min_count(self) -> int:
        """The smallest number of workers to train with."""
        return self.count[0] if isinstance(self.count, list) else self.count

    @property
    def max_count(self) -> int:
        """The largest number of workers to train with."""
        return self.count[1] if isinstance(self.count, list) else self.count

    @property
    def count_text(self) -> str:
        """The number of workers for display: `3`, or `2 to 4`."""
        return (
            f"{self.min_count} to {self.max_count}"
            if self.min_count < self.max_count
            else str(self.max_count)
        )


class Storage(Frozen):
    """The place of the runs, and the intervals of checkpoints."""

    path: PathOrUri = "runs"
    """Folder of the runs: a path, or a URI such as s3://bucket/runs. Nodes that do not share a
    path send their files to the node that does."""
    timeout_s: Annotated[int, Field(ge=1)] = 300
    """Seconds to retry an unreachable file system before the job ends; it can be resumed."""
    every_steps: PositiveInt | None = None
    """Save a checkpoint every this many steps as well; every epoch ends with one."""
    report: bool = True
    """Write report.html and its figures when the run ends; `raycnn report RUN` does so later."""


class Failure(Frozen):
    """Recovery from lost workers and from divergence."""

    retries: Annotated[int, Field(ge=0)] = 2
    """Number of restarts from the last checkpoint after lost workers."""
    rollbacks: Annotated[int, Field(ge=0)] = 0
    """Number of rollbacks to the last checkpoint, with a smaller learning rate, after a loss that
    is not finite; 0: such a loss ends the job."""
    rollback_lr: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Factor on the learning rate after each rollback."""


class JobSpec(Frozen):
    """The complete spec of one training job. Unknown keys are refused."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    """Name of the job and of its folder of runs: lowercase letters, digits, `.`, `_` and `-`."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the initial weights, sample order, augmentation, dropout and validation split."""
    data: Data
    model: Model
    optimizer: Annotated[OptimizerConfig, BeforeValidator(partial(over_default, "optimizer"))] = (
        OptimizerConfig.model_validate(DEFAULTS["optimizer"])
    )
    """An optimizer from `raycnn list optimizers`."""
    schedule: Annotated[ComponentConfig, BeforeValidator(partial(over_default, "schedule"))] = (
        ComponentConfig.model_validate(DEFAULTS["schedule"])
    )
    """A learning-rate schedule from `raycnn list schedules`."""
    train: Train
    stages: list[Stage] = []
    """Changes of settings during the run; each stage adds to those before it."""
    workers: Workers = Workers()
    storage: Storage = Storage()
    failure: Failure = Failure()
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = ["tensorboard"]
    """Experiment trackers to log metrics to; all but tensorboard need their own package."""

    file_keys: ClassVar = ["extends"]
    """Keys of a spec file that are not fields."""

    _where: Where = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _enough_to_share(self) -> Self:
        if self.train.batch_size < self.workers.max_count:
            raise ValueError(
                f"train.batch_size {self.train.batch_size} is less than the number of workers, "
                f"{self.workers.max_count}"
            )
        return self

    @model_validator(mode="after")
    def _stages_in_order(self) -> Self:
        starts = [stage.epoch for stage in self.stages]
        if starts != sorted({*starts}) or max(starts, default=0) >= self.train.epochs:
            raise ValueError(
                f"stages: begin after {starts} epochs: each must begin later than the one before, "
                f"and before train.epochs {self.train.epochs}"
            )
        return self

    def after(self, epochs: int) -> "JobSpec":
        """Return the job as it is after this many epochs: with the changes of all stages begun."""
        active_stages = [stage for stage in self.stages if stage.epoch <= epochs]
        if not active_stages:
            return self
        changes = {key: value for stage in active_stages for key, value in stage.changes.items()}
        return validate(JobSpec, apply_changes(self.tree(), {}, changes | {"stages": []})[0], {})

    def tree(self) -> Tree:
        """Return the spec as plain values, with all defaults filled in."""
        return self.model_dump(mode="json")

    def change(self, changes: Iterable[str] | Mapping[str, Any]) -> Self:
        """Return a new spec with dotted keys set.

        `changes` is `["optimizer.lr=0.2"]` or `{"optimizer.lr": 0.2}`. Raises SpecError for an
        unknown key or an invalid value.
        """
        pairs = parse_changes(changes) if not isinstance(changes, Mapping) else dict(changes)
        return validate(type(self), *apply_changes(self.tree(), dict(self._where), pairs))

    @contextmanager
    def located(self) -> Iterator[None]:
        """Add the file and line of its key to a SpecError raised inside the block."""
        try:
            yield
        except SpecError as error:
            raise self.located_error([error]) from None

    def located_error(self, problems: Iterable[SpecError]) -> SpecError:
        """Return errors as one, each on a line with the file and line of its key."""
        lines = [locate(self._where, error.key, error.message) for error in problems]
        return SpecError("\n".join(lines))


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a job file: the fields of JobSpec, and `extends`.

    No key within a section is required, because the extended file may set it; missing keys are
    found when the job is loaded.
    """
    schema = JobSpec.model_json_schema()
    for section in schema["$defs"].values():
        section.pop("required", None)
    schema["properties"]["extends"] = {
        "type": "string",
        "description": "A spec beside this one or below it, or a recipe, to be changed.",
    }
    required = schema.pop("required")
    schema["anyOf"] = [{"required": required}, {"required": ["extends"]}]
    return schema
