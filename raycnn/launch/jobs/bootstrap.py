"""Begins a submitted job: sent along with it, and run on the cluster by the cluster's own Python.

    begin.py VERSION FOLDER WORD...

Runs `raycnn WORD...` in the folder, and says when the raycnn there is not the VERSION here. A word
that names a file beside this one means that file.
"""

import os
import runpy
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

UNFIT = 3


def bootstrap(own: str, folder: str, *words: str) -> None:
    try:
        there = version("raycnn")
    except PackageNotFoundError:
        print(f"raycnn: {sys.executable} has no raycnn: --with-code sends it along", flush=True)
        sys.exit(UNFIT)
    if there != own:
        print(f"raycnn is {there} here, and {own} where the job was submitted", flush=True)
    sent = {path.name: path for path in Path.cwd().iterdir() if path.is_file()}
    os.chdir(Path(folder).expanduser())
    sys.argv = ["raycnn", *(str(sent.get(word, word)) for word in words)]
    runpy.run_module("raycnn", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    bootstrap(*sys.argv[1:])
