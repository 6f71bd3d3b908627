"""The command `raycnn data`: inspect a data set."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raycnn.cli.arguments import AsJson, Changes, DataRoot, chosen, is_job, job_of_pictures
from raycnn.config import schema
from raycnn.config.load import load_job
from raycnn.errors import SpecError

if TYPE_CHECKING:
    from raycnn.data.images.cache import ImageCache
    from raycnn.data.inspect.duplicates import SplitIndices
    from raycnn.data.inspect.survey import Duplicates, Survey

MAX_LINES = 20  # of unreadable images, and of each kind of duplicates
NO_LIMIT = 2**31  # of unreadable images, which this command lists


def data(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE|JOB",
            help="A name of `raycnn list datasets`; a job, or a folder of images.",
        ),
    ],
    changes: Changes = None,
    root: DataRoot = None,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="A PNG to write: some images of each class.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Inspect data: counts, channel statistics, unreadable images, duplicates.

    A JOB, or a folder of images, is shown with the splits it trains on; a SOURCE, with options as
    key=value, with its own.
    Near-duplicates are images re-encoded or rescaled.
    """
    cache, members = _open(source, changes or [], root)
    from raycnn.data.inspect.survey import survey

    result = survey(cache, members)
    if as_json:
        print(json.dumps(asdict(result), indent=1))
    else:
        _show(result)
    if sheet:
        from raycnn.data.inspect.contact_sheet import save_contact_sheet

        source_split, rows = members["train"]
        save_contact_sheet(sheet, cache.splits[source_split], rows, cache.classes)


def _open(
    source: str, changes: Iterable[str], root: str | None
) -> "tuple[ImageCache, SplitIndices]":
    """Return the images and splits of a job, or of a source with its own splits."""
    import numpy as np

    from raycnn.config.components import DATASETS
    from raycnn.data.images.cache import open_cache
    from raycnn.data.sources.base import SPLITS
    from raycnn.data.splits import open_splits, source_of
    from raycnn.runs.preflight import check_data_settings

    known = source in DATASETS.names()
    pictures = None if known else job_of_pictures(Path(source), changes)
    if pictures or is_job(source):
        job = pictures.job if pictures else load_job(Path(source), changes)
        if pictures and root:
            raise SpecError(f"{source} is a folder of images itself", "--root")
        job = job.change({"data.max_bad": NO_LIMIT} | ({"data.root": root} if root else {}))
        check_data_settings(job)
        with job.located():
            splits = open_splits(job)
        return splits.cache, {
            name: splits.members[name] for name in SPLITS if name in splits.members
        }
    data = chosen(schema.Data, "data", source, changes)
    if unused := sorted(
        {"fold", "limit", "normalize", "transforms", "val"} & data.model_fields_set
    ):
        raise SpecError("applies only to a job: a source keeps its own splits", unused[0])
    data = data.model_copy(update={"max_bad": NO_LIMIT} | ({"root": root} if root else {}))
    cache = open_cache(
        data.name, source_of(data), DATASETS.options(data), mode=data.cache, max_bad=data.max_bad
    )
    names = [name for name in SPLITS if name in cache.splits]
    return cache, {name: (name, np.arange(len(cache.splits[name].labels))) for name in names}


def _show(survey: "Survey") -> None:
    total = sum(survey.images.values())
    print(f"{total:,} images of {survey.shape}, {len(survey.classes)} classes\n")
    width = max(map(len, [*survey.classes, "deviation"]))
    print(f"{'class':<{width}}" + "".join(f"{split:>10}" for split in survey.counts))
    for row, name in enumerate(survey.classes):
        print(f"{name:<{width}}" + "".join(f"{n[row]:>10,}" for n in survey.counts.values()))
    print(f"{'all':<{width}}" + "".join(f"{n:>10,}" for n in survey.images.values()))
    for title, levels in (("mean", survey.mean), ("deviation", survey.std)):
        for channel in range(survey.shape.channels):
            numbers = "".join(f"{of[channel]:>10.4f}" for of in levels.values())
            print(f"{title if not channel else '':<{width}}{numbers}")
    _list(f"images that cannot be read: {len(survey.unreadable):,}", survey.unreadable)
    _list("warnings", survey.warnings)
    _list(_title("duplicates, pixel for pixel", survey.duplicates), _lines(survey.duplicates))
    _list(
        _title("near-duplicates, and how much they differ", survey.near_duplicates),
        _lines(survey.near_duplicates),
    )


def _title(text: str, duplicates: "list[Duplicates]") -> str:
    splits = sum(each.across_splits for each in duplicates)
    classes = sum(each.across_classes for each in duplicates)
    return f"{text}: {len(duplicates):,} ({classes:,} across classes, {splits:,} across splits)"


def _lines(duplicates: "list[Duplicates]") -> list[str]:
    """Return lines of duplicates: first those across classes, then those across splits."""
    ordered = sorted(duplicates, key=lambda each: (not each.across_classes, not each.across_splits))
    return [_line(each) for each in ordered]


def _line(duplicates: "Duplicates") -> str:
    places = " = ".join(
        f"{occurrence.split} {occurrence.name} ({occurrence.label})"
        for occurrence in duplicates.occurrences
    )
    return f"{duplicates.difference:.1%}  {places}" if duplicates.difference else places


def _list(title: str, lines: list[str]) -> None:
    """Print a title and lines, if there are lines."""
    if lines:
        print(f"\n{title}", *lines[:MAX_LINES], sep="\n  ")
    if len(lines) > MAX_LINES:
        print("  ... (--json has them all)")
