"""The Python API of raycnn: the commands of the command line as functions and objects.

Changes to a spec are keyword arguments with two underscores for each dot (`train__epochs=3`), or
an unpacked mapping (`**{"train.epochs": 3}`). All errors are subclasses of
`raycnn.errors.RaycnnError`.

>>> import raycnn
>>> job = {"name": "digits", "data": "digits", "model": "lenet", "train": {"epochs": 2}}
>>> small = {"data.transforms": [{"name": "resize", "size": 12}], "data.limit": 200}
>>> run = raycnn.train(job, progress=False, **small)
>>> run.name, run.state, len(run.metrics)
('digits/1', 'done', 2)
>>> run.result["test"]["count"]
357
"""

import html
import json
import logging
from collections.abc import Callable, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raycnn.config.load import job_from_tree, load_job
from raycnn.config.schema import JobSpec
from raycnn.errors import DataError, Interrupted, JobFailed, SpecError
from raycnn.training.main_metric import LABELS, main_metric

if TYPE_CHECKING:
    from raycnn.analysis.export import Export
    from raycnn.analysis.predict import Classifier, Network, Prediction
    from raycnn.config.search import TuneSpec
    from raycnn.runs import directory
    from raycnn.search import folder as searches
    from raycnn.training.from_folder import FolderJob

Job = str | PathLike[str] | Mapping[str, Any] | JobSpec
"""A spec file, a folder of images, the name of a recipe, or the spec itself."""


def load(job: Job, **changes: Any) -> JobSpec:
    """Return the validated job of a YAML file, a folder of images, a recipe or a mapping.

    Raises SpecError, with the key and the line, if it is invalid. The options of a network, an
    optimizer or a data set are checked when it is trained.

    >>> job = {"name": "x", "data": "digits", "model": "lenet", "train": {"epochs": 2}}
    >>> load(job, train__epochs=3).train.epochs
    3
    >>> load(job, train__epoch=3)
    Traceback (most recent call last):
    raycnn.errors.SpecError: command line: train.epoch: unknown key 'epoch'...
    """
    pairs = _dotted(changes)
    if isinstance(job, JobSpec):
        return job.change(pairs)
    if isinstance(job, Mapping):
        from raycnn.config.changes import apply_changes

        return job_from_tree(apply_changes(dict(job), {}, pairs)[0])
    generated = _from_folder(job, pairs)
    return generated.job if generated else load_job(Path(job).expanduser()).change(pairs)


def train(job: Job, *, progress: bool = True, **changes: Any) -> "Run":
    """Train a job in a new run folder, and return the run.

    With `progress` a progress bar is shown on a terminal, else a line for each epoch. Several
    workers train on Ray, which is started for the job unless a cluster is running. Raises
    SpecError, DataError or EnvironmentUnavailable before training starts, JobFailed when it fails,
    and Interrupted when it is stopped; `resume` continues it.
    """
    from rich.console import Console

    from raycnn.cli.train import train_new

    generated = _from_folder(job, changes)
    spec = generated.job if generated else load(job, **changes)
    return Run(train_new(spec, generated, Console(quiet=not progress)).location)


def resume(run: "str | PathLike[str] | Run", *, progress: bool = True, **changes: Any) -> "Run":
    """Resume a run from its last checkpoint; the result equals that of an uninterrupted run.

    A completed run trains longer with `train__epochs=N`, else it is returned unchanged. Raises as
    `train` does, and SpecError for a change of a setting that is fixed once training has begun.
    """
    from rich.console import Console

    from raycnn.cli.train import train_further
    from raycnn.runs.compatibility import completed_epochs

    earlier = _find(run)
    spec = load(earlier.job(), **changes)
    if completed_epochs(earlier, spec) is not None:
        return Run(earlier.location)
    return Run(train_further(earlier, spec, Console(quiet=not progress)).location)


def tune(search: str | PathLike[str], *, progress: bool = True, **changes: Any) -> "Search":
    """Run a search and return it; `search` is a search file, or the folder or URI of one to resume.

    Raises as `train` does, and JobFailed when no trial completes.
    """
    from raycnn.config.search import load_search
    from raycnn.filesystem import is_uri
    from raycnn.launch import dispatch
    from raycnn.search.folder import Search as Folder
    from raycnn.search.preflight import check_search

    path = Path(search).expanduser()
    if is_uri(str(search)) or path.is_dir():
        if changes:
            key = next(iter(_dotted(changes)))
            raise SpecError(f"{search} is a search, which continues as it is: leave out {key}")
        earlier = Folder.find(str(search if is_uri(str(search)) else path))
        if earlier.unfinished():
            _search(earlier.spec, lambda: earlier, progress)
        else:
            dispatch.complete(earlier, logging.getLogger("raycnn").warning)
        _require_winner(earlier)
        return Search(earlier.location)
    pairs = [f"{key}={json.dumps(value)}" for key, value in _dotted(changes).items()]
    spec = check_search(load_search(path, pairs))
    found = _search(spec, lambda: Folder.create(spec), progress)
    _require_winner(found)
    return Search(found.location)


def runs(root: str | PathLike[str] = "runs") -> "list[Run]":
    """Return all runs in a folder, sorted by job and number."""
    from raycnn.runs.directory import Run as Directory

    return [Run(run.location) for run in Directory.all(fspath(root))]


def open_network(
    source: "str | PathLike[str] | Run", which: str = "best", device: str = "auto"
) -> "Classifier":
    """Return the classifier of a run (folder, `job/n` or `job`), or of an exported file.

    Its `predict` takes files, folders, PIL images and arrays. `which` is `best` or `last`. By
    `job`, it is the latest run that has a checkpoint.
    """
    from raycnn.analysis.exported_network import is_exported, open_exported
    from raycnn.runs.directory import Run as Directory

    if isinstance(source, Run):
        return source.network(which, device)
    if is_exported(Path(source)):
        return open_exported(Path(source))
    run = Directory.find(str(source), trained=True)
    return Run(run.location).network(which, device)


class Run:
    """One execution of a job, opened by its folder, by `job/n`, or by `job` for the latest.

    Raises SpecError if there is no such run.
    """

    def __init__(self, run: str | PathLike[str], root: str | PathLike[str] = "runs"):
        from raycnn.runs.directory import Run as Directory

        self._run = Directory.find(fspath(run), fspath(root))

    def __repr__(self) -> str:
        return f"Run({str(self.location)!r})"

    @property
    def folder(self) -> Path:
        """The run folder, which contains all its files; for one at a URI a local copy."""
        return self._run.folder

    @property
    def location(self) -> Path | str:
        """The run folder, or its URI."""
        return self._run.location

    @property
    def name(self) -> str:
        """The name of the run: `job/n`."""
        return self._run.name

    @property
    def state(self) -> str:
        """The state of the run: done, running, failed or stopped."""
        return self._run.state()

    @property
    def job(self) -> JobSpec:
        """The resolved spec of the run."""
        return self._run.job()

    @property
    def metrics(self) -> Any:
        """The metrics of each epoch, one row each: losses, accuracies, learning rate, images/s.

        A pandas DataFrame if pandas is installed, else a list of dicts of floats.
        """
        rows = [
            {key: float(value) for key, value in row.items() if value} for row in self._run.rows()
        ]
        return _table(rows)

    @property
    def result(self) -> dict[str, Any] | None:
        """The test metrics of the best weights, and the best epoch; None until the run is done."""
        return self._run.result()

    @property
    def events(self) -> list[Any]:
        """The events of the run, oldest first."""
        return self._run.events()

    @property
    def predictions(self) -> Any:
        """The predictions for each validation and test image: file, label, class, probabilities.

        A pandas DataFrame with class names if pandas is installed, else the pyarrow table of
        predictions.parquet, with class indices; multi-label, lists of them. Raises DataError if
        the run has none.
        """
        import pyarrow.parquet

        from raycnn.analysis import predictions_file

        path = self.folder / predictions_file.FILE
        classes = predictions_file.read_predictions(path).classes
        table = pyarrow.parquet.read_table(path)
        if not (pandas := _pandas()):
            return table
        frame = table.to_pandas()
        for column in ("label", "predicted"):
            if pyarrow.types.is_list(table.schema.field(column).type):
                frame[column] = [[classes[k] for k in indices] for indices in frame[column]]
            else:
                frame[column] = pandas.Categorical.from_codes(frame[column], classes)
        return frame

    @property
    def report(self) -> Path:
        """The path of the run's report.html. Raises DataError when the run has none."""
        path = self.folder / "report.html"
        if not path.is_file():
            raise DataError(
                f"{self.name} has no report yet; write it with `{self._run.command('report')}`"
            )
        return path

    def network(self, which: str = "best", device: str = "auto") -> "Network":
        """Return the network with its `best` or `last` weights.

        `module` maps normalized images (B, C, H, W) to logits (B, K), `classes` has the K class
        names, `preprocessing` describes the input pipeline, and `predict` runs all of it, with the
        test-time augmentation of `train.tta`.
        """
        from raycnn.analysis.predict import load_network
        from raycnn.runtime import device as devices

        return load_network(self._run.weights(which), devices.find(device).select(0))

    def predict(self, images: Any) -> "list[Prediction]":
        """Classify files, folders, PIL images or arrays with the best weights."""
        return self.network().predict(images)

    def evaluate(
        self,
        split: str = "test",
        which: str = "best",
        device: str | None = None,
        root: str | PathLike[str] | None = None,
    ) -> dict[str, Any]:
        """Return the metrics of a split (train, val or test), under its name, and per class.

        Stored predictions are used if there are any, unless a device or a root is given.
        """
        from raycnn.analysis.evaluate import evaluate_run

        return evaluate_run(self._run, split, which, device, str(root) if root else None)

    def export(
        self,
        format: str = "onnx",
        folder: str | PathLike[str] | None = None,
        *,
        which: str = "best",
        root: str | PathLike[str] | None = None,
    ) -> "Export":
        """Export the network as `onnx`, `safetensors` or `torch`, verified against the run.

        Raises JobFailed, and writes nothing, when its outputs differ from the run's.
        """
        from raycnn.analysis.export import export

        target = Path(folder) if folder else None
        return export(
            self._run, format, folder=target, weights=which, root=str(root) if root else None
        )

    def resume(self, *, progress: bool = True, **changes: Any) -> "Run":
        """Resume this run from its last checkpoint: see `raycnn.resume`."""
        return resume(self, progress=progress, **changes)

    def _repr_html_(self) -> str:
        return _html(f"run {self.name}", self._summary())

    def _summary(self) -> dict[str, str]:
        job, result = self.job, self.result
        shown = {
            "state": self.state,
            "model": job.model.name,
            "data": job.data.name,
            "epochs": f"{len(self._run.rows())} of {job.train.epochs}",
        }
        if result:
            test = result["test"]
            shown["best epoch"] = str(result["best_epoch"])
            name = main_metric(test)
            interval = ""
            if "interval95" in test:
                interval = " (95 %: {:.2%} to {:.2%})".format(*test["interval95"])
            shown[f"test {LABELS[name]}"] = f"{test[name]:.2%}{interval}, {test['count']:,} images"
        return shown | {"folder": str(self.location)}


class Search:
    """One execution of a search, opened by its folder, by `search/n`, or by name for the latest.

    Raises SpecError if there is no such search.
    """

    def __init__(self, search: str | PathLike[str], root: str | PathLike[str] = "runs"):
        from raycnn.search.folder import Search as Folder

        self._search = Folder.find(fspath(search), fspath(root))

    def __repr__(self) -> str:
        return f"Search({str(self.location)!r})"

    @property
    def folder(self) -> Path:
        """The search folder, which contains all its files; for one at a URI a local copy."""
        return self._search.folder

    @property
    def location(self) -> Path | str:
        """The search folder, or its URI."""
        return self._search.location

    @property
    def name(self) -> str:
        """The name of this execution: `search/n`."""
        return self._search.name

    @property
    def state(self) -> str:
        """The state of the search: done, running or stopped."""
        return self._search.state()

    @property
    def leaderboard(self) -> Any:
        """The trials, best first: a DataFrame if pandas is installed, else a list of dicts."""
        from dataclasses import asdict

        from raycnn.search.leaderboard import leaderboard

        return _table([asdict(entry) for entry in leaderboard(self._search)])

    @property
    def best(self) -> dict[str, JobSpec]:
        """The job of the best trial of each architecture, best first, as input for `train`."""
        from raycnn.search.leaderboard import leaderboard, winners

        names = winners(leaderboard(self._search))
        return {name: load_job(self._search.best_job_path(name)) for name in names}

    def _repr_html_(self) -> str:
        from raycnn.search.leaderboard import leaderboard, winners

        board = leaderboard(self._search)
        shown = {
            "state": self.state,
            "trials": f"{len(board)} of {len(self._search.spec.trials())}",
        }
        for name, entry in winners(board).items():
            shown[name] = f"{self._search.spec.tune.metric} {entry.metric:.4g} ({entry.trial})"
        return _html(f"search {self.name}", shown | {"folder": str(self.location)})


def _dotted(changes: Mapping[str, Any]) -> dict[str, Any]:
    return {key.replace("__", "."): value for key, value in changes.items()}


def _from_folder(job: Job, changes: Mapping[str, Any]) -> "FolderJob | None":
    """Return the generated job of a folder of images; None if `job` is not a folder."""
    if isinstance(job, JobSpec | Mapping):
        return None
    from raycnn.cli.arguments import job_of_pictures

    return job_of_pictures(Path(job), _dotted(changes))


def _search(
    spec: "TuneSpec", open_search: "Callable[[], searches.Search]", progress: bool
) -> "searches.Search":
    from rich.console import Console

    from raycnn.cli.search_view import search_view_for
    from raycnn.launch import dispatch

    with search_view_for(Console(quiet=not progress)) as view:
        try:
            return dispatch.search(spec, open_search, view)
        except KeyboardInterrupt:
            raise Interrupted("stopped at once; `tune` of its folder continues") from None


def _require_winner(search: "searches.Search") -> None:
    """Raise JobFailed if all trials of a search have ended, and none of them completed."""
    from raycnn.search.leaderboard import leaderboard, winners

    board = leaderboard(search)
    if not search.unfinished() and not winners(board):
        raise JobFailed(f"no trial completed: {board[0].reason}")


def _find(run: "str | PathLike[str] | Run") -> "directory.Run":
    from raycnn.runs.directory import Run as Directory

    return run._run if isinstance(run, Run) else Directory.find(fspath(run))


def _table(rows: list[dict[str, Any]]) -> Any:
    pandas = _pandas()
    return pandas.DataFrame(rows) if pandas else rows


def _pandas() -> Any:
    try:
        import pandas
    except ImportError:
        return None
    return pandas


def _html(title: str, rows: Mapping[str, str]) -> str:
    """Return a small HTML table; keys and values come from files, so they are escaped."""
    cells = "".join(
        f"<tr><th style='text-align:left'>{html.escape(key)}</th>"
        f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
        for key, value in rows.items()
    )
    return f"<table><caption>{html.escape(title)}</caption>{cells}</table>"
