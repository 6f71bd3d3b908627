"""The tests start hundreds of processes, which must not compile torch and Ray each time.

So bytecode is written even where the environment forbids it, as images of containers often do.
"""

import os
import sys

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
