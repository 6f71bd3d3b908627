"""One trial of a search, as each of its workers sees it: judged after each epoch, not tested."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from raycnn.errors import ClusterError, Interrupted, RaycnnError
from raycnn.runs.directory import Recorder, log
from raycnn.runtime import distributed
from raycnn.search.folder import TAKE_OVER_S, Search, Trial
from raycnn.training import checkpoint
from raycnn.training.checkpoint import TrainingState
from raycnn.training.loop import fit

Ending = dict[str, Any]
"""The state and, where it did not come to its end, the reason; {} when it has not ended."""


class _Stopped(Exception):
    """Not worth going on with."""


class _Judged(Recorder):
    """Records a trial, and ends it when the search's scheduler says so."""

    def __init__(self, search: Search, trial: Trial, asked: Callable[[], bool]):
        super().__init__(trial.run, None, asked)
        self.search, self.trial = search, trial
        self.until = search.until(trial)

    def restore(self, state: TrainingState) -> bool:
        there = super().restore(state)
        self._wait(state)
        return there

    def close_epoch(self, state: TrainingState) -> None:
        super().close_epoch(state)
        if self.leads and "parameters" not in self.trial.facts:
            parameters = sum(parameter.numel() for parameter in state.model.parameters())
            self.trial.note(parameters=parameters, val_images=state.about["images"]["val"])
        if reason := distributed.broadcast_from_rank_zero(self._verdict):
            raise _Stopped(reason)
        self._wait(state)

    def _wait(self, state: TrainingState) -> None:
        """Raises Interrupted, on every worker, when it is the others' turn to come as far."""
        if state.epoch == self.until < self.trial.facts["epochs"]:
            raise Interrupted(f"waits for the others after {state.epoch} epochs")

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
            trial.run.add_event(f"{ending['state']}: {reason}")
    return None


def work_on(
    search: Search,
    trial: Trial,
    device: torch.device,
    deadline: float | None,
    asked: Callable[[], bool] = lambda: False,
) -> Ending:
    """Train as one worker. When asked to, or past the `deadline` (seconds since 1970), it saves,
    and has not ended."""
    job = trial.run.job().change({"data.root": None})  # RAYCNN_DATA has it, on every machine

    def stop() -> bool:
        return asked() or (deadline is not None and time.time() > deadline)

    recorder = _Judged(search, trial, stop)
    try:
        fit(job, device, recorder, test_once=False)
        return {"state": "done"}
    except _Stopped as stopped:
        return {"state": "stopped", "reason": str(stopped)}
    except Interrupted as error:
        log.info(str(error))
        return {}
    except Exception as error:
        log.error("failed", exc_info=error)
        raise
    finally:
        recorder.close()
