"""What every worker does, whoever started it: train, recorded in the run folder."""

import logging
import os
from collections.abc import Iterable
from contextlib import suppress

import torch

from raycnn.analysis import predictions
from raycnn.config.schema import JobSpec
from raycnn.errors import Interrupted, OutOfMemory, RaycnnError, WorkerLost
from raycnn.report import run as report
from raycnn.runs.directory import Run
from raycnn.runs.heartbeats import Channel, failure_of
from raycnn.runs.recorder import Recorder
from raycnn.runs.result import result_of
from raycnn.runtime import distributed
from raycnn.training.callbacks import Callback, Failed, Warned
from raycnn.training.loop import TrainResult, fit

# As this machine's environment has them.
OWN_PATHS = {key: path for key in ("RAYCNN_DATA", "RAYCNN_CACHE") if (path := os.environ.get(key))}

log = logging.getLogger("raycnn")


def work(
    job: JobSpec,
    run: Run,
    device: torch.device,
    channel: Channel,
    callbacks: Iterable[Callback] = (),
) -> None:
    """Train as one worker. Whatever ends it early is told to the run's events and the channel.

    Raises WorkerLost, naming the worker at fault, where another one ended or is unresponsive.
    """
    recorder = Recorder(run, channel, callbacks)
    try:
        trained = fit(job, device, recorder, recorder.callbacks)
        distributed.raise_on_any_rank(lambda: finish(trained, recorder))
        if trained.predictions and job.storage.report:  # on rank 0; the others need not wait
            report.publish(run, job, trained, recorder.callbacks)
    except Interrupted as error:
        raise Interrupted(f"{error}: `raycnn resume {run.home}` goes on from there") from None
    except OutOfMemory as error:  # whoever started the workers may start them again
        log.error(str(error))
        with suppress(OSError):
            run.write_job(run.job().change({"train.micro_batch": error.micro_batch}))
        channel.failed(error)
        raise
    except Exception as error:
        channel.failed(error)
        kind, text = failure_of(error)
        if kind != "error":
            log.error("timed out waiting for another worker" if kind == "timeout" else text)
            raise WorkerLost(channel.diagnose()) from None
        known = isinstance(error, RaycnnError)
        text = str(error) if known else text
        log.error(f"failed: {text}", exc_info=None if known else error)
        recorder.callbacks.on_event(Failed(error=text, kind=type(error).__name__))
        raise
    except BaseException as error:
        log.error(f"ended by {type(error).__name__}")
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
            text = f"the predictions cannot be written: {error}"
            recorder.callbacks.on_event(Warned(text=text))
    assert result.test
    recorder.finish(result_of(result.state, result.test))


def find_data(root: str | None, others: dict[str, str]) -> None:
    """Look for images where the spec says, else this machine's environment, else another's."""
    os.environ.update(others | OWN_PATHS)
    if root:
        os.environ["RAYCNN_DATA"] = root
