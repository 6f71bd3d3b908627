"""The work of every worker under any launcher: train, and record it in the run folder."""

import logging
import os
from collections.abc import Iterable
from contextlib import suppress

import torch

from raycnn.analysis import predictions_file
from raycnn.config.schema import JobSpec
from raycnn.errors import Interrupted, OutOfMemory, RaycnnError, WorkerLost
from raycnn.paths import cache_folder, data_root
from raycnn.report import run as report
from raycnn.runs.diagnosis import failure_of
from raycnn.runs.directory import Run
from raycnn.runs.heartbeat_channel import Channel
from raycnn.runs.recorder import Recorder
from raycnn.runs.result import result_of
from raycnn.runtime import distributed
from raycnn.training.callbacks import Callback, Failed, Warned
from raycnn.training.loop import TrainResult, fit

# This machine's own settings, read before set_data_root changes the environment. A relative path is
# the driver's, from whom it is inherited, and of its working folder.
NODE_PATHS = {
    key: path
    for key in ("RAYCNN_DATA", "RAYCNN_CACHE")
    if os.path.isabs(path := os.environ.get(key, ""))
}

log = logging.getLogger("raycnn")


def train_worker(
    job: JobSpec,
    run: Run,
    device: torch.device,
    channel: Channel,
    callbacks: Iterable[Callback] = (),
) -> None:
    """Train as one worker, reporting errors to the run's events and the channel.

    Raises WorkerLost, naming the worker at fault, where another worker ended or is unresponsive.
    """
    recorder = Recorder(run, channel, callbacks)
    try:
        try:
            trained = fit(job, device, recorder, recorder.callbacks)
        except Interrupted:
            recorder.wait_for_upload()  # Ray ends all workers when one of them leaves for a restart
            raise
        distributed.raise_on_any_rank(lambda: finish(trained, recorder))
        if trained.predictions and job.storage.report:  # on rank 0; other ranks need not wait
            report.write_report_or_warn(run, run.job(), trained, recorder.callbacks)
    except Interrupted as error:
        raise Interrupted(f"{error}: `{run.command('resume')}` continues from there") from None
    except OutOfMemory as error:  # the launcher may restart the workers
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
    """Write the predictions and then the result of a training: a run with a result is done."""
    if result.predictions:  # on rank 0
        predictions = predictions_file.from_training(
            result.splits, result.state.best or 0, result.predictions
        )
        try:
            predictions_file.write_predictions(
                recorder.run.folder / predictions_file.FILE, predictions
            )
        except OSError as error:
            text = f"the predictions cannot be written: {error}"
            recorder.callbacks.on_event(Warned(text=text))
    recorder.finish(result_of(result))


def driver_paths() -> dict[str, str]:
    """Return this machine's data root and cache for workers elsewhere, whose own ones come first.

    They are absolute, since another process has another working folder.
    """
    return {"RAYCNN_DATA": str(data_root()), "RAYCNN_CACHE": str(cache_folder())}


def set_data_root(root: str | None, paths: dict[str, str]) -> None:
    """Set the data root: the spec's, else this machine's environment, else the driver's `paths`."""
    os.environ.update(paths | NODE_PATHS)
    if root:
        os.environ["RAYCNN_DATA"] = root
