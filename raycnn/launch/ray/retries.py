"""Which ends of a job's workers use a retry, and when none is left. Needs no Ray."""

from dataclasses import dataclass

from raycnn.errors import WorkerLost
from raycnn.training.callbacks import WorkersRestarted


@dataclass
class Retries:
    """The retries of a job: each loss of its workers uses one.

    None is used if their node was taken away, nor if a device ran out of memory and the next
    workers take a smaller micro-batch.
    """

    allowed: int
    """`failure.retries` of the job."""
    used: int = 0

    def count_restart(
        self, error: str, *, preempted: bool, out_of_memory: bool
    ) -> WorkersRestarted:
        """Count a restart after an error of the workers, and return its event.

        Raises WorkerLost if no retry is left for it.
        """
        cause = "memory" if out_of_memory else "preempted" if preempted else "lost"
        self.used += cause == "lost"
        if self.used > self.allowed:
            raise WorkerLost(
                f"workers were lost more than {self.allowed} times (failure.retries): {error}; "
                "the last checkpoint is intact"
            )
        return WorkersRestarted(error=error, cause=cause, retry=self.used, retries=self.allowed)
