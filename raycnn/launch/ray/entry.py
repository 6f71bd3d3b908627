"""The training function of a worker on Ray."""

import traceback
from contextlib import AbstractContextManager, ExitStack, closing, suppress
from typing import Any

import ray.train
from ray.exceptions import ActorDiedError, RayError
from ray.train import Checkpoint, CheckpointUploadMode

from raycnn.config.load import job_from_tree
from raycnn.config.schema import JobSpec
from raycnn.config.yaml_file import Tree
from raycnn.errors import (
    Interrupted,
    JobFailed,
    OutOfMemory,
    RaycnnError,
    WorkerLost,
    first_line,
)
from raycnn.launch.ray.channel_actor import JoinedGroup, Member, Outcome, PeerLost, PlannedRestart
from raycnn.launch.ray.process_group import join_process_group, own_member, share_devices
from raycnn.launch.ray.shared_folder import SharedFolder, open_shared_run, open_shared_search
from raycnn.launch.ray.worker_channel import WorkerChannel
from raycnn.launch.trial import TrialOutcome, fit_trial
from raycnn.launch.worker import set_data_root, train_worker
from raycnn.runs.directory import Run
from raycnn.runtime import device, distributed
from raycnn.search.folder import Trial
from raycnn.training.autotune import SETTINGS
from raycnn.training.callbacks import Callback, CheckpointSaved, EpochEnded, Event


def worker_main(config: dict[str, Any]) -> None:
    """Train as one of Ray's workers, and report the outcome to the channel.

    Raises only PeerLost or PlannedRestart, to have Ray restart the workers. An error that would
    recur, such as an invalid spec, is not raised, since Ray would retry it.
    """
    job = job_from_tree(config["job"])
    try:
        with closing(WorkerChannel(config["channel"], job.workers.timeout_s)) as channel:
            _train(job, config, channel)
    except ActorDiedError:  # the driver has ended
        return
    finally:
        distributed.destroy_process_group()


def _train(job: JobSpec, config: dict[str, Any], channel: WorkerChannel) -> None:
    own = own_member(device.DEVICE_KINDS[job.workers.device].resource)
    group = channel.join(own)
    if isinstance(group, Outcome):
        return
    # The outcome is rank 0's, which has more to do than the others: it writes the report, and
    # uploads. Workers end soon after there is an outcome.
    try:
        value = _work(job, config, channel, own, group)
        if channel.rank == 0:
            channel.end(Outcome(value))
    except Interrupted as error:
        if channel.is_restarting():
            channel.report_saved()
            raise PlannedRestart(str(error)) from None
        if channel.rank == 0:
            channel.fail(error)
    except OutOfMemory as error:
        raise PeerLost(str(error)) from None
    except WorkerLost as error:
        _raise_unless_over(channel, error)
    except RaycnnError as error:
        channel.fail(error)
    except ActorDiedError:
        raise
    except RayError as error:
        raise PeerLost(f"the driver cannot be reached: {first_line(error)}") from None
    except Exception as error:
        if distributed.is_peer_loss(error):
            _raise_unless_over(channel, error)
        else:
            error = JobFailed(f"rank {channel.rank} failed:\n{traceback.format_exc()}")
            channel.fail(error)


def _raise_unless_over(channel: WorkerChannel, error: Exception) -> None:
    """Raise PeerLost, unless the other worker ended because the job has ended."""
    if not channel.outcome():
        raise PeerLost(str(error)) from None


def _work(
    job: JobSpec,
    config: dict[str, Any],
    channel: WorkerChannel,
    own: Member,
    group: JoinedGroup,
) -> TrialOutcome | None:
    set_data_root(job.data.root, config["paths"])
    index = share_devices(device.DEVICE_KINDS[job.workers.device].resource, own, group.members)
    kind = device.find(job.workers.device)
    chosen = kind.select(index, config["threads"])
    device.check_training(job.train, chosen.type)
    join_process_group(kind.backend, job.workers.timeout_s, group.members)
    with ExitStack() as stack:
        run = distributed.raise_on_any_rank(lambda: stack.enter_context(_open(job, config)))
        channel.watch(run)
        settings = distributed.broadcast_from_rank_zero(
            lambda: earlier_settings(run, group.micro_batch)
        )
        job = job.change(settings)
        if "search" in config:
            opened = open_shared_search(SharedFolder(*config["search"]), job.storage.timeout_s)
            search = distributed.raise_on_any_rank(lambda: stack.enter_context(opened))
            return fit_trial(search, Trial(run), job, chosen, channel)
        callbacks: list[Callback] = [channel] if distributed.is_rank_zero() else []
        train_worker(job, run, chosen, channel, [*callbacks, RayReporter(run)])
    return None


def earlier_settings(run: Run, micro_batch: int | None) -> Tree:
    """Return the settings that an earlier group of workers measured, or had to reduce.

    `micro_batch` is a limit to record in job.yaml: the worker that ran out of memory may have been
    on a node without the run folder.
    """
    job = run.job()
    if micro_batch and micro_batch < (job.train.micro_batch or job.train.batch_size):
        job = job.change({"train.micro_batch": micro_batch})
        with suppress(OSError):  # a full disk
            run.write_job(job)
    train = job.tree()["train"]
    return {f"train.{key}": train[key] for key in ("micro_batch", *SETTINGS)}


def _open(job: JobSpec, config: dict[str, Any]) -> AbstractContextManager[Run]:
    return open_shared_run(SharedFolder(*config["run"]), job.storage.timeout_s)


class RayReporter:
    """Callback that reports each epoch's metrics, and its checkpoint, to Ray Train.

    The checkpoint is the run's own, which Ray neither copies nor removes. raycnn does not resume
    from Ray's record of it.
    """

    def __init__(self, run: Run):
        self.run = run
        self._saved: Checkpoint | None = None

    def on_event(self, event: Event) -> None:
        match event:
            case CheckpointSaved() if (
                distributed.is_rank_zero() and self.run.folder == self.run.location
            ):
                self._saved = Checkpoint.from_directory(self.run.checkpoints / event.name)
            case EpochEnded():
                ray.train.report(
                    event.metrics,
                    self._saved,
                    checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
                )
