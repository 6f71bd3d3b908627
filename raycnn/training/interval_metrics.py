"""The metrics of training steps between two synchronizations, which also find a divergence."""

import math

from torch import Tensor

from raycnn.errors import Diverged
from raycnn.runtime import distributed
from raycnn.training.checkpoint import TrainingState
from raycnn.training.metrics import build_metric_accumulator


class IntervalAccumulator:
    """An accumulator of the metrics of the steps since the last synchronization of workers."""

    def __init__(self, state: TrainingState):
        self._reset(state)

    def sync_metrics(self, state: TrainingState) -> None:
        """Reduce the metrics over all workers and add them to the state.

        Raises Diverged, on all workers, if a loss or a weight is not finite.
        """
        interval_metrics = self.metrics.all_reduce()
        if interval_metrics.bad_step is not None:
            raise _divergence_error(state, self.first_step + interval_metrics.bad_step + 1)
        # Batch norm has gathered statistics of each rank's own images: all go on with rank 0's.
        distributed.broadcast_buffers(state.model)
        # The last update may have made weights non-finite that no loss has used yet.
        check_finite(sum(p.detach().sum() for p in state.model.parameters()), state)
        state.epoch_metrics = state.epoch_metrics.plus(interval_metrics)
        self._reset(state)

    def _reset(self, state: TrainingState) -> None:
        classes, multi_label = len(state.metadata["classes"]), state.metadata["multi_label"]
        self.metrics = build_metric_accumulator(classes, multi_label)
        self.first_step = state.step


def check_finite(value: float | Tensor, state: TrainingState) -> None:
    """Raise Diverged if a value of the current step is not finite."""
    if not math.isfinite(value):
        raise _divergence_error(state, state.step)


def _divergence_error(state: TrainingState, step: int) -> Diverged:
    return Diverged(
        f"the loss is not finite at step {step} of epoch {state.epoch + 1}: "
        "lower optimizer.lr, set train.clip_norm, or warm up"
    )
