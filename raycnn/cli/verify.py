"""`raycnn verify`."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from raycnn.cli.arguments import Changes, Runs, is_job
from raycnn.config.load import load_job
from raycnn.errors import JobFailed

if TYPE_CHECKING:
    from raycnn.analysis.verify import VerifyReport

WORDS = {True: "OK ", False: "NOT", None: "-- "}


def verify(
    job: Annotated[str, typer.Argument(metavar="JOB|RUN", help="A job spec, or a run.")],
    changes: Changes = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the certificate as JSON.")] = False,
    runs: Runs = "runs",
) -> None:
    """Train a job briefly, kill it, resume it, and compare with an uninterrupted training."""
    from raycnn.analysis.verify import verify as put_to_the_test
    from raycnn.runs.directory import Run
    from raycnn.training.preflight import check_job

    run = None if is_job(job) else Run.find(job, runs)
    resolved = run.job().change(changes or []) if run else load_job(Path(job), changes or [])
    check_job(resolved)
    certificate = put_to_the_test(resolved, run, lambda text: print(text, file=sys.stderr))
    show = _as_json if as_json else _as_text
    print(show(certificate))
    if not certificate.passed:
        raise JobFailed("what is promised was not kept: see what is marked NOT")


def _as_json(certificate: "VerifyReport") -> str:
    return json.dumps({"passed": certificate.passed, **asdict(certificate)}, indent=1)


def _as_text(certificate: "VerifyReport") -> str:
    packages = certificate.environment["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in ("raycnn", "torch", "numpy"))
    lines = [
        f"job {certificate.job}, shortened: {certificate.how}",
        f"{versions}, Python {certificate.environment['python']}, "
        f"{certificate.environment['platform']}",
        *(f"{WORDS[finding.passed]}  {finding.text}" for finding in certificate.findings),
    ]
    return "\n".join(lines)
