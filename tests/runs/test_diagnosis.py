"""The diagnosis of a failure from the last heartbeat of each worker."""

from raycnn.runs.diagnosis import diagnose_failure
from raycnn.runs.heartbeats import FailureKind, Heartbeat


def beat(rank: int, failure: FailureKind = "", error: str = "") -> Heartbeat:
    return Heartbeat(rank, pid=100 + rank, time=0.0, failure=failure, error=error)


def test_the_worker_with_an_error_of_its_own_is_named_before_those_that_lost_it() -> None:
    beats = {0: beat(0, "timeout"), 1: beat(1, "peer_lost"), 2: beat(2, "error", "a bad image")}
    told = diagnose_failure(beats, 3, 60)
    assert "rank 2" in told and "a bad image" in told and "rank 0" not in told


def test_after_a_timeout_the_workers_that_reported_none_are_named_with_their_stacks() -> None:
    beats = {0: beat(0, "timeout"), 1: beat(1), 2: beat(2, "timeout")}
    told = diagnose_failure(beats, 4, 60, stack=lambda rank: "in decode" if rank == 1 else "")
    assert "rank 1, rank 3" in told and "60 s (workers.timeout_s)" in told
    assert told.count("stack of rank") == 1 and "in decode" in told
    everyone = {rank: beat(rank, "timeout") for rank in range(2)}
    assert "rank" not in diagnose_failure(everyone, 2, 60), "no worker is to blame"


def test_a_worker_that_vanished_is_not_guessed_at() -> None:
    assert "rank" not in diagnose_failure({0: beat(0, "peer_lost"), 1: beat(1)}, 2, 60)
