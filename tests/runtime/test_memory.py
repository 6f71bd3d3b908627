"""Memory available to this process."""

import resource

import pytest

from raycnn.errors import DataError
from raycnn.runtime import memory


def test_a_limit_of_the_address_space_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory.available() > 0
    monkeypatch.setattr(resource, "getrlimit", lambda which: (2**20, 2**20))
    assert memory.available() == 0
    with pytest.raises(DataError, match="1\\.0 GB"):
        memory.require_memory(10**9, "it")
