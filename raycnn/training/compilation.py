"""Compile networks by torch.compile, and keep what was compiled for the next run."""

import os
import platform
from contextlib import suppress

from torch import nn

from raycnn.errors import EnvironmentUnavailable
from raycnn.paths import cache_folder

FOLDER_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"  # names the folder of torch's cache
FOLDER = "compiled"  # name of the folder of compiled networks in the cache folder


def compile_in_place(model: nn.Module) -> None:
    """Compile a network in place: wrappers use the same module, and names of weights stay.

    What was compiled goes to the cache folder, since torch's own choice, a folder of /tmp, may be
    empty after a restart; unless the environment names another, or it cannot be written.
    """
    with suppress(EnvironmentUnavailable, OSError):
        # Machines may share the cache folder, and code is compiled for the processor of one.
        folder = cache_folder() / FOLDER / platform.node()
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            os.environ.setdefault(FOLDER_VARIABLE, str(folder))
    # Networks meet few sizes of batches: full ones, and the last. One graph for any is slower.
    model.compile(dynamic=False)
