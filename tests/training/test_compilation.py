"""What is compiled, and where it is kept; that it computes the same is in test_step.py."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from raycnn.models.dropout import Dropout, seed_step
from raycnn.models.flops import count_flops
from raycnn.shape import Shape
from raycnn.training.compilation import FOLDER_VARIABLE, compile_in_place


def test_what_is_compiled_is_kept_in_the_cache_folder_unless_the_environment_names_another(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = []
    monkeypatch.setattr(
        nn.Module, "compile", lambda model, **_: seen.append(os.environ[FOLDER_VARIABLE])
    )
    monkeypatch.setenv(FOLDER_VARIABLE, "another")
    monkeypatch.setenv("RAYCNN_CACHE", str(tmp_path / "cache"))
    compile_in_place(nn.Identity())
    monkeypatch.delenv(FOLDER_VARIABLE)
    compile_in_place(nn.Identity())
    assert seen[0] == "another" and Path(seen[1]).is_dir()
    assert Path(seen[1]).is_relative_to(tmp_path / "cache")


def test_a_network_is_compiled_also_where_nothing_can_be_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = []
    monkeypatch.setattr(
        nn.Module, "compile", lambda model, **_: seen.append(os.environ.get(FOLDER_VARIABLE))
    )
    monkeypatch.setenv(FOLDER_VARIABLE, "")
    monkeypatch.delenv(FOLDER_VARIABLE)
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAYCNN_CACHE", str(tmp_path / "file"))
    compile_in_place(nn.Identity())
    assert seen == [None]


def test_operations_are_counted_without_compiling_the_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Torch would compile the counter with it, an operation at a time."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    monkeypatch.setattr(torch, "compile", lambda call, **_: lambda image: pytest.fail("compiled"))
    compile_in_place(network)
    assert count_flops(network, Shape(1, 2, 2)) == 2 * 4 * 3


def test_a_network_is_compiled_once_for_each_size_of_batch_whichever_rows_dropout_masks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graphs: list[list[Any]] = []

    def kept(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append([n for one in inputs for n in one.shape])
        return graph.forward

    compile = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda model, **o: compile(model, backend=kept, **o))
    network = nn.Sequential(nn.Linear(4, 4), Dropout(0.5), nn.Linear(4, 2))
    compile_in_place(network)
    counts = []
    for size in (2, 3, 2):
        for first in range(0, 12, size):
            seed_step(0, first, 12, torch.device("cpu"))
            network(torch.ones(size, 4))
        counts.append(len(graphs))
    assert 0 < counts[0] and counts[2] == counts[1] == 2 * counts[0]
    assert all(type(n) is int for shapes in graphs for n in shapes), "no graph for any size"
