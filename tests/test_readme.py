"""What the README tells people to type works, in the order it stands there."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raycnn.cli import app
from tests.conftest import ROOT, raycnn

README = (ROOT / "README.md").read_text()


def commands(shell: str = "bash") -> list[list[str]]:
    """The words of every `raycnn ...` line of the README's blocks; `sh` ones ask for a cluster."""
    lines = "\n".join(re.findall(rf"```{shell}\n(.*?)```", README, re.DOTALL)).splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[line.index("raycnn") + 1 :] for line in words if "raycnn" in line]


@pytest.mark.ray
def test_the_commands_of_the_readme_run(tmp_path: Path) -> None:
    (tmp_path / "jobs").symlink_to(ROOT / "jobs")
    (tmp_path / "some-pictures").mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "some-pictures" / "a.png")
    said = {}
    for words in commands():
        done = raycnn(*words, cwd=tmp_path)
        assert done.returncode == 0, (words, done.stderr)
        said[tuple(words)] = done.stdout
    first = said["train", "jobs/quickstart.yaml"]
    assert "starting Ray and its workers" in first
    accuracy = re.search(r"test ([\d.]+)% .* 357 of 357 images", first)
    assert accuracy and float(accuracy[1]) > 95


def test_every_verb_is_in_the_readme() -> None:
    written = {words[0] for words in commands() + commands("sh") if words}
    assert written == {command.name for command in app.registered_commands}


def test_the_spec_shown_in_the_readme_is_a_job(tmp_path: Path) -> None:
    from raycnn.config.load import load_job

    (tmp_path / "mine.yaml").write_text(re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)[0])
    assert load_job(tmp_path / "mine.yaml").workers.count == 2


def test_every_exit_code_is_in_the_readme() -> None:
    from raycnn import errors

    codes = {kind.exit_code for kind in vars(errors).values() if hasattr(kind, "exit_code")}
    rows = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    assert rows == codes | {0}


def test_ci_runs_the_readmes_test_command() -> None:
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "uv run pytest"
    assert re.search(r"^uv run pytest\b", README, re.MULTILINE)
