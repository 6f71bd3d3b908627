"""What a job on Ray does about workers that ended: their errors are made up, Ray is not started."""

import os
from collections.abc import Callable

import pytest
from ray.exceptions import ActorDiedError, RayActorError
from ray.train import FailureConfig, ScalingConfig, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.failure_handling import FailureDecision

from raycnn.config.schema import JobSpec
from raycnn.errors import DataError, Interrupted
from raycnn.launch import worker
from raycnn.launch.ray.elastic import Elastic
from raycnn.launch.ray.trainer import PeerFull, PeerLost, _RetryLost
from raycnn.runs.directory import Run
from raycnn.training.callbacks import WorkersRestarted
from tests.conftest import happened

MakeJob = Callable[..., JobSpec]

GONE = WorkerHealthCheckFailedError("its actor died", ActorDiedError())
TAKEN = WorkerHealthCheckFailedError("its actor died", RayActorError(preempted=True))
PEER, FULL, SAVED = PeerLost("another is gone"), PeerFull("out of memory"), Interrupted("saved")


@pytest.fixture
def policy(job: MakeJob) -> _RetryLost:
    """Of a job that one loss is allowed."""
    spec = job(workers__count=2, failure__retries=1)
    config = ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1})
    size = Elastic(config, spec.workers, Run.create(spec))
    return _RetryLost(FailureConfig(max_failures=1), size)


def again(policy: _RetryLost, *failures: Exception) -> bool:
    error = WorkerGroupError("", dict(enumerate(failures)))
    return policy.make_decision(error) is FailureDecision.RETRY


def test_lost_workers_are_started_again_as_often_as_allowed(policy: _RetryLost) -> None:
    assert again(policy, PEER, GONE)
    (event,) = happened(policy.size.run, WorkersRestarted)
    assert (event.cause, event.retry, event.retries) == ("lost", 1, 1)
    assert not again(policy, GONE, PEER)


@pytest.mark.parametrize("own", [DataError("bad image"), ValueError("a bug")])
def test_a_workers_own_error_is_not_tried_again(policy: _RetryLost, own: Exception) -> None:
    assert not again(policy, PEER, own)


def test_workers_that_went_with_a_node_that_was_taken_away_cost_no_retry(
    policy: _RetryLost,
) -> None:
    for _ in range(3):
        assert again(policy, PEER, TAKEN)
    assert policy.losses == 0
    assert happened(policy.size.run, WorkersRestarted)[-1].cause == "preempted"


def test_smaller_micro_batches_cost_no_retry_as_long_as_they_shrink(policy: _RetryLost) -> None:
    run = policy.size.run
    for size in (8, 4):
        run.write_job(run.job().change({"train.micro_batch": size}))
        assert again(policy, FULL, PEER)
    assert policy.losses == 0 and happened(run, WorkersRestarted)[-1].cause == "memory"
    assert again(policy, FULL, PEER) and policy.losses == 1, "it could not be written down"
    assert not again(policy, FULL, PEER)


def test_workers_that_were_asked_to_make_way_cost_no_retry(policy: _RetryLost) -> None:
    """Also when the node of one went before it could say that it has saved."""
    assert not again(policy, SAVED, SAVED), "nobody asked: a person did"
    policy.size._asking = True
    for _ in range(3):
        assert again(policy, SAVED, SAVED) and again(policy, SAVED, GONE)
    assert policy.losses == 0
    policy.size.run.request_stop()
    assert not again(policy, SAVED, SAVED)


@pytest.mark.parametrize(
    ("root", "own", "found"),
    [
        (None, {}, "/drivers"),
        (None, {"RAYCNN_DATA": "/machines"}, "/machines"),
        ("/specs", {"RAYCNN_DATA": "/machines"}, "/specs"),
    ],
)
def test_images_are_looked_for_where_the_spec_the_machine_or_the_driver_says(
    monkeypatch: pytest.MonkeyPatch, root: str | None, own: dict[str, str], found: str
) -> None:
    """In that order, also where another trial was trained by the same process before."""
    monkeypatch.setenv("RAYCNN_DATA", "/of-the-trial-before")
    monkeypatch.setattr(worker, "OWN_PATHS", own)
    worker.find_data(root, {"RAYCNN_DATA": "/drivers"})
    assert os.environ["RAYCNN_DATA"] == found
