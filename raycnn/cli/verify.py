"""The command `raycnn verify`: check exact resume with a job, and the checkpoints of a run."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raycnn.cli.arguments import Changes, Runs, is_job, is_job_file
from raycnn.config.load import load_job
from raycnn.errors import JobFailed, SpecError

if TYPE_CHECKING:
    from raycnn.analysis.verify_resume import VerifyReport
    from raycnn.runs.directory import Run

WORDS = {True: "OK  ", False: "FAIL", None: "--  "}


def verify(
    job: Annotated[str, typer.Argument(metavar="JOB|RUN", help="A job, or a run.")],
    changes: Changes = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    runs: Runs = "runs",
) -> None:
    """Train a job briefly, kill it, resume it, and compare with an uninterrupted training.

    Of a run, the checksums of its checkpoints are verified as well.
    """
    from raycnn.analysis.verify_resume import verify_resume
    from raycnn.runs.preflight import check_job

    run = _find_run(job, runs)
    resolved = run.job().change(changes or []) if run else load_job(Path(job), changes or [])
    checked = check_job(resolved.change({"trackers": []})).job
    report = verify_resume(checked, run, lambda text: print(text, file=sys.stderr))
    print(_as_json(report) if as_json else _as_text(report))
    if not report.passed:
        raise JobFailed("verification failed: see the checks marked FAIL")


def _find_run(name: str, root: str) -> "Run | None":
    """Return the run of a name, None for a job: a file, or a recipe that has no run."""
    from raycnn.runs.directory import Run

    if is_job_file(name):
        return None
    try:
        return Run.find(name, root)
    except SpecError:
        if is_job(name):
            return None
        raise


def _as_json(report: "VerifyReport") -> str:
    return json.dumps({"passed": report.passed, **asdict(report)}, indent=1)


def _as_text(report: "VerifyReport") -> str:
    packages = report.environment["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in ("raycnn", "torch", "numpy"))
    lines = [
        f"job {report.job}, shortened: {report.how}",
        f"{versions}, Python {report.environment['python']}, {report.environment['platform']}",
        *(f"{WORDS[finding.passed]}  {finding.text}" for finding in report.findings),
    ]
    return "\n".join(lines)
