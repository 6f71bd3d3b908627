"""Run folders: what is written where, when, and found again.

The package itself can be called: `raycnn.runs()` lists all runs. A function of that name beside a
package of that name would be gone as soon as the package is imported.
"""

import sys
from os import PathLike
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, root: str | PathLike[str] = "runs") -> list[Any]:
        """Return all runs of a folder, by job and number."""
        from importlib import import_module

        return import_module("raycnn.api").runs(root)


sys.modules[__name__].__class__ = _Callable
