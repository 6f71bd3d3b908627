"""Run folders: layout, storage, recording and lookup.

The package is callable: `raycnn.runs()` lists all runs. A function of this name would be replaced
by the package as soon as that is imported.
"""

import sys
from os import PathLike
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, root: str | PathLike[str] = "runs") -> list[Any]:
        """Return all runs in a folder, sorted by job and number."""
        from importlib import import_module

        return import_module("raycnn.api").runs(root)


sys.modules[__name__].__class__ = _Callable
