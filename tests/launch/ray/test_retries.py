"""Which ends of workers use a retry. How the channel learns of them: test_channel_actor.py."""

import pytest

from raycnn.errors import WorkerLost
from raycnn.launch.ray.retries import Retries


def test_each_loss_uses_a_retry_and_the_one_after_the_last_ends_the_job() -> None:
    retries = Retries(2)
    for used in (1, 2):
        event = retries.count_restart("rank 1: gone", preempted=False, out_of_memory=False)
        assert (event.cause, event.retry, event.retries) == ("lost", used, 2)
    with pytest.raises(WorkerLost, match=r"2 .*failure.retries.*rank 0: gone"):
        retries.count_restart("rank 0: gone", preempted=False, out_of_memory=False)


@pytest.mark.parametrize(
    ("preempted", "out_of_memory", "cause"),
    [(True, False, "preempted"), (False, True, "memory"), (True, True, "memory")],
)
def test_a_node_taken_away_and_a_smaller_micro_batch_use_none(
    preempted: bool, out_of_memory: bool, cause: str
) -> None:
    retries = Retries(0)
    for _ in range(3):
        event = retries.count_restart("gone", preempted=preempted, out_of_memory=out_of_memory)
        assert (event.cause, event.retry) == (cause, 0)
