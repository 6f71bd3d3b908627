"""The folder of checkpoints: its index, and state.json, checks and removal of what it contains.

A checkpoint is a folder `EPOCH-STEP` (completed epochs, completed steps of the next one).
`index.json` names the last, the previous and the best checkpoint; the previous one is kept in case
the last is damaged. training/checkpoint.py has the tensors in them: this module does not import
torch, which takes seconds.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from raycnn import io
from raycnn.errors import DataError

MODEL, OPTIMIZER, STATE, INDEX = (
    "model.safetensors",
    "optimizer.safetensors",
    "state.json",
    "index.json",
)
TENSORS = (MODEL, OPTIMIZER)


def read_index(folder: Path) -> dict[str, str | None]:
    """Return the names of the `last`, `previous` and `best` checkpoint; {} without an index."""
    return io.read_json(folder / INDEX) or {}


def write_index(index: dict[str, str | None], folder: Path) -> None:
    """Write the names of the `last`, `previous` and `best` checkpoint, atomically."""
    io.write_json(folder / INDEX, index, durable=True)


def set_last(checkpoint: Path, best: bool) -> None:
    """Name a checkpoint in the index as the last, and as the best if `best`.

    After a kill, or damage to a newer checkpoint, the index may name another one.
    """
    index = read_index(checkpoint.parent) | {"last": checkpoint.name}
    write_index(index | ({"best": checkpoint.name} if best else {}), checkpoint.parent)


def latest_valid_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """Return the newest valid checkpoint, or None, and what is wrong with any newer ones.

    Raises DataError if there are checkpoints but none is valid.
    """
    checkpoints = sorted(path for path in folder.glob("[0-9]*-[0-9]*") if path.is_dir())
    path, problems = newest_usable(checkpoints, verify_checkpoint)
    if problems and not path:
        raise DataError("no valid checkpoint: " + "; ".join(problems))
    return path, problems


def newest_usable(
    checkpoints: Sequence[Path], problem_of: Callable[[Path], str | None]
) -> tuple[Path | None, list[str]]:
    """Return the last checkpoint without a problem, or None, and the problems of later ones."""
    problems: list[str] = []
    for path in reversed(checkpoints):
        problem = problem_of(path)
        if not problem:
            return path, problems
        problems.append(problem)
    return None, problems


def verify_checkpoint(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None if its files match their checksums."""
    try:
        files = read_state(checkpoint)["files"]
        for name in TENSORS:
            if _file_digest(checkpoint / name) != files[name]:
                return f"{checkpoint / name} failed its checksum (size or SHA-256 differs)"
    except (DataError, OSError, KeyError, TypeError) as error:
        return f"{checkpoint} is damaged: {error}"
    return None


def write_state(state: dict[str, Any], checkpoint: Path) -> None:
    """Write state.json into a checkpoint, with the checksums of its tensors and of itself."""
    assert "files" not in state, "the checksums of other tensors"
    body = {"files": {name: _file_digest(checkpoint / name) for name in TENSORS}, **state}
    io.write_json(checkpoint / STATE, {"sha256": _digest(body), **body})


def read_state(checkpoint: Path) -> dict[str, Any]:
    """Return the content of state.json. Raises DataError if its SHA-256 does not match."""
    try:
        state = dict(json.loads((checkpoint / STATE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"cannot read {checkpoint / STATE}: {error}") from None
    if state.pop("sha256", None) != _digest(state):
        raise DataError(f"{checkpoint / STATE} failed its checksum (SHA-256 differs)")
    return state


def remove_incomplete(folder: Path) -> None:
    """Delete files and folders that a killed process left incomplete."""
    for path in folder.glob(".*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def delete_except(folder: Path, names: Collection[str | None]) -> None:
    """Delete all checkpoints except those named, and the remains of interrupted saves."""
    for path in folder.iterdir():
        if path.is_dir() and path.name not in names:
            shutil.rmtree(path, ignore_errors=True)


def delete_all(folder: Path) -> None:
    """Delete all checkpoints, and their index first."""
    (folder / INDEX).unlink(missing_ok=True)
    delete_except(folder, [])


def prune(folder: Path) -> None:
    """Delete all but the last and the best checkpoint, once training has ended."""
    if index := read_index(folder):
        index |= {"previous": None}
        write_index(index, folder)
        delete_except(folder, index.values())


def copy_all(source: Path, target: Path) -> None:
    """Replace the checkpoints in `target` by the last and the best one of `source`."""
    shutil.rmtree(target, ignore_errors=True)  # first, for there may be no room for both
    index = read_index(source) | {"previous": None}
    with io.atomic_folder(target, durable=True) as temporary:
        for name in {name for name in index.values() if name}:
            shutil.copytree(source / name, temporary / name)
        write_index(index, temporary)


def _file_digest(path: Path) -> dict[str, Any]:
    """Return the size in bytes and the SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 24):
            digest.update(chunk)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
