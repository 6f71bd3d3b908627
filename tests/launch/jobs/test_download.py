"""What is copied from a cluster: whole and inside its folder, or not at all; see test_jobs.py too."""

import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raycnn.errors import ClusterError, EnvironmentUnavailable, SpecError
from raycnn.launch.jobs.client import JobDetails
from raycnn.launch.jobs.download import BEGIN, fetch


def packed(*members: tuple[str, bytes, bytes]) -> bytes:
    """A tar of names, contents, and what kind of thing each is."""
    made = BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, content, kind in members:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(content), "/etc/passwd"
            tar.addfile(info, BytesIO(content))
    return made.getvalue()


GOOD = packed(("1/job.yaml", b"x" * 5000, tarfile.REGTYPE))
Serve = Callable[[bytes], Any]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """A cluster whose one job, ended, has the folder /runs/tiny/1, packed so."""
    monkeypatch.chdir(tmp_path)

    def cluster(data: bytes) -> Any:
        job = JobDetails(status="SUCCEEDED", submission_id="id", driver_exit_code=0)
        said = f"Running entrypoint\n{BEGIN}\n".encode() + data
        return SimpleNamespace(
            server="http://h",
            find=lambda name: job,
            require_location=lambda job: "/runs/tiny/1",
            run=lambda command: job,
            output=lambda job: BytesIO(said),
        )

    return cluster


def test_a_copy_has_what_was_packed(serve: Serve, tmp_path: Path) -> None:
    assert fetch(serve(GOOD), "tiny") == Path("runs/tiny/1")
    assert (tmp_path / "runs/tiny/1/job.yaml").read_bytes() == b"x" * 5000


def test_a_run_at_a_uri_needs_no_copy(serve: Serve) -> None:
    cluster = serve(GOOD)
    cluster.require_location = lambda job: "s3://bucket/runs/tiny/1"
    with pytest.raises(SpecError, match="takes s3://bucket/runs/tiny/1"):
        fetch(cluster, "tiny")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        GOOD[:2000],
        b"no tar" * 500,
        packed(("../../../evil", b"x", tarfile.REGTYPE)),
        packed(("1/evil", b"", tarfile.SYMTYPE)),
        packed(("1/evil", b"", tarfile.CHRTYPE)),
    ],
    ids=["nothing", "cut", "no tar", "outside", "link to elsewhere", "device"],
)
def test_what_is_not_whole_or_leaves_its_folder_is_not_kept(
    serve: Serve, tmp_path: Path, data: bytes
) -> None:
    with pytest.raises(ClusterError, match="http://h: "):
        fetch(serve(data), "tiny")
    assert not [path for path in tmp_path.rglob("*") if not path.is_dir()]
    assert list((tmp_path / "runs/tiny").iterdir()) == []


@pytest.mark.parametrize(
    ("to", "said"),
    [
        ("there", "there already exists: set another folder with --to"),
        ("dangling", "dangling already exists"),
        ("file/below", "cannot write file/below"),
        ("a" * 300, "File name too long"),
    ],
)
def test_where_it_cannot_be_is_said(serve: Serve, tmp_path: Path, to: str, said: str) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to("nowhere")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(EnvironmentUnavailable, match=said):
        fetch(serve(GOOD), "tiny", Path(to))
    assert sorted(tmp_path.rglob("*")) == before
