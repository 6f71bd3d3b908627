"""Commands that compute nothing answer at once: they import neither torch nor Ray."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from raycnn.config import components
from raycnn.config.registry import Registry

TABLES: list[Registry[object]] = [
    table for table in vars(components).values() if isinstance(table, Registry)
]
PROBE = """
import sys
from raycnn.cli import main
sys.argv = ["raycnn", *sys.argv[1:]]
try:
    main()
finally:
    watched = {"torch", "torch._dynamo", "ray", "sklearn", "pyarrow"}
    print("imported:", watched & set(sys.modules), file=sys.stderr)
"""


def probe(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command; the last line of stderr names the slow packages that it imported."""
    return subprocess.run(
        [sys.executable, "-c", PROBE, *words], cwd=folder, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    "words",
    [
        ["--help"], ["--version"], ["list"], ["list", "runs"], ["list", "recipes"], ["schema"],
        ["train", "--help"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_command_without_tensors_imports_neither_torch_nor_ray(
    words: list[str], tmp_path: Path
) -> None:
    done = probe(*words, folder=tmp_path)
    assert done.returncode == 0 and "imported: set()" in done.stderr, done.stderr


@pytest.mark.parametrize("words", [["status"], ["logs", "a"], ["stop", "a"], ["list", "--jobs"]])
def test_a_client_of_a_cluster_imports_neither_torch_nor_ray(
    words: list[str], tmp_path: Path
) -> None:
    done = probe(*words, "--address", "http://127.0.0.1:1", folder=tmp_path)
    assert done.returncode == 5 and "imported: set()" in done.stderr, done.stderr


@pytest.mark.parametrize(
    "words", [["summary", "lenet", "--image", "1x28x28"], ["train", "quickstart", "train.epochs=1"]]
)
def test_operations_are_counted_without_torchs_compiler(words: list[str], tmp_path: Path) -> None:
    """It takes longer to import than the rest of either command."""
    done = probe(*words, folder=tmp_path)
    assert done.returncode == 0 and "'torch'" in done.stderr, done.stderr
    assert "torch._dynamo" not in done.stderr


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.kind)
def test_options_read_from_source_are_those_of_the_builders(table: Registry[object]) -> None:
    script = (
        "import json, sys; from raycnn.config import components; "
        f"table = components.{next(k for k, v in vars(components).items() if v is table)}; "
        "print(json.dumps({n: table.described(n).model_json_schema() for n in table.names()}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert json.loads(done.stdout) == {
        name: json.loads(json.dumps(table.schema(name).model_json_schema()))
        for name in table.names()
    }


NOWHERE = "nowhere_to_be_found"


@pytest.fixture
def broken_package(tmp_path: Path) -> Path:
    """A package with an entry point for networks, which cannot be imported."""
    about = tmp_path / "site" / "their_nets-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: their-nets\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[raycnn.models]\nbroken_net = their_nets:broken_net\nuntyped = untyped:untyped\n"
        "[raycnn.datasets]\nbroken_set = their_nets:broken_set\n"
    )
    (tmp_path / "site" / "their_nets.py").write_text(f"import {NOWHERE}\n")
    (tmp_path / "site" / "untyped.py").write_text("def untyped(shape, classes, *, width=8): ...\n")
    return tmp_path / "site"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["list", "models"], 0),
        (["schema"], 0),
        (["train", "quickstart", "--print"], 0),
        (["check", "quickstart", "model=broken_net"], 3),
        (["check", "quickstart", "data=broken_set"], 3),
        (["check", "quickstart", "model=untyped"], 3),
    ],
)
def test_a_package_that_cannot_be_imported_is_named_and_the_rest_works(
    broken_package: Path, tmp_path: Path, words: list[str], code: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "raycnn", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(broken_package)},
        capture_output=True,
        text=True,
    )
    said = done.stdout + done.stderr
    assert done.returncode == code and "Traceback" not in said, said
    if "schema" not in words and "--print" not in words:
        assert "their-nets" in said
        assert ("the option width has no type" if "model=untyped" in words else NOWHERE) in said


def test_an_old_command_is_answered_with_the_new_one() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "raycnn", "parity"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "compare-devices" in done.stderr
