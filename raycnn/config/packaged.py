"""The job files that come with raycnn, by name: `quickstart` is `jobs/quickstart.yaml`."""

from difflib import get_close_matches
from pathlib import Path

import raycnn
from raycnn.errors import SpecError, did_you_mean

SUFFIXES = (".yaml", ".yml")


def packaged_jobs() -> dict[str, Path]:
    """Return the packaged job files by name: in a wheel inside the package, else beside it."""
    package = Path(raycnn.__file__).parent
    inside = package / "jobs"
    folder = inside if inside.is_dir() else package.parent / "jobs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def is_packaged(name: str) -> bool:
    """Return whether a packaged job has this name, and no file or folder takes precedence."""
    return not Path(name).exists() and name in packaged_jobs()


def find_job_file(path: Path) -> Path:
    """Return the file that a user named: as it is where it exists, else the packaged job.

    Raises SpecError, with the nearest names, when there is neither.
    """
    if path.exists():
        return path
    packaged = packaged_jobs()
    if str(path) in packaged:
        return packaged[str(path)]
    if path.suffix in SUFFIXES:
        beside = [file.name for file in path.parent.glob("*.y*ml") if file.is_file()]
        hint = _hint(path.stem, {name.rpartition(".")[0]: name for name in beside})
        raise SpecError(f"cannot read {path}: there is no such file{hint}")
    hint = _hint(path.name, {name: name for name in packaged})
    raise SpecError(
        f"cannot read {path}: there is no such file, and no job of raycnn's has this name{hint}"
    )


def _hint(stem: str, names: dict[str, str]) -> str:
    """Return the question for the nearest of some names, which are compared without a suffix."""
    near = get_close_matches(stem, names, n=1, cutoff=0.75)
    return did_you_mean(names[near[0]], [names[near[0]]]) if near else ""
