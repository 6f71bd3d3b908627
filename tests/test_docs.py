"""What the manual tells people to type works: every command, job spec and piece of Python."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image
from ruamel.yaml import YAML

from raycnn import errors
from raycnn.cli.commands import COMMANDS, app
from raycnn.config.components import DATASETS, MODELS, OPTIMIZERS, SCHEDULES, TRANSFORMS
from raycnn.config.load import load_job
from raycnn.config.search import load_search
from tests.support.docs import PAGES, blocks, commands
from tests.support.jobs import ROOT
from tests.support.processes import Call, raycnn

MANUAL = [page for page in PAGES if page.parent == ROOT / "docs"]
SHORT = {"train": ("check",), "tune": ("tune", "--dry-run"), "verify": ("check",)}
"""What is run in place of a verb that takes long; tests/cli and others run it as it is."""


def named(page: Path) -> str:
    return page.stem


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of the quickstart, and a picture."""
    folder = tmp_path_factory.mktemp("manual")
    done = raycnn("train", "quickstart", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "some-pictures").mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "some-pictures" / "a.png")
    return folder


@pytest.mark.parametrize("page", MANUAL, ids=named)
def test_the_commands_of_a_page_run(
    page: Path, trained: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    for verb, *rest in commands(page):
        words = [verb, *rest] if "--print" in rest else [*SHORT.get(verb, [verb]), *rest]
        ended, _, err = call(*words)
        assert ended == 0, (words, err)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_that_need_a_cluster_have_arguments_that_exist(page: Path) -> None:
    group: Any = typer.main.get_command(app)
    for verb, *words in commands(page, "sh"):
        group.get_command(None, verb).make_context(verb, words)


PYTHON = [page for page in PAGES if blocks(page, "python")]


@pytest.mark.parametrize("page", PYTHON, ids=named)
def test_the_python_of_a_page_runs(
    page: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained)
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), {"__name__": page.stem})


def test_pages_have_python() -> None:
    assert len(PYTHON) > 2


SPECS = [
    pytest.param(text, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, text in enumerate(blocks(page, "yaml"))
]


@pytest.mark.parametrize("text", SPECS)
def test_a_spec_is_a_job_a_search_or_a_part_of_one(text: str, tmp_path: Path) -> None:
    keys = YAML(typ="safe").load(text)
    (tmp_path / "quickstart.yaml").write_text((ROOT / "jobs" / "quickstart.yaml").read_text())
    own = "name" in keys and "train" in keys
    if not own:
        text = f"extends: quickstart.yaml\n{text}"
    (tmp_path / "mine.yaml").write_text(text)
    if "tune" in keys:
        assert load_search(tmp_path / "mine.yaml").architectures
        return
    job = load_job(tmp_path / "mine.yaml")
    for choice in job.data.transforms:
        TRANSFORMS.options(choice)
    DATASETS.options(job.data)
    MODELS.options(job.model)
    OPTIMIZERS.options(job.optimizer)
    SCHEDULES.options(job.schedule)


def test_every_command_and_exit_code_is_in_the_manual() -> None:
    page = ROOT / "docs" / "cli.md"
    written = {words[0] for words in commands(page) + commands(page, "sh")}
    assert written == {*COMMANDS}
    codes = {kind.exit_code for kind in vars(errors).values() if hasattr(kind, "exit_code")}
    rows = {int(code) for code in re.findall(r"^\| (\d+) \|", page.read_text(), re.MULTILINE)}
    assert rows == codes | {0}


@pytest.mark.parametrize("page", [*PAGES, *ROOT.glob("*.md"), *ROOT.glob("*/README.md")], ids=str)
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target


def test_every_page_is_in_the_contents_of_the_readme() -> None:
    linked = re.findall(r"\(docs/([\w-]+\.md)\)", (ROOT / "README.md").read_text())
    assert {*linked} | {"README.md"} == {page.name for page in MANUAL}
