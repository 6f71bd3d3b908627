"""`raycnn data`."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raycnn.cli.arguments import Changes, chosen, is_job
from raycnn.config import schema
from raycnn.config.load import load_job
from raycnn.errors import SpecError

if TYPE_CHECKING:
    from raycnn.data.images.store import Store
    from raycnn.data.inspect.duplicates import SplitIndices
    from raycnn.data.inspect.survey import Duplicates, Survey

SHOWN = 20  # images that cannot be read, and duplicates of a kind
ANY = 2**31  # images that cannot be read are what one looks for here


def data(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE|JOB", help="A name of `raycnn list datasets`, or a job."),
    ],
    changes: Changes = None,
    root: Annotated[
        str | None, typer.Option("--root", help="Folder that holds the data; else as for a job.")
    ] = None,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="A PNG to write: some images of each class.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything, as JSON.")] = False,
) -> None:
    """Inspect data: counts, channel statistics, unreadable images, duplicates.

    A JOB is shown with the splits it trains on; a SOURCE, with options as key=value, with its own.
    Near-duplicates are images re-encoded or rescaled.
    """
    store, members = _opened(source, changes or [], root)
    from raycnn.data.inspect.survey import survey

    found = survey(store, members)
    if as_json:
        print(json.dumps(asdict(found), indent=1))
    else:
        _show(found)
    if sheet:
        from raycnn.data.inspect.contact_sheet import save_contact_sheet

        stored, rows = members["train"]
        save_contact_sheet(sheet, store.splits[stored], rows, store.classes)


def _opened(source: str, changes: Iterable[str], root: str | None) -> "tuple[Store, SplitIndices]":
    """Return the images and splits of a job, or of a source with its own splits."""
    import numpy as np

    from raycnn.config.components import DATASETS
    from raycnn.data.images.store import open_store
    from raycnn.data.splits import open_splits, source_of

    if is_job(source):
        job = load_job(Path(source), changes).change({"data.max_bad": ANY})
        with job.located():
            splits = open_splits(job.change({"data.root": root}) if root else job)
        return splits.store, splits.members
    data = chosen(schema.Data, "data", source, changes)
    if unused := sorted({"limit", "normalize", "transforms", "val"} & data.model_fields_set):
        raise SpecError("is a job's: a source is shown as it is split", unused[0])
    data = data.model_copy(update={"max_bad": ANY} | ({"root": root} if root else {}))
    store = open_store(
        data.name, source_of(data), DATASETS.options(data), how=data.cache, max_bad=data.max_bad
    )
    names = [name for name in ("train", "val", "test") if name in store.splits]
    return store, {name: (name, np.arange(len(store.splits[name].labels))) for name in names}


def _show(found: "Survey") -> None:
    total = sum(found.images.values())
    print(f"{total:,} images of {found.shape}, {len(found.classes)} classes\n")
    width = max(map(len, [*found.classes, "deviation"]))
    print(f"{'class':<{width}}" + "".join(f"{split:>10}" for split in found.counts))
    for row, name in enumerate(found.classes):
        print(f"{name:<{width}}" + "".join(f"{n[row]:>10,}" for n in found.counts.values()))
    print(f"{'all':<{width}}" + "".join(f"{n:>10,}" for n in found.images.values()))
    for what, levels in (("mean", found.mean), ("deviation", found.std)):
        for channel in range(found.shape.channels):
            numbers = "".join(f"{of[channel]:>10.4f}" for of in levels.values())
            print(f"{what if not channel else '':<{width}}{numbers}")
    _list(f"images that cannot be read: {len(found.left_out):,}", found.left_out)
    _list("warnings", found.warnings)
    _list(_title("duplicates, pixel for pixel", found.duplicates), _lines(found.duplicates))
    _list(
        _title("near-duplicates, and how much they differ", found.near_duplicates),
        _lines(found.near_duplicates),
    )


def _title(what: str, found: "list[Duplicates]") -> str:
    splits = sum(each.across_splits for each in found)
    classes = sum(each.across_classes for each in found)
    return f"{what}: {len(found):,} ({classes:,} across classes, {splits:,} across splits)"


def _lines(found: "list[Duplicates]") -> list[str]:
    """Return lines of duplicates: first those across classes, then those across splits."""
    ordered = sorted(
        found, key=lambda duplicates: (not duplicates.across_classes, not duplicates.across_splits)
    )
    return [_line(duplicates) for duplicates in ordered]


def _line(duplicates: "Duplicates") -> str:
    where = " = ".join(
        f"{place.split} {place.name} ({place.label})" for place in duplicates.occurrences
    )
    return f"{duplicates.difference:.1%}  {where}" if duplicates.difference else where


def _list(title: str, lines: list[str]) -> None:
    """Print a title and lines, if there are lines."""
    if lines:
        print(f"\n{title}", *lines[:SHOWN], sep="\n  ")
    if len(lines) > SHOWN:
        print("  ... (--json has them all)")
