"""What every worker does, whoever started it: fit, recorded in the run folder."""

import os
import time
from collections.abc import Callable
from contextlib import suppress

import torch

from raycnn.analysis import predictions
from raycnn.config.schema import JobSpec
from raycnn.errors import Interrupted, OutOfMemory, RaycnnError, WorkerLost
from raycnn.runs.directory import Recorder, Run, View, log, result_of
from raycnn.runtime import distributed
from raycnn.training import loop
from raycnn.training.loop import TrainResult, fit

IN_VAIN = "waited in vain for another worker"
SETTLE_S = 3  # for all others to have said what they know
LOOP = loop.__file__
FRAMES = 6  # of a stack that an error shows
# As this machine's environment has them.
OWN = {key: place for key in ("RAYCNN_DATA", "RAYCNN_CACHE") if (place := os.environ.get(key))}


def work(
    job: JobSpec,
    run: Run,
    device: torch.device,
    view: View | None = None,
    asked: Callable[[], bool] = lambda: False,
) -> None:
    """Train as one worker. A user's error is in the run's events, a bug's traceback in its log."""
    recorder = Recorder(
        run, view, asked, job.workers.timeout_s if distributed.world_size() > 1 else 0
    )
    try:
        result = fit(job, device, recorder)
        distributed.raise_on_any_rank(lambda: finish(result, recorder))
    except Interrupted as error:
        log.info(str(error))
        raise Interrupted(f"{error}: `raycnn resume {run.home}` goes on from there") from None
    except OutOfMemory as error:  # whoever started the workers may start them again
        log.error(str(error))
        raise
    except RaycnnError as error:
        log.error(f"failed: {error}")
        if distributed.rank() == 0:
            with suppress(OSError):
                run.add_event(f"failed: {error}")
        raise
    except RuntimeError as error:
        if not distributed.is_peer_loss(error):
            log.error("failed", exc_info=error)
            raise
        in_vain = distributed.is_timeout(error)
        log.error(IN_VAIN if in_vain else "found another worker gone")
        time.sleep(SETTLE_S)
        raise WorkerLost(
            diagnose_timeout(job, run) if in_vain else diagnose_peer_loss(run)
        ) from None
    except BaseException as error:
        log.error("failed", exc_info=error)
        raise
    finally:
        recorder.close()


def finish(result: TrainResult, recorder: Recorder) -> None:
    """Write what a training came to, the predictions first: a run is done with its result."""
    if result.predictions:  # rank 0 has them
        kept = predictions.from_training(result.splits, result.state.best or 0, result.predictions)
        try:
            predictions.write(recorder.run.folder / predictions.FILE, kept)
        except OSError as error:
            recorder.note(f"the predictions cannot be written: {error}")
    recorder.finish(result_of(result.state, result.test))


def find_data(root: str | None, others: dict[str, str]) -> None:
    """Look for images where the spec says, else this machine's environment, else another's."""
    os.environ.update(others | OWN)
    if root:
        os.environ["RAYCNN_DATA"] = root


def diagnose_timeout(job: JobSpec, run: Run) -> str:
    """Who did not wait in vain is who was waited for: their logs tell, and where they were."""
    quiet = [rank for rank in range(distributed.world_size()) if IN_VAIN not in run.log_end(rank)]
    named = ", ".join(f"rank {rank}" for rank in quiet) or "the network between the workers"
    stacks = [f"\nrank {rank} was here:\n{at}" for rank in quiet if (at := stack(run, rank))]
    return (
        f"{named} gave no sign of life for {job.workers.timeout_s} s (workers.timeout_s)"
        + "".join(stacks)
    )


def stack(run: Run, rank: int) -> str:
    """The innermost frames of the thread that trains, as faulthandler last put them into the log.

    A process that was stopped, or is gone, could not.
    """
    threads = run.log_end(rank).rpartition("Timeout (")[2].split("Thread 0x")
    training = next((thread for thread in threads if LOOP in thread), "")
    return "\n".join(training.splitlines()[1 : 1 + FRAMES])


def diagnose_peer_loss(run: Run) -> str:
    """What another worker said last, where it could say anything."""
    for rank in range(distributed.world_size()):
        _, failed, said = run.log_end(rank).rpartition(" failed")
        if failed:
            last = said.strip(": \n").splitlines()[-1]
            return f"rank {rank} failed: {last} (see its log in {run.home}/logs)"
    return "another worker is gone without a word: killed, or its machine is down"
