"""Render a page: a self-contained HTML file, with all names escaped."""

import base64
import hashlib
import json
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from raycnn import __version__
from raycnn.io import atomic_path

if TYPE_CHECKING:
    from jinja2 import Environment

MAX_BYTES = 2_000_000  # of a page
MAX_LENGTH = 80  # characters of a name or value on a page


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined  # slow to import

    environment = Environment(
        loader=PackageLoader("raycnn.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"percent": percent, "duration": duration, "clip": clip, "plain": plain}
    return environment


def render(template: str, title: str, **values: Any) -> str:
    """Return the HTML of a page. Everything in `values` except Markup is escaped."""
    environment = _environment()
    assert environment.loader
    style, script = (
        environment.loader.get_source(environment, name)[0] for name in ("style.css", "sort.js")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(
        title=title, style=Markup(style), script=Markup(script), script_hash=digest,
        version=__version__, written=time.strftime("%Y-%m-%d %H:%M"), **values,
    )  # fmt: skip


def save_page(path: Path, page: str) -> None:
    """Write a page atomically. Raises OSError."""
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def percent(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def duration(seconds: float | None) -> str:
    """Return seconds as text, in the two largest nonzero units."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if not hours:
        return f"{minutes} min {seconds} s"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes} min"


def clip(value: object, length: int = MAX_LENGTH) -> str:
    """Return a value as text, cut to `length` characters."""
    text = str(value)
    return text if len(text) <= length else f"{text[: length - 1]}…"


def plain(value: Any) -> str:
    """Return a setting as on the command line, cut to a maximum length."""
    if isinstance(value, str):
        return clip(value, 4 * MAX_LENGTH)
    return clip(json.dumps(value, ensure_ascii=False), 4 * MAX_LENGTH)
