"""The walks of cluster/README.md: short, and of things that exist."""

import re
import shlex

import pytest
from typer.main import get_command

from raycnn.cli.commands import app
from raycnn.config.load import load_job
from tests.support.cluster import CLUSTER
from tests.support.jobs import ROOT

README = (CLUSTER / "README.md").read_text()
WALKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
LINES = [line for walk in WALKS for line in walk.splitlines()]


def test_no_walk_is_longer_than_nine_commands() -> None:
    assert len(WALKS) >= 4 and all(len(walk.splitlines()) < 10 for walk in WALKS)


def test_every_file_that_is_named_exists() -> None:
    named = re.findall(r"(?:cluster|jobs)/[\w./-]+\w", "\n".join(LINES))
    assert len(named) > 8 and all((ROOT / name).is_file() for name in named)
    shown = {path.name for path in CLUSTER.iterdir() if path.suffix == ".yaml"}
    assert all(name in README for name in shown)


@pytest.mark.parametrize("line", [line for line in LINES if re.search(r"\braycnn \w", line)])
def test_its_raycnn_commands_are_understood(line: str) -> None:
    words = shlex.split(line, comments=True)
    words = words[words.index("raycnn") + 1 :]
    verb, *words = words
    command = get_command(app).get_command(None, verb)
    given = command.make_context("raycnn", list(words)).params
    if job := given.get("job"):
        load_job(ROOT / job, given.get("changes") or [])
