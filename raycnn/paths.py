"""The folders of data sets and caches on this machine.

Files are written with io.py; folders at a URI are in filesystem.py.
"""

import os
from contextlib import suppress
from pathlib import Path

from platformdirs import user_cache_path

from raycnn.errors import EnvironmentUnavailable


def data_root(root: str | None = None) -> Path:
    """Return the folder of data sets: `root`, else RAYCNN_DATA, else `./data`."""
    return Path(root or os.environ.get("RAYCNN_DATA") or "data").absolute()


def cache_folder() -> Path:
    """Return the cache folder: RAYCNN_CACHE, else the user's cache directory.

    Raises EnvironmentUnavailable for a user without a home folder.
    """
    if named := os.environ.get("RAYCNN_CACHE"):
        return Path(named).absolute()
    with suppress(RuntimeError):  # the user has no passwd entry
        if (folder := Path(user_cache_path("raycnn"))).is_absolute():
            return folder
    raise EnvironmentUnavailable(
        "this user has no home folder, where decoded images would go: set RAYCNN_CACHE to a folder"
    )
