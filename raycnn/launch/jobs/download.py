"""Copy a run folder from a cluster's head node to this machine, through its job server.

A job on the head node writes the folder as a tar archive to its output, which is downloaded. A
local folder of the same path may be a different one, so it is never used instead.
"""

import os
import shlex
import tarfile
from contextlib import suppress
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from urllib3.exceptions import HTTPError

from raycnn.errors import ClusterError, EnvironmentUnavailable, SpecError
from raycnn.filesystem import is_uri
from raycnn.launch.jobs.client import Cluster, JobDetails

BEGIN = "here it begins"
NOT_THERE = 4
TRIES = 300
LOG = '"$(readlink /proc/$$/fd/1)"'  # the file that a job's output goes to


def fetch(cluster: Cluster, name: str, to: Path | None = None) -> Path:
    """Copy the folder of a run or a search atomically; return the local path.

    Without `to` it becomes runs/job/n, or the next number where that exists. Raises ClusterError
    when there is no such folder, or the connection ends; EnvironmentUnavailable when `to` exists,
    cannot be written, or the run is being trained; SpecError when the run is at a URI.
    """
    folder = cluster.require_location(cluster.find(name))
    if is_uri(folder):
        raise SpecError(f"{name} needs no copy: every command that can reach it takes {folder}")
    job = cluster.find(folder)
    if not job.ended:
        raise EnvironmentUnavailable(f"{folder} is being trained by {job.submission_id}")
    if to and os.path.lexists(to):
        raise EnvironmentUnavailable(f"{to} already exists: set another folder with --to")
    to = to or _free(Path("runs", *PurePosixPath(folder).parts[-2:]))
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".fetch-", dir=to.parent) as temporary:
            _copy(cluster, folder, Path(temporary))
            (Path(temporary) / PurePosixPath(folder).name).rename(to)
    except OSError as error:
        raise EnvironmentUnavailable(f"cannot write {to}: {error}") from None
    return to


def _free(folder: Path) -> Path:
    """Return the folder, or if it exists, one with the next free number."""
    if not os.path.lexists(folder):
        return folder
    taken = [int(path.name) for path in folder.parent.iterdir() if path.name.isdecimal()]
    return folder.with_name(str(max(taken, default=0) + 1))


def _copy(cluster: Cluster, folder: str, into: Path) -> None:
    packed = _pack(cluster, folder)
    try:
        _unpack(cluster, packed, into)
    finally:
        # The archive is in Ray's log folder, and would stay there until the cluster ends.
        with suppress(ClusterError):
            cluster.run(f'rm -f "$(dirname {LOG})/job-driver-{packed.submission_id}.log"')


def _pack(cluster: Cluster, folder: str) -> JobDetails:
    above, name = str(PurePosixPath(folder).parent), PurePosixPath(folder).name
    packed = cluster.run(
        f"test -d {shlex.quote(folder)} || exit {NOT_THERE}; "
        # Ray writes a line of its own to that file, possibly with a delay.
        f"for i in $(seq {TRIES}); do grep -q '^Running entrypoint' {LOG} && break; "
        "sleep 0.1; done; "
        f"echo {BEGIN!r}; "
        f"exec tar -cf - -C {shlex.quote(above)} {shlex.quote(name)}"
    )
    if packed.driver_exit_code == NOT_THERE:
        raise ClusterError(f"the head node of {cluster.server} has no {folder}")
    if packed.driver_exit_code != 0:
        raise ClusterError(
            f"{folder} could not be read completely: it may have changed during the copy"
        )
    return packed


def _unpack(cluster: Cluster, packed: JobDetails, into: Path) -> None:
    try:
        with cluster.output(packed) as stream:
            while (line := stream.readline()) and line != f"{BEGIN}\n".encode():
                pass
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                tar.extractall(into, filter="data")
    except (tarfile.TarError, HTTPError) as error:
        raise ClusterError(f"{cluster.server}: the copy was cut off: {error}") from None
