"""What the channel of a job on Ray decides when workers end: no Ray is started for it."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest

from raycnn.config.schema import JobSpec
from raycnn.errors import DataError, WorkerLost
from raycnn.launch import worker
from raycnn.launch.ray import entry
from raycnn.launch.ray.channel_actor import ChannelActor, JoinedGroup, Member, Outcome, Request
from raycnn.launch.ray.worker_channel import NOTICE_STEPS, WorkerChannel
from raycnn.runs.directory import Run
from raycnn.training.callbacks import EpochEnded, Progress, WorkersRestarted, WorldResized

T = TypeVar("T")


@pytest.mark.parametrize(
    ("module", "slow"), [("channel_actor", "torch ray.train"), ("controller", "torch")]
)
def test_a_process_that_workers_wait_for_imports_nothing_slow(module: str, slow: str) -> None:
    code = f"import sys, raycnn.launch.ray.{module}; print({{*{slow.split()}}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


LOOP = asyncio.new_event_loop()  # one, as an actor has


def now(asked: Coroutine[Any, Any, T]) -> T:
    return LOOP.run_until_complete(asked)


def member(rank: int) -> Member:
    return Member(f"node{rank}", f"10.0.0.{rank}", 1000 + rank, [])


async def joined(channel: ChannelActor, group: str, size: int) -> list[Any]:
    """All workers of a group join, the last rank first; return what each is told."""
    ranks = reversed(range(size))
    return await asyncio.gather(*(channel.join(group, r, size, member(r)) for r in ranks))


def channel_after(*groups: str, retries: int = 1, size: int = 2) -> ChannelActor:
    """A channel whose groups joined one after another; each but the last then ended silently."""
    channel = ChannelActor(retries, size, str(size))
    for group in groups:
        now(joined(channel, group, size))
    return channel


def causes(channel: ChannelActor) -> list[str]:
    return [event.cause for event, _ in channel.events if isinstance(event, WorkersRestarted)]


def test_workers_that_join_are_told_of_all_by_rank() -> None:
    channel = ChannelActor(0, 3, "3")
    told = now(joined(channel, "first", 3))
    assert told == [JoinedGroup([member(0), member(1), member(2)], None)] * 3
    assert now(channel.update(0)).workers == told[0].members


def test_a_worker_of_a_group_that_never_came_together_waits_for_no_dead_one() -> None:
    """Rank 0 of the first group joined, and the group was lost; the second one is whole."""

    async def scene() -> list[Any]:
        channel = ChannelActor(1, 2, "2")
        early = asyncio.create_task(channel.join("first", 0, 2, member(0)))
        await asyncio.sleep(0)
        told = await joined(channel, "second", 2)
        await early
        return told

    assert now(scene()) == [JoinedGroup([member(0), member(1)], None)] * 2


def test_lost_workers_are_started_again_as_often_as_allowed() -> None:
    channel = channel_after("first")
    now(channel.workers_failed({1: "its actor died"}, False))
    (event, to_store) = channel.events[-1]
    assert isinstance(event, WorkersRestarted) and to_store
    assert (event.error, event.cause, event.retry, event.retries) == (
        "rank 1: its actor died", "lost", 1, 1,
    )  # fmt: skip
    now(joined(channel, "second", 2))
    now(channel.workers_failed({0: "its actor died"}, False))
    assert channel.outcome and isinstance(channel.outcome.error, WorkerLost)
    told = now(joined(channel, "third", 2))
    assert told == [channel.outcome] * 2, "a group that starts all the same ends at once"


def test_a_loss_is_counted_once_whoever_tells_of_it() -> None:
    channel = channel_after("first")
    now(channel.workers_failed({1: "gone"}, False))
    now(channel.workers_failed({0: "peer gone"}, False))
    now(joined(channel, "second", 2))
    assert channel.retries.used == 1
    channel = channel_after("first", "second")
    assert channel.retries.used == 1, "of the first, the next group alone tells"


def test_workers_that_went_with_a_node_that_was_taken_away_cost_no_retry() -> None:
    channel = channel_after("first")
    for group in ("second", "third", "fourth"):
        now(channel.workers_failed({1: "gone"}, True))
        now(joined(channel, group, 2))
    assert channel.retries.used == 0 and causes(channel) == ["preempted"] * 3


def test_smaller_micro_batches_cost_no_retry_as_long_as_they_shrink() -> None:
    channel = channel_after("first")
    for group, size in {"second": 8, "third": 4, "fourth": 4}.items():
        now(channel.limit_micro_batch(size))
        now(channel.workers_failed({0: "out of memory"}, False))
        now(joined(channel, group, 2))
    assert causes(channel) == ["memory", "memory", "lost"]


def test_a_smaller_micro_batch_is_told_to_the_next_workers_whichever_rank_found_it(
    job: Callable[..., JobSpec],
) -> None:
    """Rank 1 ran out of memory, on a node that does not share the folder with rank 0."""
    channel = channel_after("first")
    now(channel.limit_micro_batch(8))
    now(channel.workers_failed({1: "out of memory"}, False))
    told = now(joined(channel, "second", 2))
    assert [group.micro_batch for group in told] == [8, 8]

    run = Run.create(job())
    assert entry.earlier_settings(run, None)["train.micro_batch"] is None
    assert entry.earlier_settings(run, 8)["train.micro_batch"] == 8
    assert run.job().train.micro_batch == 8, "for the groups after it, and to resume with"
    assert entry.earlier_settings(run, 16)["train.micro_batch"] == 8


def test_workers_that_were_asked_to_make_way_cost_no_retry() -> None:
    """Also when the node of one went before it could say that it has saved."""
    channel = channel_after("first", retries=0)
    now(channel.set_request("restart"))
    assert now(channel.beat("first", 0, {}, "")) == "restart"
    now(channel.saved())
    now(channel.workers_failed({0: "saved", 1: "gone"}, False))
    now(joined(channel, "second", 1))
    assert now(channel.beat("second", 0, {}, "")) == "", "it is asked of one group alone"
    assert channel.retries.used == 0 and channel.outcome is None and not causes(channel)
    resized = [event for event, _ in channel.events if isinstance(event, WorldResized)]
    assert [event.workers for event in resized] == [1]


def test_a_request_to_stop_outweighs_one_to_make_way() -> None:
    channel = channel_after("first")
    now(channel.set_request("stop"))
    now(channel.set_request("restart"))
    assert now(channel.beat("first", 0, {}, "")) == "stop"


@pytest.mark.parametrize("request_", ["", "stop", "restart"])
def test_all_workers_look_for_a_notice_in_the_same_steps(request_: Request) -> None:
    """It is a barrier, and a request reaches one worker before another."""
    looks: list[int] = []
    worker = WorkerChannel.__new__(WorkerChannel)  # without the Ray that it connects to
    worker.request, worker._steps = request_, 0
    worker._notice = lambda: looks.append(worker._steps)
    asked = [worker.should_stop() for _ in range(2 * NOTICE_STEPS)]
    assert looks == [NOTICE_STEPS, 2 * NOTICE_STEPS] and set(asked) == {bool(request_)}


def test_the_first_error_of_a_user_ends_the_job_and_no_loss_follows_from_it() -> None:
    channel = channel_after("first", retries=0)
    bad = Outcome(error=DataError("bad image"))
    assert now(channel.end(bad)) is bad
    assert now(channel.end(Outcome(error=DataError("another")))) is bad
    now(channel.workers_failed({0: "connection closed by peer"}, False))
    assert now(channel.beat("first", 0, {}, "")) == "end"
    assert now(channel.update(0)).outcome is bad and not channel.retries.used


def test_news_have_each_event_once_and_of_passing_ones_the_last() -> None:
    channel = channel_after("first")
    for step in (1, 2):
        now(channel.add_event(Progress(epoch=1, step=step, steps=9)))
    now(channel.add_event(EpochEnded(metrics={"epoch": 1.0})))
    update = now(channel.update(0))
    assert [(type(event), own) for event, own in update.events] == [(EpochEnded, False)]
    assert isinstance(update.transient, Progress) and update.transient.step == 2
    assert now(channel.update(1)).events == [] and now(channel.update(1)).transient is None


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
    monkeypatch.setattr(worker, "NODE_PATHS", own)
    worker.set_data_root(root, {"RAYCNN_DATA": "/drivers"})
    assert os.environ["RAYCNN_DATA"] == found
