"""Start a submitted job: this file is sent with it, and run on the cluster by any Python 3.

    bootstrap.py VERSION FOLDER WORD...

Re-executes itself with the Python that runs Ray on that node, since the job's PATH may lead to
another one: the Python of the environment from which the parent process has loaded Ray.

Runs `raycnn WORD...` in the folder, and warns when raycnn's version there is not VERSION. A word
that names a file sent along stands for that file.
"""

import os
import runpy
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

UNFIT = 3
LIBRARY = "/site-packages/ray/"  # in the paths of the libraries that Ray's processes have mapped


def interpreter() -> str:
    """Return the path of the Python interpreter of the parent process."""
    try:
        mapped = Path(f"/proc/{os.getppid()}/maps").read_text().split()
        libraries = [path.partition(LIBRARY)[0] for path in mapped if LIBRARY in path]
    except OSError:  # no Linux
        libraries = []
    for library in libraries:  # PREFIX/lib/python3.11
        python = Path(library).parent.parent / "bin" / "python"
        if python.is_file():
            return str(python)
    return sys.executable


def bootstrap(submitted: str, folder: str, *words: str) -> None:
    try:
        installed = version("raycnn")
    except PackageNotFoundError:
        print(f"raycnn: {sys.executable} has no raycnn: --with-code sends it along", flush=True)
        sys.exit(UNFIT)
    if installed != submitted:
        print(
            f"raycnn is {installed} here, and {submitted} where the job was submitted", flush=True
        )
    sent = {path.name: path for path in Path.cwd().iterdir() if path.is_file()}
    os.chdir(Path(folder).expanduser())
    sys.argv = ["raycnn", *(str(sent.get(word, word)) for word in words)]
    runpy.run_module("raycnn", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    if "RAYCNN_INTERPRETER" not in os.environ:
        os.environ["RAYCNN_INTERPRETER"] = python = interpreter()
        os.execv(python, [python, *sys.argv])
    bootstrap(*sys.argv[1:])
