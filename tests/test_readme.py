"""The first screen of the README is true as it stands."""

import re
from pathlib import Path

import pytest

from raycnn.config.load import load_job
from tests.support.docs import blocks, commands
from tests.support.jobs import ROOT
from tests.support.processes import raycnn

README = ROOT / "README.md"


@pytest.mark.ray
def test_its_two_commands_give_the_same_result_in_one_process_and_on_ray(tmp_path: Path) -> None:
    first, second = commands(README)
    alone = raycnn(*first, cwd=tmp_path)
    on_ray = raycnn(*second, cwd=tmp_path)
    assert (alone.returncode, on_ray.returncode) == (0, 0), alone.stderr + on_ray.stderr
    said = re.search(r"test ([\d.]+)% .* 357 of 357 images", alone.stdout)
    assert said and float(said[1]) > 95
    assert said[0] in on_ray.stdout and said[0] in README.read_text()


def test_the_spec_it_shows_is_a_job(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(blocks(README, "yaml")[0])
    assert load_job(tmp_path / "mine.yaml").workers.count == 2


def test_it_fits_on_a_screen_and_the_contents() -> None:
    assert len(README.read_bytes()) < 6_000


def test_ci_runs_its_test_command() -> None:
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "uv run pytest"
    assert re.search(r"^uv run pytest\b", README.read_text(), re.MULTILINE)
