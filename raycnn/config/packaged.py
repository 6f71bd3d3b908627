"""Job files shipped with raycnn, by name: `quickstart` is `jobs/quickstart.yaml`."""

import re
from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path

import raycnn
from raycnn.errors import SpecError, did_you_mean

SUFFIXES = (".yaml", ".yml")


def packaged_jobs() -> dict[str, Path]:
    """Return the packaged job files by name.

    They are inside the package in a wheel, and next to it in a source checkout.
    """
    package = Path(raycnn.__file__).parent
    inside = package / "jobs"
    folder = inside if inside.is_dir() else package.parent / "jobs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"), key=lambda path: path.stem)}


def descriptions() -> dict[str, str]:
    """Return the first sentence of the head comment of each packaged job, by name."""
    return {name: _first_sentence(path.read_text()) for name, path in packaged_jobs().items()}


def _first_sentence(text: str) -> str:
    lines = takewhile(lambda line: line.startswith("#"), text.splitlines())
    comment = " ".join(line.lstrip("# ") for line in lines)
    return re.split(r"\.\s", f"{comment} ", maxsplit=1)[0]


def find_job_file(path: Path) -> Path:
    """Return `path` if it exists, else the packaged job of that name.

    Raises SpecError, suggesting the nearest name, if there is neither.
    """
    if path.exists():
        return path
    packaged = packaged_jobs()
    if str(path) in packaged:
        return packaged[str(path)]
    if path.suffix in SUFFIXES or len(path.parts) > 1:
        siblings = [file.name for file in path.parent.glob("*.y*ml") if file.is_file()]
        hint = _hint(path.stem, {name.rpartition(".")[0]: name for name in siblings})
        raise SpecError(f"cannot read {path}: there is no such file{hint}")
    raise SpecError(f"cannot read {path}: there is no such file, nor {no_packaged_job(path.name)}")


def no_packaged_job(name: str) -> str:
    """Return the end of a message that no packaged job has this name, with the nearest one."""
    return f"a packaged job of this name{_hint(name, {job: job for job in packaged_jobs()})}"


def _hint(stem: str, names: dict[str, str]) -> str:
    """Return a "did you mean" suggestion for the nearest name; `names` maps stems to names."""
    near = get_close_matches(stem, names, n=1, cutoff=0.75)
    return did_you_mean(names[near[0]], [names[near[0]]]) if near else ""
