"""A client of Ray Jobs: submit a spec to a cluster, and follow, stop and find its jobs.

It only talks to the cluster's job server (http://host:8265), so that a tunnel to one port is
enough, by its REST interface, so that the cluster may run another version of Ray. Ray is imported
only to upload files. On the cluster a job is an ordinary `raycnn train`, `resume` or `tune` on the
head node, started in the home folder of the user who started Ray: relative paths are below it.
"""

import getpass
import os
import re
import secrets
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import datetime, timezone
from enum import Enum
from importlib.metadata import distribution
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import urlencode, urlsplit

import requests
from urllib3 import HTTPResponse

import raycnn
from raycnn.config import yaml_file
from raycnn.config.schema import JobSpec, Workers
from raycnn.config.search import TuneSpec
from raycnn.errors import ClusterError, SpecError, first_line, unknown
from raycnn.launch.jobs import bootstrap, upload
from raycnn.launch.ray.resources import Node, kind_of, resources_per_worker
from raycnn.launch.ray.token import PROBE_S, TOKEN
from raycnn.launch.ray.token import token as own_token

PORT = 8265  # default port of the job server
REQUEST_TIMEOUT_S = 30  # timeout of a request
OUTAGE_S = 60  # how long the server may be unreachable while a job is followed
POLL_INTERVAL_S = 0.4  # polling interval
STOP_S = 120  # for a stopped job to save its state; Ray's default of 3 s is too short
DOWNLOAD_S = 24 * 3600
RAYS_OWN = re.compile(
    r"^(Running entrypoint for job .*|.* -- Runtime env is setting up\.)\n", re.MULTILINE
)
FOLDER = re.compile(
    r"^(?:run|search) (/.+)$", re.MULTILINE
)  # the line that each prints when it starts


def server_of(address: str | None) -> str | None:
    """Return the job server's URL: the address, else RAYCNN_ADDRESS or RAY_ADDRESS, else None.

    Raises SpecError for an invalid URL.
    """
    text = address or os.environ.get("RAYCNN_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if not text:
        return None
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:  # an incomplete IPv6 address, or an invalid port
        port = 0
    if port == 0 or parts.scheme not in ("http", "https") or not parts.hostname or text == "auto":
        raise SpecError(f"{text!r} is no address of a job server, such as http://host:{PORT}")
    return url.rstrip("/")


def map_jobs(asked: JobSpec | TuneSpec, change: Callable[[JobSpec], JobSpec]) -> JobSpec | TuneSpec:
    """Return the job, or the search with each of its jobs, changed by `change`."""
    if isinstance(asked, JobSpec):
        return change(asked)
    changed = [one.model_copy(update={"job": change(one.job)}) for one in asked.architectures]
    return asked.model_copy(update={"architectures": changed})


class JobStatus(Enum):
    """The status of a job, as Ray's job server reports it."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"

    def is_terminal(self) -> bool:
        return self not in (JobStatus.PENDING, JobStatus.RUNNING)


@dataclass(frozen=True)
class JobDetails:
    """A job as the server describes it; fields that other Ray versions add are ignored."""

    status: JobStatus
    submission_id: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    message: str | None = None
    start_time: int | None = None
    """Milliseconds since 1970."""
    driver_exit_code: int | None = None
    driver_node_id: str | None = None

    @classmethod
    def parse(cls, tree: dict[str, Any]) -> "JobDetails":
        known = {f.name: tree[f.name] for f in fields(cls) if tree.get(f.name) is not None}
        return cls(**known | {"status": JobStatus(tree["status"])})


class Cluster:
    """A Ray cluster, accessed only through its job server."""

    def __init__(self, server: str, token: str | None = None):
        """Connect. Raises ClusterError when no server answers, or it rejects the token."""
        self.server = server
        secret = token or own_token()
        self._headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        self.ray_version = str(self._get("/api/version", PROBE_S)["ray_version"])

    def nodes(self) -> list[Node]:
        return [Node(node["node_ip"], node["resources_total"]) for node in self._alive()]

    def jobs(self) -> list[JobDetails]:
        """Return the jobs that raycnn submitted, oldest first."""
        found = map(JobDetails.parse, self._get("/api/jobs/"))
        own = [job for job in found if "raycnn" in job.metadata]
        return sorted(own, key=lambda job: job.start_time or 0)

    def job(self, name: str) -> JobDetails:
        """Return a job by its id. Raises SpecError, with the nearest id, when there is none."""
        jobs = self.jobs()
        found = next((job for job in jobs if job.submission_id == name), None)
        if not found:
            raise SpecError(self._unknown(name, jobs))
        return found

    def submit(self, asked: JobSpec | TuneSpec, *, folder: str = "~", code: bool = False) -> str:
        """Start a job or a search on the cluster, in `folder`; return its id.

        With `code` it runs this version of raycnn instead of the cluster's. Raises ClusterError,
        with a table of the nodes, when its workers do not fit.
        """
        nodes = self.nodes()
        for workers in _asked(asked):
            resources_per_worker(workers, kind_of(workers, nodes), nodes)
        with TemporaryDirectory() as sent:
            here = map_jobs(asked, lambda job: job.change({"workers.address": None}))
            verb = _write(here, Path(sent))
            return self._begin(asked.name, [verb, "job.yaml"], Path(sent), folder, code)

    def resume(self, name: str, changes: list[str], *, code: bool = False) -> str:
        """Resume a run or a search on the cluster, named as for `find`; return the new job's id."""
        job, folder = self.find(name)
        tuned = job.metadata["verb"] == "tune"
        if tuned and changes:
            raise SpecError(f"{name} is a search, which continues as it is: leave out {changes[0]}")
        words = ["tune", "--resume", folder] if tuned else ["resume", folder, *changes]
        with TemporaryDirectory() as sent:
            return self._begin(PurePosixPath(folder).parent.name, words, Path(sent), "~", code)

    def log(self, name: str) -> str:
        """Return the output of a job so far."""
        return RAYS_OWN.sub("", self._get(f"/api/jobs/{name}/logs")["logs"])

    def follow(self, name: str, show: Callable[[str], None]) -> JobDetails:
        """Pass a job's output to `show` until it ends, through short outages; return the job."""
        shown, answered, told = 0, time.monotonic(), False
        while True:
            try:
                job = self._info(name)
                log = self.log(name)
            except ClusterError as error:
                if time.monotonic() - answered > OUTAGE_S:
                    raise
                if not told:
                    show(f"{error}: trying for {OUTAGE_S} s\n")
                told = True
            else:
                answered, told = time.monotonic(), False
                show(log[shown:])
                shown = len(log)
                if job.status.is_terminal():
                    return job
            time.sleep(POLL_INTERVAL_S)

    def stop(self, name: str) -> bool:
        """Have a job save and stop, within STOP_S; return False when it had already ended."""
        return bool(self._ask("POST", f"/api/jobs/{name}/stop")["stopped"])

    def folder(self, job: JobDetails) -> str | None:
        """Return the folder of a job's run or search on the head node; None until it is printed."""
        found = FOLDER.search(self.log(job.submission_id))
        return found and found[1]

    def find(self, name: str) -> tuple[JobDetails, str]:
        """Return the latest job of a run or search, and its folder.

        The name is a job's id, the folder, `job/n`, or `job` for its latest run. Raises SpecError
        when there is none.
        """
        jobs = self.jobs()
        named = [job for job in jobs if job.submission_id == name]
        for job in reversed(named or jobs):
            folder = self.folder(job)
            *_, of, number = PurePosixPath(folder or "none/yet").parts
            if folder and (named or name in (folder, f"{of}/{number}", of)):
                return job, folder
        if named:
            raise SpecError(f"{name} has no run folder: {named[0].status.value}")
        raise SpecError(self._unknown(name, jobs))

    def run(self, command: str) -> JobDetails:
        """Run a shell command on the head node; return the ended job."""
        name = self._ask("POST", "/api/jobs/", json={"entrypoint": command})["submission_id"]
        while not (job := self._info(name)).status.is_terminal():
            time.sleep(POLL_INTERVAL_S)
        return job

    def output(self, job: JobDetails) -> HTTPResponse:
        """Open the raw output of a job as a stream.

        Raises ClusterError, or while reading urllib3's HTTPError, when the connection ends.
        """
        asked = {
            "submission_id": job.submission_id, "node_id": job.driver_node_id,
            "lines": -1, "timeout": DOWNLOAD_S,
        }  # fmt: skip
        path = f"/api/v0/logs/file?{urlencode(asked)}"
        headers = self._headers | {"Accept-Encoding": "identity"}  # the stream is read undecoded
        with self._translate_errors():
            return self._send("GET", path, headers=headers, stream=True).raw

    def _begin(self, name: str, words: list[str], sent: Path, folder: str, code: bool) -> str:
        shutil.copy(bootstrap.__file__, sent / "begin.py")
        if code:
            _copy_code(sent)
        # Any Python 3 on the job's PATH will do: begin.py re-executes with the one that runs Ray.
        command = ["python3", "begin.py", raycnn.__version__, folder, *words]
        now = datetime.now(timezone.utc)
        with self._translate_errors():
            return upload.submit(
                self.server,
                self._headers,
                entrypoint="exec " + shlex.join(command),
                submission_id=f"raycnn-{name}-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}",
                metadata={
                    "raycnn": raycnn.__version__, "name": name, "verb": words[0],
                    "user": _user(),
                },
                runtime_env={
                    "working_dir": str(sent),
                    "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S)},
                },
            )  # fmt: skip

    def _unknown(self, name: str, jobs: list[JobDetails]) -> str:
        names = [job.submission_id for job in jobs]
        return unknown("job", name, names) + f"; looked at {self.server}"

    def _alive(self) -> list[dict[str, Any]]:
        """Return the alive nodes, by the request that `ray list nodes` sends."""
        found = self._get("/api/v0/nodes?limit=10000")["data"]["result"]["result"]
        alive = [node for node in found if node["state"] == "ALIVE"]
        if not any(node["is_head_node"] for node in alive):
            raise ClusterError(f"{self.server} has no head node yet")
        return alive

    def _info(self, name: str) -> JobDetails:
        return JobDetails.parse(self._get(f"/api/jobs/{name}"))

    def _get(self, path: str, timeout_s: float = REQUEST_TIMEOUT_S) -> Any:
        return self._ask("GET", path, timeout_s)

    def _ask(
        self, method: str, path: str, timeout_s: float = REQUEST_TIMEOUT_S, **content: Any
    ) -> Any:
        with self._translate_errors():
            return self._send(method, path, timeout=timeout_s, **content).json()

    def _send(self, method: str, path: str, **options: Any) -> requests.Response:
        """Return the response to a request. Raises as requests does, also for an error status."""
        how: dict[str, Any] = {"headers": self._headers, "timeout": REQUEST_TIMEOUT_S} | options
        response = requests.request(method, f"{self.server}{path}", **how)
        response.raise_for_status()
        return response

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except (requests.HTTPError, RuntimeError, ValueError, KeyError) as error:
            answer = getattr(error, "response", None)
            if getattr(answer, "status_code", None) in (401, 403):
                raise ClusterError(
                    f"{self.server} refuses the token: RAY_AUTH_TOKEN, else {TOKEN}, must hold the "
                    "one that the cluster was started with"
                ) from None
            said = first_line(error)
            raise ClusterError(f"the job server at {self.server} fails: {said}") from None
        except (requests.RequestException, ConnectionError, TimeoutError):
            raise ClusterError(f"no job server answers at {self.server}") from None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


def _asked(asked: JobSpec | TuneSpec) -> list[Workers]:
    """Return the workers that Ray must have room for: for a search, one trial in each pool."""
    if isinstance(asked, TuneSpec):
        return [pool.worker_config for pool in asked.tune.pools]
    return [asked.workers] if asked.workers.launcher != "local" else []


def _write(asked: JobSpec | TuneSpec, folder: Path) -> str:
    """Write the resolved spec as job.yaml; return the command that takes it."""
    trees = {"job.yaml": asked.tree()}
    if isinstance(asked, TuneSpec):
        whole = trees["job.yaml"]
        for one in whole["architectures"]:  # each is a complete job, in a file of its own
            trees[f"{one['name']}.arch.yaml"] = one["job"]
            one["job"] = f"{one['name']}.arch.yaml"
    for name, tree in trees.items():
        yaml_file.write(folder / name, tree)
    return "tune" if isinstance(asked, TuneSpec) else "train"


def _copy_code(folder: Path) -> None:
    """Copy the package of this raycnn, with its templates, and the metadata with its version."""
    package = Path(raycnn.__file__).parent
    shutil.copytree(package, folder / "raycnn", ignore=shutil.ignore_patterns("__pycache__"))
    about = folder / f"raycnn-{raycnn.__version__}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(distribution("raycnn").read_text("METADATA") or "")
