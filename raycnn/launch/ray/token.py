"""The token of this user's Ray clusters. Ray is not imported."""

import os
from contextlib import suppress
from pathlib import Path

PROBE_S = 5  # for a head, or its job server, to answer at all
TOKEN = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def token() -> str | None:
    """Return the token that Ray would send, if there is one."""
    if given := os.environ.get("RAY_AUTH_TOKEN"):
        return given.strip()
    return TOKEN.read_text().strip() if TOKEN.is_file() else None


def hide_token() -> None:
    """Keep the token from other users: Ray writes it for all to read."""
    with suppress(OSError):  # none, or another's
        TOKEN.chmod(0o600)
