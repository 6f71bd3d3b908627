"""A file is written whole or stays as it was; a lock is one process's."""

import subprocess
import sys
from pathlib import Path

import pytest

from raycnn import io
from raycnn.errors import EnvironmentUnavailable


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_replaced_whole(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "a.json"
    io.write_json(path, {"n": 1}, durable)
    assert io.read_json(path) == {"n": 1}
    with pytest.raises(RuntimeError), io.atomic_path(path) as temporary:
        temporary.write_text('{"n": 2')
        raise RuntimeError
    assert io.read_json(path) == {"n": 1} and [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("durable", [False, True])
def test_a_folder_is_replaced_whole(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "a"
    for name in ("old", "new"):
        with io.atomic_folder(path, durable) as temporary:
            (temporary / "below").mkdir()
            (temporary / "below" / name).touch()
    assert [*path.rglob("*")] == [path / "below", path / "below" / "new"]
    with pytest.raises(RuntimeError), io.atomic_folder(path) as temporary:
        (temporary / "part").touch()
        raise RuntimeError
    assert (path / "below" / "new").exists() and [*tmp_path.iterdir()] == [path]


def test_what_a_killed_process_left_of_a_folder_is_not_in_the_next(tmp_path: Path) -> None:
    kill = "import os, pathlib, raycnn.io as io\n"
    kill += f"with io.atomic_folder(pathlib.Path({str(tmp_path / 'a')!r})) as folder:\n"
    kill += "    (folder / 'left').touch()\n    os._exit(1)"
    assert subprocess.run([sys.executable, "-c", kill]).returncode == 1
    assert not (tmp_path / "a").exists() and len([*tmp_path.iterdir()]) == 1
    with io.atomic_folder(tmp_path / "a") as folder:
        (folder / "whole").touch()
    assert [*tmp_path.rglob("*")] == [tmp_path / "a", tmp_path / "a" / "whole"]


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "3", "null"])
def test_torn_or_foreign_json_reads_as_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert io.read_json(tmp_path / "a.json") is None


def test_a_line_cut_short_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    io.append_line(path, "one")
    with path.open("a") as file:
        file.write("tw")
    io.append_line(path, "three")
    assert path.read_text().splitlines() == ["one", "tw", "three"]


def test_a_lock_excludes_other_processes(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    ask = f"import pathlib, raycnn.io as io; print(io.is_locked(pathlib.Path({str(path)!r})))"
    take = f"""
import pathlib, raycnn.io as io
with io.lock(pathlib.Path({str(path)!r}), "taken"):
    print("held", flush=True)
    input()
"""
    with io.lock(path, "taken"):
        assert subprocess.check_output([sys.executable, "-c", ask], text=True) == "True\n"
    assert not io.is_locked(path)
    other = subprocess.Popen(
        [sys.executable, "-c", take], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout and other.stdout.readline() == "held\n"
    with pytest.raises(EnvironmentUnavailable, match="taken"), io.lock(path, "taken", 0.1):
        pass
    other.communicate("\n")
