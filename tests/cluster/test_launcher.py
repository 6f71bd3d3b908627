"""The files of Ray's cluster launcher, against the schema that Ray brings."""

import json
from fnmatch import fnmatch
from importlib.resources import files
from typing import Any

import jsonschema
import pytest

from tests.support.cluster import CLUSTER, read
from tests.support.jobs import ROOT

FILES = ["onprem", "aws"]


def config_of(name: str) -> dict[str, Any]:
    """What stands in the file; on machines of one's own Ray turns `min_workers` into a node type."""
    config = read(CLUSTER / f"{name}.yaml")
    if config["provider"]["type"] == "local":
        del config["min_workers"]
    return config


@pytest.mark.parametrize("name", FILES)
def test_ray_takes_the_file_and_nothing_misspelt(name: str) -> None:
    schema = json.loads(files("ray").joinpath("autoscaler/ray-schema.json").read_text())
    config = config_of(name)
    jsonschema.validate(config, schema)
    with pytest.raises(jsonschema.ValidationError, match="worker_count"):
        jsonschema.validate(config | {"worker_count": 1}, schema)


@pytest.mark.parametrize("name", FILES)
def test_a_launched_cluster_asks_for_its_token_and_is_closed(name: str) -> None:
    config = config_of(name)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"]
    for who in ("head", "worker"):
        _, start = config[f"{who}_start_ray_commands"]
        assert "RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 ray start" in start
    head = config["head_start_ray_commands"][1]
    assert "--dashboard-host=127.0.0.1" in head


@pytest.mark.parametrize("name", FILES)
def test_all_of_the_package_is_copied(name: str) -> None:
    """rsync takes a pattern without a leading slash for a name at any depth."""
    anywhere = [p for p in config_of(name)["rsync_exclude"] if not p.startswith("/")]
    parts = {
        part for path in (ROOT / "raycnn").rglob("*.py") for part in path.relative_to(ROOT).parts
    }
    assert not [part for part in parts if any(fnmatch(part, pattern) for pattern in anywhere)]
