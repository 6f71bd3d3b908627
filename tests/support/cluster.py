"""The files of cluster/, and the versions that uv.lock has."""

import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tests.support.jobs import ROOT

CLUSTER = ROOT / "cluster"


def read(path: Path) -> Any:
    return YAML(typ="safe").load(path)


def locked(package: str) -> str:
    """The version that uv.lock has of it."""
    text = (ROOT / "uv.lock").read_text()
    (version,) = re.findall(rf'^name = "{package}"\nversion = "(.+)"', text, re.MULTILINE)
    return str(version)
