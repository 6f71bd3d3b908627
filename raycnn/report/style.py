"""The style of figures: one palette for light and dark pages, print and PNGs.

A figure is drawn once, in the colors of the light page. Its SVG takes colors and font from the
page, where each color of the palette is a CSS variable.
"""

import hashlib
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raycnn.io import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Blue and orange of Okabe and Ito's color-blind-safe palette, darkened for text.
INK, MUTED, LINE, PAPER = "#1c2127", "#68717b", "#dfe3e8", "#fefefe"
ACCENT, WARN, SOFT = "#0a62a8", "#b8500b", "#9aa5b1"
PALETTE = {
    INK: "ink", MUTED: "muted", LINE: "line", PAPER: "paper",
    ACCENT: "accent", WARN: "warn", SOFT: "soft",
}  # fmt: skip
# Colors of series in one figure (Okabe and Ito, 2008, without yellow, which is invisible on white).
SERIES = ["#0a62a8", "#d2690a", "#00896a", "#b25b8e", "#4d9fd6", "#8a6d00", "#68717b"]

SIZE = (4.8, 3.0)  # inches; 460 pixels wide on a page, so that text stays legible on a phone
DPI = 160  # resolution of the PNGs
RC: dict[str, Any] = {
    "figure.facecolor": PAPER, "savefig.facecolor": PAPER, "axes.facecolor": "none",
    "font.size": 9.0, "axes.titlesize": 9.5, "axes.labelsize": 8.5, "legend.fontsize": 8.0,
    "xtick.labelsize": 8.0, "ytick.labelsize": 8.0,
    "text.color": INK, "axes.labelcolor": MUTED, "axes.titlecolor": INK,
    "xtick.color": LINE, "ytick.color": LINE, "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED,
    "axes.edgecolor": LINE, "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlelocation": "left", "axes.titlepad": 8.0,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": LINE, "grid.linewidth": 0.6,
    "lines.linewidth": 1.8, "lines.solid_capstyle": "round", "legend.frameon": False,
    "axes.formatter.useoffset": False, "axes.formatter.limits": (-4, 6),
    "text.parse_math": False,  # names are not formulas
    "svg.fonttype": "none",
}  # fmt: skip


@contextmanager
def styled() -> Iterator[None]:
    """Apply the style inside the block, without warnings about missing glyphs."""
    from matplotlib import rc_context  # slow to import

    settings: Any = RC
    with rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def render_figure(plot: Callable[["Axes"], None], size: tuple[float, float] = SIZE) -> "Figure":
    """Return a figure whose axes `plot` fills. Call it inside `styled`."""
    from matplotlib.figure import Figure

    figure = Figure(size, layout="constrained")
    plot(figure.add_subplot())
    return figure


def save_png(figure: "Figure", path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    figure.set_layout_engine("none")  # keep the layout of the page
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)


def svg(figure: "Figure", title: str) -> str:
    """Return a figure as an <svg> element that takes colors and font from the page's CSS."""
    from html import escape

    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    FigureCanvasSVG(figure)
    file = StringIO()
    # Make ids unique in the page, and reproducible.
    salt = hashlib.sha256(title.encode()).hexdigest()[:8]
    with rc_context({"svg.hashsalt": salt}):
        figure.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(
        r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', text, count=1
    )
    text = text.replace('role="img">', f'role="img"><title>{escape(title)}</title>', 1)
    text = text.replace("xlink:href", "href")
    text = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", text)
    ids = re.compile(r'\b(id="|href="#|url\(#)(?=[^"])')
    text = ids.sub(rf"\g<1>{salt}-", text)
    for color, name in PALETTE.items():
        text = text.replace(color, f"var(--{name})")
    return re.sub(r"\n\s*", "\n", text)
