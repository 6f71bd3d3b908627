"""Recipes: the jobs and searches that come with raycnn. `quickstart` is `jobs/quickstart.yaml`."""

import re
from difflib import get_close_matches
from itertools import takewhile
from pathlib import Path

import raycnn
from raycnn.errors import SpecError, did_you_mean

SUFFIXES = (".yaml", ".yml")


def recipe_files() -> dict[str, Path]:
    """Return the files of all recipes by name.

    They are inside the package in a wheel, and next to it in a source checkout.
    """
    package = Path(raycnn.__file__).parent
    inside = package / "jobs"
    folder = inside if inside.is_dir() else package.parent / "jobs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"), key=lambda path: path.stem)}


def descriptions() -> dict[str, str]:
    """Return the first sentence of the head comment of each recipe, by name."""
    return {name: _first_sentence(path.read_text()) for name, path in recipe_files().items()}


def _first_sentence(text: str) -> str:
    lines = takewhile(lambda line: line.startswith("#"), text.splitlines())
    comment = " ".join(line.lstrip("# ") for line in lines)
    return re.split(r"\.\s", f"{comment} ", maxsplit=1)[0]


def find_job_file(path: Path) -> Path:
    """Return `path` if it exists, else the file of the recipe of that name.

    Raises SpecError, suggesting the nearest name, if there is neither.
    """
    if path.exists():
        return path
    recipes = recipe_files()
    if str(path) in recipes:
        return recipes[str(path)]
    if path.suffix in SUFFIXES or len(path.parts) > 1:
        siblings = [file.name for file in path.parent.glob("*.y*ml") if file.is_file()]
        hint = _hint(path.stem, {name.rpartition(".")[0]: name for name in siblings})
        raise SpecError(f"cannot read {path}: there is no such file{hint}")
    raise SpecError(
        f"cannot read {path}: there is no such file or folder, nor {no_recipe(path.name)}"
    )


def no_recipe(name: str) -> str:
    """Return the end of a message that no recipe has this name, with the nearest one."""
    return f"a recipe of this name{_hint(name, {recipe: recipe for recipe in recipe_files()})}"


def _hint(stem: str, names: dict[str, str]) -> str:
    """Return a "did you mean" suggestion for the nearest name; `names` maps stems to names."""
    near = get_close_matches(stem, names, n=1, cutoff=0.75)
    return did_you_mean(names[near[0]], [names[near[0]]]) if near else ""
