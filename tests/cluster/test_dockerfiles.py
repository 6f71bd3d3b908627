"""The Dockerfiles, as far as they can be looked at without an engine."""

import re
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

from tests.support.cluster import CLUSTER, locked
from tests.support.jobs import ROOT

FILES = sorted((CLUSTER / "docker").iterdir())
KNOWN = {"ARG", "FROM", "RUN", "WORKDIR", "COPY", "USER", "ENV", "CMD"}

Lines = list[tuple[str, str]]


def instructions(path: Path) -> Lines:
    """Instruction and the rest, continued lines joined, comments left out."""
    text = re.sub(r"^#.*\n", "", path.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [
        (word, rest.strip())
        for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)
    ]


def args(lines: Lines) -> dict[str, str]:
    return dict(rest.split("=", 1) for word, rest in lines if word == "ARG")


@pytest.fixture(params=FILES, ids=lambda path: path.suffix[1:])
def lines(request: pytest.FixtureRequest) -> Lines:
    return instructions(request.param)


def test_there_is_an_image_for_every_kind_of_device() -> None:
    assert [path.name for path in FILES] == [
        f"Dockerfile.{kind}" for kind in ("ascend", "cpu", "cuda")
    ]


def test_only_known_instructions_on_a_pinned_base(lines: Lines) -> None:
    words = [word for word, _ in lines]
    assert set(words) <= KNOWN
    assert next(word for word in words if word != "ARG") == "FROM" and words.count("FROM") == 1
    base = next(rest for word, rest in lines if word == "FROM")
    image, _, tag = re.sub(r"\$\{(\w+)\}", lambda name: args(lines)[name[1]], base).rpartition(":")
    assert image and re.match(r"\d+\.\d+\.\d+-", tag)
    assert not any("latest" in rest for _, rest in lines)


def test_a_build_argument_is_used_and_every_package_has_a_version(lines: Lines) -> None:
    text = "\n".join(rest for word, rest in lines if word != "ARG")
    for name in args(lines):
        assert f"${{{name}}}" in text
    used = set(re.findall(r"\$\{(\w+)\}", text))
    assert used == args(lines).keys()
    for install in re.findall(r"pip install ([^&\n]*)", text):
        packages = [word for word in install.split() if not word.startswith("-")]
        assert all("==" in word or word in (".", "/tmp/requirements.txt") for word in packages)


def test_versions_are_those_that_are_locked(lines: Lines) -> None:
    """Ray's among them: packages are taken from uv.lock, as long as it fits pyproject.toml."""
    for name, version in args(lines).items():
        if name in ("TORCH", "TORCHVISION"):
            assert version == locked(name.lower())
    export = next(rest for word, rest in lines if "uv export" in rest)
    assert "--frozen" in export and ("--extra npu" in export) == ("cann" in str(lines))
    words = export.split("&&")[0].replace("RUN ", "").split()
    done = subprocess.run(
        [*words[: words.index("-o")], "--offline"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"\nray=={locked('ray')}\n" in done.stdout
    assert ("\ntorch==" in done.stdout) == ("--prune" not in words)
    assert ("nvidia-" in done.stdout) == ("--prune" not in words)


def test_what_is_copied_exists_and_is_not_kept_out(lines: Lines) -> None:
    kept_in = [
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"
    ]
    copied = [source for word, rest in lines if word == "COPY" for source in rest.split()[:-1]]
    for source in copied:
        assert (ROOT / source).exists() and any(fnmatch(source, pattern) for pattern in kept_in)
    assert sorted(kept_in) == sorted(copied)


def test_nobody_is_root_and_nothing_is_secret(lines: Lines) -> None:
    users = [rest for word, rest in lines if word == "USER"]
    assert users == ["1000"] and lines.index(("USER", "1000")) > max(
        index for index, (word, _) in enumerate(lines) if word == "RUN"
    )
    settings = [rest for word, rest in lines if word in ("ARG", "ENV")]
    assert not re.search(r"token|secret|password|key", " ".join(settings), re.IGNORECASE)
    assert any("RAY_USAGE_STATS_ENABLED=0" in setting for setting in settings)
