"""What the manual shows: the commands, YAML and Python of its code blocks."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def commands(page: Path, shell: str = "bash") -> list[list[str]]:
    """Return the words after `raycnn` of each command; those of `sh` blocks need a cluster."""
    lines = "\n".join(blocks(page, shell)).replace("\\\n", " ").splitlines()
    words = [shlex.split(line.partition(" > ")[0], comments=True) for line in lines]
    return [line[line.index("raycnn") + 1 :] for line in words if "raycnn" in line]
