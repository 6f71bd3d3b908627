"""Harm to a run: a worker that meets with it, and a disk that is soon full."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from raycnn.runs.directory import Run
from tests.support.processes import workers

# At its 30th batch rank 1 does `harm()`. What follows "-c" is run as `python -m raycnn` would be.
CODE = """
import itertools, os, sys, time
from raycnn.cli import main
from raycnn.data.transforms.pipeline import Pipeline
from raycnn.errors import DataError

def harm():
    {harm}

batches, augment = itertools.count(), Pipeline.__call__

def harmed(self, images, numbers):
    if os.environ["RANK"] == "1" and next(batches) == 30:
        harm()
    return augment(self, images, numbers)

Pipeline.__call__ = harmed
main()
"""


def two_with(harm: str, run: Run, folder: Path) -> list[subprocess.Popen[str]]:
    """Two workers train the run, and rank 1 comes to harm."""
    return workers(2, run.folder, cwd=folder, verb="resume", program=("-c", CODE.format(harm=harm)))


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    """A disk of its own, of this size."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a disk")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)
