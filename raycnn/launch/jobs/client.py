"""A client of Ray Jobs: submit a spec to a cluster, and follow, stop and find its jobs.

It only talks to the cluster's job server (http://host:8265), so that a tunnel to one port is
enough, by its REST interface, so that the cluster may run another version of Ray. Ray is imported
only to upload files. On the cluster a job is an ordinary `raycnn train`, `resume` or `tune` on the
head node, started in the home folder of the user who started Ray: relative paths are below it.
"""

import getpass
import logging
import os
import re
import secrets
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib.metadata import distribution
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, Literal
from urllib.parse import urlencode, urlsplit

import requests
from pydantic import BaseModel, ConfigDict
from urllib3 import HTTPResponse

import raycnn
from raycnn.config import yaml_file
from raycnn.config.schema import JobSpec, Workers
from raycnn.config.search import TuneSpec
from raycnn.errors import ClusterError, SpecError, first_line, unknown
from raycnn.filesystem import is_uri
from raycnn.launch.jobs import bootstrap
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
# The line that each prints when it starts, with its folder or its URI.
LOCATION = re.compile(r"^(?:run|search) (/.+|[a-z][a-z0-9+.-]*://.+)$", re.MULTILINE)


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
        raise SpecError(f"{text!r} is not the address of a job server, such as http://host:{PORT}")
    return url.rstrip("/")


class JobDetails(BaseModel):
    """A job as the server describes it; fields that other Ray versions add are ignored."""

    model_config = ConfigDict(frozen=True)

    status: Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]
    submission_id: str = ""
    metadata: dict[str, str] = {}
    message: str | None = None
    start_time: int | None = None
    """Milliseconds since 1970."""
    driver_exit_code: int | None = None
    driver_node_id: str | None = None

    @classmethod
    def parse(cls, tree: dict[str, Any]) -> "JobDetails":
        return cls.model_validate({key: value for key, value in tree.items() if value is not None})

    @property
    def ended(self) -> bool:
        return self.status not in ("PENDING", "RUNNING")


class Cluster:
    """A Ray cluster, accessed only through its job server."""

    def __init__(self, server: str, token: str | None = None):
        """Connect to a job server. Raises ClusterError if none answers, or it rejects the token."""
        self.server = server
        secret = token or own_token()
        self._headers = {"Authorization": f"Bearer {secret}"} if secret else {}
        self.ray_version = str(self._get("/api/version", PROBE_S)["ray_version"])

    def nodes(self) -> list[Node]:
        return [Node(node["node_ip"], node["resources_total"]) for node in self._alive()]

    def jobs(self) -> list[JobDetails]:
        """Return the jobs that raycnn submitted, oldest first."""
        jobs = map(JobDetails.parse, self._get("/api/jobs/"))
        own = [job for job in jobs if "raycnn" in job.metadata]
        return sorted(own, key=lambda job: job.start_time or 0)

    def find(self, name: str) -> JobDetails:
        """Return a job by its id, or the latest one of a run or search.

        A run is named by its folder or URI, by `job/n`, or by `job` for the latest. Raises
        SpecError, with the nearest id, when there is none.
        """
        jobs = self.jobs()
        for job in jobs:
            if job.submission_id == name:
                return job
        for job in reversed(jobs):
            if location := self.location(job):
                path = location.partition("?")[0] if is_uri(location) else location
                *_, of, number = PurePosixPath(path).parts
                if name in (location, f"{of}/{number}", of):
                    return job
        ids = [job.submission_id for job in jobs]
        raise SpecError(unknown("job", name, ids) + f"; looked at {self.server}")

    def location(self, job: JobDetails) -> str | None:
        """Return the folder of a job's run or search on the head node, or its URI.

        None until the job has printed it.
        """
        printed = LOCATION.search(self.log(job.submission_id))
        return printed and printed[1]

    def require_location(self, job: JobDetails) -> str:
        """Return the folder or URI of a job's run or search. Raises SpecError when it has none."""
        location = self.location(job)
        if not location:
            raise SpecError(f"{job.submission_id} has no run folder: {job.status}")
        return location

    def submit(self, spec: JobSpec | TuneSpec, *, folder: str = "~", code: bool = False) -> str:
        """Start a job or a search on the cluster, in `folder`; return its id.

        With `code` it runs this version of raycnn instead of the cluster's. Raises ClusterError,
        with a table of the nodes, when its workers do not fit.
        """
        nodes = self.nodes()
        for workers in _workers(spec):
            resources_per_worker(workers, kind_of(workers, nodes), nodes)
        with TemporaryDirectory() as sent:
            verb = _write(_without_address(spec), Path(sent))
            return self._start(spec.name, [verb, "job.yaml"], Path(sent), folder, code)

    def resume(self, name: str, changes: list[str], *, code: bool = False) -> str:
        """Resume a run or a search on the cluster, named as for `find`; return the new job's id."""
        job = self.find(name)
        location = self.require_location(job)
        tuned = job.metadata["verb"] == "tune"
        if tuned and changes:
            raise SpecError(f"{name} is a search, which continues as it is: leave out {changes[0]}")
        words = ["tune", "--resume", location] if tuned else ["resume", location, *changes]
        with TemporaryDirectory() as sent:
            return self._start(job.metadata["name"], words, Path(sent), "~", code)

    def log(self, name: str) -> str:
        """Return the output of a job so far."""
        return RAYS_OWN.sub("", self._get(f"/api/jobs/{name}/logs")["logs"])

    def follow(self, name: str, show: Callable[[str], None]) -> JobDetails:
        """Pass a job's output to `show` until it ends, through short outages; return the job."""
        num_shown, last_reply, warned = 0, time.monotonic(), False
        while True:
            try:
                job = self._details(name)
                log = self.log(name)
            except ClusterError as error:
                if time.monotonic() - last_reply > OUTAGE_S:
                    raise
                if not warned:
                    show(f"{error}: trying for {OUTAGE_S} s\n")
                warned = True
            else:
                last_reply, warned = time.monotonic(), False
                show(log[num_shown:])
                num_shown = len(log)
                if job.ended:
                    return job
            time.sleep(POLL_INTERVAL_S)

    def stop(self, name: str) -> bool:
        """Have a job save and stop, within STOP_S; return False when it had already ended."""
        return bool(self._request("POST", f"/api/jobs/{name}/stop")["stopped"])

    def run(self, command: str) -> JobDetails:
        """Run a shell command on the head node; return the ended job."""
        name = self._request("POST", "/api/jobs/", json={"entrypoint": command})["submission_id"]
        while not (job := self._details(name)).ended:
            time.sleep(POLL_INTERVAL_S)
        return job

    def output(self, job: JobDetails) -> HTTPResponse:
        """Open the raw output of a job as a stream.

        Raises ClusterError, or while reading urllib3's HTTPError, when the connection ends.
        """
        query = {
            "submission_id": job.submission_id, "node_id": job.driver_node_id,
            "lines": -1, "timeout": DOWNLOAD_S,
        }  # fmt: skip
        path = f"/api/v0/logs/file?{urlencode(query)}"
        headers = self._headers | {"Accept-Encoding": "identity"}  # the stream is read undecoded
        with self._translate_errors():
            return self._send("GET", path, headers=headers, stream=True).raw

    def _start(self, name: str, words: list[str], sent: Path, folder: str, code: bool) -> str:
        shutil.copy(bootstrap.__file__, sent / "bootstrap.py")
        if code:
            _copy_code(sent)
        # Any Python 3 on the PATH will do: bootstrap.py re-executes with the one that runs Ray.
        command = ["python3", "bootstrap.py", raycnn.__version__, folder, *words]
        now = datetime.now(timezone.utc)
        with self._translate_errors():
            return _submit(
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

    def _alive(self) -> list[dict[str, Any]]:
        """Return the alive nodes, by the request that `ray list nodes` sends."""
        nodes = self._get("/api/v0/nodes?limit=10000")["data"]["result"]["result"]
        alive = [node for node in nodes if node["state"] == "ALIVE"]
        if not any(node["is_head_node"] for node in alive):
            raise ClusterError(f"{self.server} has no head node yet")
        return alive

    def _details(self, name: str) -> JobDetails:
        return JobDetails.parse(self._get(f"/api/jobs/{name}"))

    def _get(self, path: str, timeout_s: float = REQUEST_TIMEOUT_S) -> Any:
        return self._request("GET", path, timeout_s)

    def _request(
        self, method: str, path: str, timeout_s: float = REQUEST_TIMEOUT_S, **content: Any
    ) -> Any:
        with self._translate_errors():
            return self._send(method, path, timeout=timeout_s, **content).json()

    def _send(self, method: str, path: str, **options: Any) -> requests.Response:
        """Return the response to a request. Raises as requests does, also for an error status."""
        defaults: dict[str, Any] = {"headers": self._headers, "timeout": REQUEST_TIMEOUT_S}
        response = requests.request(method, f"{self.server}{path}", **defaults | options)
        response.raise_for_status()
        return response

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        try:
            yield
        except (requests.HTTPError, RuntimeError, ValueError, KeyError) as error:
            response = getattr(error, "response", None)
            if getattr(response, "status_code", None) in (401, 403):
                raise ClusterError(
                    f"{self.server} refuses the token: RAY_AUTH_TOKEN, else {TOKEN}, must hold the "
                    "one that the cluster was started with"
                ) from None
            message = f"the job server at {self.server} fails: {first_line(error)}"
            raise ClusterError(message) from None
        except (requests.RequestException, ConnectionError, TimeoutError):
            raise ClusterError(f"no job server answers at {self.server}") from None


def _submit(server: str, headers: dict[str, str], **job: Any) -> str:
    """Submit a job with its files, and return its id: the only request that needs Ray's own client.

    Raises RuntimeError or ConnectionError with Ray's message.
    """
    from ray.job_submission import JobSubmissionClient

    logging.disable(logging.INFO)  # it logs every upload
    # Ray prefers this variable, and RAY_ADDRESS, to the address argument.
    before, os.environ["RAY_API_SERVER_ADDRESS"] = os.environ.get("RAY_API_SERVER_ADDRESS"), server
    try:
        return str(JobSubmissionClient(server, headers=headers).submit_job(**job))
    finally:
        logging.disable(logging.NOTSET)
        if before is None:
            del os.environ["RAY_API_SERVER_ADDRESS"]
        else:
            os.environ["RAY_API_SERVER_ADDRESS"] = before


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


def _workers(spec: JobSpec | TuneSpec) -> list[Workers]:
    """Return the workers that Ray must have room for: for a search, one trial in each pool."""
    if isinstance(spec, TuneSpec):
        return [pool.worker_config for pool in spec.tune.pools]
    return [spec.workers] if spec.workers.launcher != "local" else []


def _without_address(spec: JobSpec | TuneSpec) -> JobSpec | TuneSpec:
    """Return the spec for the cluster itself, whose address may be another one there."""
    change = {"workers.address": None}
    if isinstance(spec, JobSpec):
        return spec.change(change)
    return spec.map_jobs(lambda job: job.change(change))


def _write(spec: JobSpec | TuneSpec, folder: Path) -> str:
    """Write the resolved spec as job.yaml; return the command that takes it."""
    trees = {"job.yaml": spec.tree()}
    if isinstance(spec, TuneSpec):
        whole = trees["job.yaml"]
        for one in whole["architectures"]:  # each is a complete job, in a file of its own
            trees[f"{one['name']}.arch.yaml"] = one["job"]
            one["job"] = f"{one['name']}.arch.yaml"
    for name, tree in trees.items():
        yaml_file.write(folder / name, tree)
    return "tune" if isinstance(spec, TuneSpec) else "train"


def _copy_code(folder: Path) -> None:
    """Copy the package of this raycnn, with its templates, and the metadata with its version."""
    package = Path(raycnn.__file__).parent
    shutil.copytree(package, folder / "raycnn", ignore=shutil.ignore_patterns("__pycache__"))
    about = folder / f"raycnn-{raycnn.__version__}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(distribution("raycnn").read_text("METADATA") or "")
