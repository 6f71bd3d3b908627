"""A run's folder, copied from a cluster's head node to here through its job server alone.

A job there packs it into what it writes, and that is downloaded. A folder of the same name that is
seen from here may be another one, and is not looked at.
"""

import os
import shlex
import tarfile
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from raycnn.errors import ClusterError, EnvironmentUnavailable
from raycnn.launch.jobs.client import Cluster, JobDetails

BEGIN = "here it begins"
NOT_THERE = 4
TRIES = 300
LOG = '"$(readlink /proc/$$/fd/1)"'  # where what a job writes goes to


def fetch(cluster: Cluster, name: str, to: Path | None = None) -> Path:
    """Copy the folder of a run, or a search, whole or not at all; returns where to.

    Without `to` it becomes runs/job/n, or where that is taken the next number. Raises ClusterError
    when it is not there, or the connection ends; EnvironmentUnavailable when something is at `to`
    already, when it cannot be written, or while it is trained.
    """
    _, folder = cluster.find(name)
    job, _ = cluster.find(folder)
    if not job.status.is_terminal():
        raise EnvironmentUnavailable(f"{folder} is being trained by {job.submission_id}")
    if to and os.path.lexists(to):
        raise EnvironmentUnavailable(f"{to} is there already: --to names another folder")
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
    """Return the folder, or if there is one, the next number beside it that is free."""
    if not os.path.lexists(folder):
        return folder
    taken = [int(path.name) for path in folder.parent.iterdir() if path.name.isdigit()]
    return folder.with_name(str(max(taken, default=0) + 1))


def _copy(cluster: Cluster, folder: str, into: Path) -> None:
    packed = _pack(cluster, folder)
    try:
        _unpack(cluster, packed, into)
    finally:
        # What was packed lies in Ray's folder of logs, and would until the cluster ends.
        with suppress(ClusterError):
            cluster.run(f'rm -f "$(dirname {LOG})/job-driver-{packed.submission_id}.log"')


def _pack(cluster: Cluster, folder: str) -> JobDetails:
    above, name = str(PurePosixPath(folder).parent), PurePosixPath(folder).name
    packed = cluster.run(
        f"test -d {shlex.quote(folder)} || exit {NOT_THERE}; "
        # Ray writes a line of its own there, now or somewhat later.
        f"for i in $(seq {TRIES}); do grep -q '^Running entrypoint' {LOG} && break; "
        "sleep 0.1; done; "
        f"echo {BEGIN!r}; "
        f"exec tar -cf - -C {shlex.quote(above)} {shlex.quote(name)}"
    )
    if packed.driver_exit_code == NOT_THERE:
        raise ClusterError(f"the head node of {cluster.server} has no {folder}")
    if packed.driver_exit_code != 0:
        raise ClusterError(f"{folder} could not be read whole: has it changed meanwhile?")
    return packed


def _unpack(cluster: Cluster, packed: JobDetails, into: Path) -> None:
    try:
        with cluster.output(packed) as stream:
            while (line := stream.readline()) and line != f"{BEGIN}\n".encode():
                pass
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                tar.extractall(into, filter="data")
    except (tarfile.TarError, HTTPException, ConnectionError, TimeoutError) as error:
        raise ClusterError(f"{cluster.server}: the copy was cut off: {error}") from None
