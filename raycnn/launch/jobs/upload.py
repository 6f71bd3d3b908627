"""Submit a job with its files: the only request that needs Ray's own client."""

import logging
import os
from typing import Any


def submit(server: str, headers: dict[str, str], **job: Any) -> str:
    """Submit the job and return its id, as `JobSubmissionClient.submit_job` does.

    Raises RuntimeError or ConnectionError with Ray's message.
    """
    from ray.job_submission import JobSubmissionClient

    logging.disable(logging.INFO)  # it logs every upload
    # Ray prefers this variable, and RAY_ADDRESS, to the address argument.
    before, os.environ["RAY_API_SERVER_ADDRESS"] = os.environ.get("RAY_API_SERVER_ADDRESS"), server
    try:
        return str(JobSubmissionClient(server, headers=headers).submit_job(**job))
    finally:
        logging.disable(logging.NOTSET)
        if before is None:
            del os.environ["RAY_API_SERVER_ADDRESS"]
        else:
            os.environ["RAY_API_SERVER_ADDRESS"] = before
