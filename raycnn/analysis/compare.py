"""Compare runs: their specs, test predictions image by image, and recall of each class.

The command is in cli/compare.py, the HTML page in report/compare.py.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from shlex import quote
from statistics import fmean, stdev
from typing import Any

import numpy as np

from raycnn.analysis.evaluate import per_class, stored_predictions
from raycnn.analysis.predictions_file import Predictions
from raycnn.config.changes import flatten
from raycnn.data.images.fingerprint import may_be_same
from raycnn.errors import DataError, SpecError
from raycnn.runs.directory import Run
from raycnn.training import checkpoint_folder
from raycnn.training.main_metric import main_metric, val_metric

EXACT = 25  # with fewer discordant images McNemar's test is the exact binomial test
NOT_COMPARED = {"name", "storage.path", "tune"}  # keys that do not affect training
SEED = "seed"


@dataclass(frozen=True)
class ComparedRun:
    """The data of one run, read once."""

    name: str
    location: str
    """The run folder, or its URI."""
    state: str
    spec: dict[str, Any]
    """The spec as dotted keys and values."""
    rows: list[dict[str, float]]
    result: dict[str, Any] | None
    fingerprint: str | None
    """The digest of the images and labels; None without a valid checkpoint."""
    predictions: Predictions | None

    @property
    def test(self) -> float | None:
        """Test accuracy, or multi-label mAP."""
        return self.result["test"][main_metric(self.result["test"])] if self.result else None

    @property
    def best_val(self) -> float | None:
        """The best validation accuracy, or multi-label mAP."""
        values = (row[metric] for row in self.rows if (metric := val_metric(row)))
        return max(values, default=None)


@dataclass(frozen=True)
class PairedTest:
    """McNemar's test of two runs on the same images (Psychometrika 12 (1947), pages 153 to 157)."""

    one: str
    other: str
    only_one: int
    """The number of images that only `one` classifies correctly."""
    only_other: int
    count: int
    p_value: float | None
    """Two-sided p-value of no difference; None if the tests cannot be compared."""
    exact: bool
    refused: str = ""
    """The reason why they cannot be compared."""

    @property
    def difference(self) -> float:
        """The accuracy of `other` minus that of `one`."""
        return (self.only_other - self.only_one) / max(1, self.count)


@dataclass(frozen=True)
class SeedGroup:
    """Runs that differ only in their seed."""

    runs: list[str]
    seeds: list[int]
    mean: float
    """The mean of the test accuracies or mAPs."""
    deviation: float | None
    """Sample standard deviation; None for one run."""


@dataclass(frozen=True)
class Comparison:
    """Two or more runs side by side."""

    runs: list[ComparedRun]
    differing: dict[str, list[Any]]
    """The dotted keys that differ between the specs, with the value in each run."""
    groups: list[SeedGroup]
    paired: list[PairedTest]
    classes: dict[str, list[float]]
    """The recall of each class in each run, the largest spread first; {} where the data differ."""


def compare(runs: Sequence[Run]) -> Comparison:
    """Compare two or more runs. Raises SpecError for fewer, or if a run is listed twice."""
    if len(runs) < 2:
        raise SpecError("takes two runs or more", "compare")
    counts = Counter(run.location if run.copy else run.folder.resolve() for run in runs)
    if repeated := [path for path, count in counts.items() if count > 1]:
        raise SpecError(f"{repeated[0]} is listed twice", "compare")
    names = _names(runs)
    compared = [_read(run, name) for run, name in zip(runs, names, strict=True)]
    return Comparison(
        compared,
        differing_keys([run.spec for run in compared]),
        seed_groups(compared),
        [paired_test(one, other) for one, other in combinations(compared, 2)],
        class_differences(compared),
    )


def _names(runs: Sequence[Run]) -> list[str]:
    """Return `job/n` of each run, or its folder or URI if several runs have this name."""
    counts = Counter(run.name for run in runs)
    return [run.name if counts[run.name] == 1 else str(run.location) for run in runs]


def _read(run: Run, name: str) -> ComparedRun:
    rows = [{key: float(value) for key, value in row.items() if value} for row in run.rows()]
    fingerprint = predictions = None
    try:
        fingerprint = checkpoint_folder.read_state(run.weights("best"))["about"]["data"]
        predictions = stored_predictions(run)
    except DataError:
        pass  # the run has no complete epoch, or a corrupt checkpoint: no test to compare
    spec = flatten(run.job().tree())
    return ComparedRun(
        name, str(run.location), run.state(), spec, rows, run.result(), fingerprint, predictions
    )


def differing_keys(specs: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return the keys whose values differ between specs, with the value in each spec."""
    keys = dict.fromkeys(key for spec in specs for key in spec if key not in NOT_COMPARED)
    values = {key: [spec.get(key) for spec in specs] for key in keys}
    return {key: row for key, row in values.items() if any(value != row[0] for value in row)}


def seed_groups(runs: Sequence[ComparedRun]) -> list[SeedGroup]:
    """Group tested runs whose specs and data are equal except for the seed."""
    groups: dict[str, list[ComparedRun]] = {}
    for run in runs:
        if run.test is not None:
            spec = {k: v for k, v in run.spec.items() if k not in NOT_COMPARED | {SEED}}
            groups.setdefault(repr((sorted(spec.items()), run.fingerprint)), []).append(run)
    summaries = []
    for group in groups.values():
        tests = [run.test or 0.0 for run in group]
        summaries.append(
            SeedGroup(
                [run.name for run in group],
                [run.spec[SEED] for run in group],
                fmean(tests),
                stdev(tests) if len(group) > 1 else None,
            )
        )
    return summaries


def paired_test(one: ComparedRun, other: ComparedRun) -> PairedTest:
    """Test whether two runs differ on the same test images, or return why that is not possible."""
    refused = _refusal(one, other)
    if refused or not one.predictions or not other.predictions:
        return PairedTest(one.name, other.name, 0, 0, 0, None, False, refused)
    first, second = (run.predictions.splits["test"] for run in (one, other) if run.predictions)
    correct = first.predicted == first.labels, second.predicted == second.labels
    only_one, only_other = (int((a & ~b).sum()) for a, b in (correct, correct[::-1]))
    p_value, exact = mcnemar(only_one, only_other)
    return PairedTest(one.name, other.name, only_one, only_other, len(first), p_value, exact)


def _refusal(one: ComparedRun, other: ComparedRun) -> str:
    for run in (one, other):
        if run.fingerprint is None:
            return f"{run.name} has no valid checkpoint"
    assert one.fingerprint and other.fingerprint
    if not may_be_same(one.fingerprint, other.fingerprint):
        return "their data is not the same"
    for run in (one, other):
        if not run.predictions or "test" not in run.predictions.splits:
            return f"{run.name} has no stored predictions; run `raycnn eval {quote(run.location)}`"
    first, second = (run.predictions.splits["test"] for run in (one, other) if run.predictions)
    if first.multi_label or second.multi_label:
        return "McNemar's test needs images of one class each, and these are multi-label"
    same = np.array_equal(first.samples, second.samples)
    if not same or not np.array_equal(first.labels, second.labels):
        return "their test images are not the same"
    return ""


def mcnemar(b: int, c: int) -> tuple[float, bool]:
    """Return the two-sided p-value of b and c discordant images, and whether it is exact.

    Below EXACT discordant images it is the binomial test, else chi-squared with Edwards' continuity
    correction (Psychometrika 13 (1948), pages 185 to 187).
    """
    from scipy import stats  # slow to import

    if b + c < EXACT:
        return (float(stats.binomtest(b, b + c).pvalue) if b + c else 1.0), True
    statistic = max(0, abs(b - c) - 1) ** 2 / (b + c)
    return float(stats.chi2.sf(statistic, 1)), False


def class_differences(runs: Sequence[ComparedRun]) -> dict[str, list[float]]:
    """Return the recall of each class in each run; {} unless all have predictions on equal data."""
    if len({run.fingerprint for run in runs}) > 1:
        return {}
    recalls = [
        {row["class"]: row["recall"] for row in per_class(p.splits["test"], p.classes)}
        for p in (run.predictions for run in runs)
        if p and "test" in p.splits
    ]
    if len(recalls) < len(runs):
        return {}
    table = {name: [recall[name] for recall in recalls] for name in recalls[0]}
    return dict(sorted(table.items(), key=lambda item: min(item[1]) - max(item[1])))
