"""One trial of a search, as each of its workers sees it: judged after each epoch, not tested."""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from raycnn.errors import ClusterError, Interrupted, RaycnnError
from raycnn.runs.channel import FolderChannel
from raycnn.runs.heartbeats import Channel
from raycnn.runs.recorder import Recorder
from raycnn.runtime import distributed
from raycnn.search.folder import TAKE_OVER_S, Search, Trial
from raycnn.training import checkpoint
from raycnn.training.callbacks import Failed, TrialStopped
from raycnn.training.checkpoint import TrainingState
from raycnn.training.loop import fit

log = logging.getLogger("raycnn")

Ending = dict[str, Any]
"""The state and, where it did not come to its end, the reason; {} when it has not ended."""


class _Stopped(Exception):
    """The search's scheduler ends this trial."""


class TrialRecorder(Recorder):
    """Records a trial, and ends it when the search's scheduler says so."""

    def __init__(self, search: Search, trial: Trial, channel: Channel):
        super().__init__(trial.run, channel)
        self.search, self.trial = search, trial
        self.until = search.until(trial)
        self._judged: int | None = None

    def begin_epoch(self, state: TrainingState) -> None:
        """Raise _Stopped or Interrupted, on every worker, where the trial is not to go on now.

        Interrupted: the other trials must first be trained as far.
        """
        if self._judged is None:  # what was there before was judged when it was trained
            self._note_size(state)
        elif reason := distributed.broadcast_from_rank_zero(self._verdict):
            raise _Stopped(reason)
        self._judged = state.epoch
        if state.epoch == self.until < self.trial.facts["epochs"]:
            raise Interrupted(f"waits for the other trials after {state.epoch} epochs")

    def _note_size(self, state: TrainingState) -> None:
        if distributed.is_rank_zero() and "parameters" not in self.trial.facts:
            parameters = sum(parameter.numel() for parameter in state.model.parameters())
            self.trial.note(parameters=parameters, val_images=state.about["images"]["val"])

    def _verdict(self) -> str | None:
        own = self.trial.course(self.search.spec.tune)
        reason = self.search.rule(own, lambda: self.search.siblings(self.trial))
        return reason and f"after {len(own.values)} of {own.epochs} epochs: {reason}"


def train(trial: Trial, work: Callable[[], Ending]) -> str | None:
    """Have a trial trained, from its checkpoint on; how it ended is in its facts.

    What goes wrong with it is its reason, and never the search's end. Returns why it could not be
    trained by the fault of the cluster: then it has not ended.
    """
    began, before = time.time(), trial.facts.get("wall_s", 0.0)
    ending: Ending = {}
    try:
        with trial.run.lock(TAKE_OVER_S):
            ending = work()
    except Interrupted:
        pass
    except ClusterError as error:
        return str(error)
    except RaycnnError as error:
        ending = {"state": "failed", "reason": str(error)}
    except Exception as error:
        ending = {"state": "failed", "reason": f"{type(error).__name__}: {error}"}
    finally:
        trial.note(**ending, wall_s=before + time.time() - began)
    if ending:
        with suppress(OSError):
            checkpoint.prune(trial.run.checkpoints)
    if reason := ending.get("reason"):
        with suppress(OSError):
            failed = ending["state"] == "failed"
            event = Failed(error=reason, kind="Trial") if failed else TrialStopped(reason=reason)
            trial.run.add_event(event)
    return None


def work_on(
    search: Search,
    trial: Trial,
    device: torch.device,
    deadline: float | None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Ending:
    """Train as one worker; return how the trial ended.

    When asked to stop, or past the `deadline` (seconds since 1970), it saves and has not ended.
    """
    job = trial.run.job().change({"data.root": None})  # RAYCNN_DATA has it, on every machine

    def stop() -> bool:
        return stop_requested() or (deadline is not None and time.time() > deadline)

    channel = FolderChannel(trial.run, job.workers.timeout_s, stop)
    recorder = TrialRecorder(search, trial, channel)
    try:
        fit(job, device, recorder, recorder.callbacks, test_once=False)
        return {"state": "done"}
    except _Stopped as stopped:
        return {"state": "stopped", "reason": str(stopped)}
    except Interrupted as error:
        log.info(str(error))
        return {}
    except Exception as error:
        channel.failed(error)
        log.error("failed", exc_info=error)
        raise
    finally:
        recorder.close()
        channel.close()
