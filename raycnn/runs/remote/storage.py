"""Runs and searches at a URI: each has a local working copy, synchronized with remote storage.

The working copy is a local folder in the cache. Remote files are downloaded when the run is opened,
checkpoints when they are needed; local files are uploaded by `push`, during training from a
background thread.

Guarantees, on every file system with read-after-write consistency (S3, GCS, HDFS, NFS):

- A checkpoint is valid once the remote index names it. Its tensors are uploaded first, then its
  state.json with their digests, then the index, and only then are older ones deleted: if any of
  this is interrupted, the previous checkpoint is intact.
- A number belongs to one run. A process that requests it writes a claim and lists all claims: at
  most one process finds only its own, even if a file system has no exclusive creation.
- One process trains a run. It holds a lease, a file that it rewrites every few seconds. Another
  machine takes the lease over when it has not changed for LEASE_S; a trainer that lost its lease
  uploads no further index. Both machines can write only for the duration of one request.
- A machine resumes from its local files, uploaded or not, unless another machine has trained the
  run since; then the remote files are used.
"""

import hashlib
import random
import secrets
import time

from raycnn.errors import EnvironmentUnavailable
from raycnn.filesystem import OBJECT_STORES, RemoteFile, RemoteFolder, base_name, join, parent
from raycnn.paths import cache_folder
from raycnn.runs.remote.lease import LEASE
from raycnn.runs.remote.manifest import CLAIM, STATUS_FILES, translate_errors
from raycnn.runs.remote.working_copy import WorkingCopy

LISTED = (*STATUS_FILES, f"{CLAIM}/", f"{LEASE}/")  # the files that lists of runs need


def open_copy(uri: str) -> WorkingCopy:
    """Return this machine's working copy of a run or search at a URI."""
    root = parent(parent(uri))
    root_id = hashlib.sha256(root.encode()).hexdigest()[:16]
    folder = cache_folder() / "remote" / root_id / base_name(parent(uri)) / base_name(uri)
    with translate_errors(uri):
        return WorkingCopy(RemoteFolder.open(uri), folder)


def claim_numbered(root: str, name: str) -> WorkingCopy:
    """Create a folder `name`/n at a URI with the next free number; return its working copy."""
    with translate_errors(root):
        check_reachable(root)
        parent_folder = RemoteFolder.open(join(root, name))
        token = secrets.token_hex(16)
        while True:
            taken = [int(folder) for folder in parent_folder.folders() if folder.isdecimal()]
            number = str(max(taken, default=0) + 1)
            claim = f"{number}/{CLAIM}/{token}"
            parent_folder.write(claim, b"")
            if [file.name for file in parent_folder.files(f"{number}/{CLAIM}")] == [claim]:
                copy = open_copy(join(root, name, number))
                copy.begin(f"{CLAIM}/{token}")
                return copy
            parent_folder.delete(claim)
            time.sleep(random.uniform(0, 1))


def list_copies(root: str, spec_name: str) -> list[WorkingCopy]:
    """Return the working copies of the numbered folders at a URI that contain `spec_name`.

    They are sorted by name and number; the files that lists of runs need are downloaded.
    """
    with translate_errors(root):
        check_reachable(root)
        files_of: dict[tuple[str, str], list[RemoteFile]] = {}
        for file in RemoteFolder.open(root).files():
            name, _, rest = file.name.partition("/")
            number, _, path = rest.partition("/")
            if number.isdecimal() and path.startswith(LISTED):
                files_of.setdefault((name, number), []).append(file._replace(name=path))
    copies = []
    for (name, number), files in sorted(
        files_of.items(), key=lambda item: (item[0][0], int(item[0][1]))
    ):
        if spec_name in (file.name for file in files):
            copies.append(open_copy(join(root, name, number)))
            copies[-1].pull(files)
            copies[-1].lease.listed = [f for f in files if f.name.startswith(f"{LEASE}/")]
    return copies


def has_file(uri: str, name: str) -> bool:
    """Return whether there is a folder at a URI that contains the file `name`."""
    with translate_errors(uri):
        check_reachable(uri)
        return RemoteFolder.open(uri).file(name) is not None


def check_reachable(uri: str) -> None:
    """Raise EnvironmentUnavailable if the file system or bucket of a URI is unreachable."""
    with translate_errors(uri):
        folder = RemoteFolder.open(uri)
        bucket = folder.path.strip("/").partition("/")[0]
        if folder.system.type_name in OBJECT_STORES:
            if folder.system.get_file_info(bucket).type.name == "NotFound":
                raise EnvironmentUnavailable(f"storage.path: {uri}: there is no bucket {bucket!r}")
        folder.files("", recursive=False)
