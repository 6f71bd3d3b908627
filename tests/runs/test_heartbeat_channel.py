"""The channel of workers that share the run's folder."""

from collections.abc import Callable
from contextlib import closing

from raycnn.config.schema import JobSpec
from raycnn.runs.directory import Run
from raycnn.runs.heartbeat_channel import FolderChannel


def test_a_request_in_the_folder_leaves_no_other_one_unread(job: Callable[..., JobSpec]) -> None:
    """To read the other may be a barrier, and only rank 0 reads the folder."""
    run, reads = Run.create(job()), list[int]()
    run.request_stop()

    def asked() -> bool:
        reads.append(1)
        return False

    with closing(FolderChannel(run, 60, asked)) as channel:
        assert [channel.should_stop() for _ in range(3)] == [True] * 3 and len(reads) == 3
