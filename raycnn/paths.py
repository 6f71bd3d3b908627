"""Where data and caches lie on this machine."""

import os
from contextlib import suppress
from pathlib import Path

from platformdirs import user_cache_path

from raycnn.errors import EnvironmentUnavailable


def data_root(root: str | None = None) -> Path:
    """Return the folder of data sets: `root`, else RAYCNN_DATA, else `data` here."""
    return Path(root or os.environ.get("RAYCNN_DATA") or "data").absolute()


def cache_folder() -> Path:
    """Return the folder for what can be made again: RAYCNN_CACHE, else the user's cache.

    Raises EnvironmentUnavailable for a user without a home.
    """
    if named := os.environ.get("RAYCNN_CACHE"):
        return Path(named)
    with suppress(RuntimeError):  # of a user whom the system does not know
        if (folder := Path(user_cache_path("raycnn"))).is_absolute():
            return folder
    raise EnvironmentUnavailable(
        "this user has no home folder, where decoded images would go: "
        "RAYCNN_CACHE=/some/folder names another place"
    )
