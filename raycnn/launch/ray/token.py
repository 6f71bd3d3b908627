"""The authentication token of this user's Ray clusters. Does not import Ray."""

import os
from contextlib import suppress
from pathlib import Path

PROBE_S = 5  # timeout for a first answer of a head or its job server
TOKEN = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def token() -> str | None:
    """Return the token that Ray would send, or None."""
    if given := os.environ.get("RAY_AUTH_TOKEN"):
        return given.strip()
    return TOKEN.read_text().strip() if TOKEN.is_file() else None


def hide_token() -> None:
    """Make the token file readable only by this user: Ray creates it readable by all."""
    with suppress(OSError):  # there is none, or another user owns it
        TOKEN.chmod(0o600)
