"""The part of raycnn that runs in the process of Ray's controller, which restarts lost workers.

It imports neither torch nor modules that do: that takes seconds, for which the workers would wait.
"""

from typing import Any

from ray.train import BackendConfig, UserCallback

from raycnn.errors import first_line
from raycnn.launch.ray import compat


class NoBackend(BackendConfig):
    """A backend configuration that leaves the process group to the training function.

    It has what TorchTrainer reads of a TorchConfig, which would import torch.
    """

    def __init__(self, backend: str):
        self.backend = backend


class WorkerFailureReporter(UserCallback):
    """Callback that reports the errors of workers to the channel."""

    def __init__(self, channel: Any):
        self.channel = channel

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        causes = {rank: compat.cause_of(error) for rank, error in worker_exceptions.items()}
        preempted = any(getattr(cause, "preempted", False) for cause in causes.values())
        errors = {rank: first_line(cause) for rank, cause in causes.items()}
        self.channel.workers_failed.remote(errors, preempted)
