"""What every worker does, whoever started it: fit, recorded in the run folder."""

import time
from collections.abc import Callable
from contextlib import suppress

import torch

from raycnn import dist
from raycnn.errors import Interrupted, RaycnnError, WorkerLost
from raycnn.loop import fit
from raycnn.runs import Recorder, Run, View, log, result_of
from raycnn.spec import JobSpec

IN_VAIN = "waited in vain for another worker"
SETTLE_S = 3  # for all that waited to have said so


def work(
    job: JobSpec,
    run: Run,
    device: torch.device,
    view: View | None = None,
    asked: Callable[[], bool] = lambda: False,
) -> None:
    """Train as one worker. A user's error is in the run's events, a bug's traceback in its log."""
    recorder = Recorder(run, view, asked)
    try:
        outcome = fit(job, device, recorder)
        dist.together(lambda: recorder.finish(result_of(outcome.state, outcome.test)))
    except Interrupted as error:
        log.info(str(error))
        raise Interrupted(f"{error}: `raycnn resume {run.folder}` goes on from there") from None
    except RaycnnError as error:
        log.error(f"failed: {error}")
        if dist.rank() == 0:
            with suppress(OSError):
                run.add_event(f"failed: {error}")
        raise
    except RuntimeError as error:
        if not dist.timed_out(error):
            log.error("failed", exc_info=error)
            raise
        log.error(IN_VAIN)
        time.sleep(SETTLE_S)
        raise WorkerLost(silent(job, run)) from error
    except BaseException as error:
        log.error("failed", exc_info=error)
        raise
    finally:
        recorder.close()


def silent(job: JobSpec, run: Run) -> str:
    """Who did not wait in vain is who was waited for: their logs tell."""
    logs = {rank: run.folder / "logs" / f"rank-{rank}.log" for rank in range(dist.world())}
    quiet = [rank for rank, path in logs.items() if IN_VAIN not in path.read_text()[-2000:]]
    named = ", ".join(f"rank {rank}" for rank in quiet) or "the network between the workers"
    return f"{named} gave no sign of life for {job.workers.timeout_s} s (workers.timeout_s)"
