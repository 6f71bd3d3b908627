"""Where data and caches lie on this machine."""

import os
from pathlib import Path

from platformdirs import user_cache_path


def data_root(root: str | None = None) -> Path:
    """Return the folder of data sets: `root`, else RAYCNN_DATA, else `data` here."""
    return Path(root or os.environ.get("RAYCNN_DATA") or "data").absolute()


def cache_folder() -> Path:
    """Return the folder for what can be made again: RAYCNN_CACHE, else the user's cache."""
    return Path(os.environ.get("RAYCNN_CACHE") or user_cache_path("raycnn"))
