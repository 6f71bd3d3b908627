"""The files of Ray's cluster launcher, by its own validator."""

from fnmatch import fnmatch
from typing import Any

import jsonschema
import pytest
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.cluster.conftest import CLUSTER, read
from tests.conftest import ROOT

FILES = ["onprem", "aws"]


def prepared(name: str) -> dict[str, Any]:
    return prepare_config(read(CLUSTER / f"{name}.yaml"))


@pytest.mark.parametrize("name", FILES)
def test_ray_takes_the_file_and_nothing_misspelt(name: str) -> None:
    config = prepared(name)
    validate_config(config)
    with pytest.raises(jsonschema.ValidationError, match="worker_count"):
        validate_config(config | {"worker_count": 1})


@pytest.mark.parametrize("name", FILES)
def test_a_launched_cluster_asks_for_its_token_and_is_closed(name: str) -> None:
    config = prepared(name)
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
    anywhere = [p for p in prepared(name)["rsync_exclude"] if not p.startswith("/")]
    parts = {
        part for path in (ROOT / "raycnn").rglob("*.py") for part in path.relative_to(ROOT).parts
    }
    assert not [part for part in parts if any(fnmatch(part, pattern) for pattern in anywhere)]
