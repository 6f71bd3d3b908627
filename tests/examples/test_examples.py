"""What is in examples/ runs, as it stands there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.support.jobs import ROOT

EXAMPLES = ROOT / "examples"


def script(name: str, *words: object, cwd: Path) -> str:
    command = [sys.executable, EXAMPLES / name, *map(str, words)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_example_is_run_here() -> None:
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == {
        "README.md", "pictures-to-onnx.ipynb", "seeds.py", "sort_pictures.py",
    }  # fmt: skip


@pytest.mark.slow
def test_seeds_are_trained_and_their_network_sorts_pictures(tmp_path: Path) -> None:
    quick = ["workers.count=1", "workers.device=cpu", "train.epochs=1", "data.limit=200"]
    said = script("seeds.py", ROOT / "jobs/quickstart.yaml", *quick, cwd=tmp_path)
    assert "seed 2" in said and "±" in said
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        Image.new("L", (8, 8), 80 * number).save(tmp_path / "pictures" / f"{number}.png")
    script("sort_pictures.py", tmp_path / "runs/quickstart/3", "pictures", "sorted", cwd=tmp_path)
    assert sorted(path.name for path in (tmp_path / "sorted").rglob("*.png")) == [
        "0.png",
        "1.png",
        "2.png",
    ]


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=[pytest.mark.slow, pytest.mark.ray])])
@pytest.mark.filterwarnings("ignore")
def test_the_notebook_runs(tmp_path: Path, workers: int) -> None:
    """On two workers, Ray is started from the notebook's kernel, which runs an event loop."""
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    pytest.importorskip("onnxruntime")
    notebook = nbformat.read(EXAMPLES / "pictures-to-onnx.ipynb", 4)
    for cell in notebook.cells:
        changes = f"train__epochs=2, workers__count={workers}, workers__device='cpu'"
        cell.source = cell.source.replace("train__epochs=6", changes)
    kernel = client.NotebookClient(
        notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}}
    )
    kernel.execute(env=os.environ)
    outputs = [str(output) for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("<table>" in output for output in outputs)
    assert (tmp_path / "digits-onnx" / "model.onnx").is_file()
    assert (tmp_path / "runs" / "digits" / "1" / "report.html").is_file()
