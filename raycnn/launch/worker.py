"""What every worker does, whoever started it: fit, recorded in the run folder."""

from collections.abc import Callable

import torch

from raycnn import dist
from raycnn.loop import fit
from raycnn.runs import Recorder, Run, View, log, result_of
from raycnn.spec import JobSpec


def work(
    job: JobSpec,
    run: Run,
    device: torch.device,
    view: View | None = None,
    asked: Callable[[], bool] = lambda: False,
) -> None:
    recorder = Recorder(run, view, asked)
    try:
        outcome = fit(job, device, recorder)
        dist.together(lambda: recorder.finish(result_of(outcome.state, outcome.test)))
    except BaseException as error:
        log.error("ended", exc_info=error)  # every worker's own file has its own story
        raise
    finally:
        recorder.close()
