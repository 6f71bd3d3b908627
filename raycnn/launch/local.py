"""Train in this process, or in each process that torchrun started. Does not import Ray."""

import os
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path

from raycnn.config.schema import JobSpec, Workers
from raycnn.errors import ClusterError, WorkerLost, first_line
from raycnn.launch.launcher import check_world
from raycnn.launch.signals import Stop
from raycnn.launch.worker import train_worker
from raycnn.runs.directory import Run
from raycnn.runs.heartbeat_channel import FolderChannel
from raycnn.runtime import device, distributed
from raycnn.runtime.device import DeviceKind
from raycnn.training.callbacks import Callback, Failed


def train_locally(job: JobSpec, open_run: Callable[[], Run], view: Callback) -> Run:
    """Train a job in the run that `open_run` opens, resuming from its checkpoint; return the run.

    Raises SpecError for another number of processes than workers, ClusterError when not all
    workers connect, EnvironmentUnavailable for a missing device, and whatever training raises.
    """
    kind = device.find(job.workers.device)
    _join_group(kind, job.workers)
    with ExitStack() as stack:
        stack.callback(distributed.destroy_process_group)
        check_world(job.workers)
        chosen = kind.select(int(os.environ.get("LOCAL_RANK", 0)), job.workers.cpus)
        device.check_training(job.train, chosen.type)

        def open_and_hold() -> Path | str:
            run = open_run()
            stack.enter_context(run.lock())
            return run.location

        run = Run.open(distributed.broadcast_from_rank_zero(open_and_hold))
        stop = Stop(busy=run.training)
        try:
            channel = FolderChannel(run, job.workers.timeout_s, stop)
            views = [view] if distributed.is_rank_zero() else []
            syncing = run.syncing(distributed.rank(), job.storage.timeout_s)
            with stop.listening(), closing(channel), syncing:
                train_worker(job, run, chosen, channel, views)
        except WorkerLost as error:  # every remaining worker finds the same error: record it once
            last = run.last_event()
            if not (isinstance(last, Failed) and last.error == str(error)):
                with suppress(OSError):
                    run.add_event(Failed(error=str(error), kind="WorkerLost"))
            raise
        return run


def _join_group(kind: DeviceKind, workers: Workers) -> None:
    """Join the process group of torchrun. Raises ClusterError when not all workers connect."""
    if not distributed.is_launched():
        return
    try:
        distributed.init_process_group(kind.backend, workers.timeout_s)
    except Exception as error:
        if not distributed.is_peer_loss(error):
            raise
        raise ClusterError(
            f"{distributed.launched_world_size()} workers did not all connect within "
            f"{workers.timeout_s} s (workers.timeout_s): {first_line(error)}"
        ) from None
