"""Seconds that each command takes to answer: uv run python benchmarks/cli.py [--repeats 5].

Each is run in a process of its own, in a new folder with one finished run; the median is printed.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

COMMANDS = {
    "--help": 0.4,
    "list": 1.0,
    "list runs": 1.0,
    "schema": 1.0,
    "train --help": 1.0,
    "check quickstart": 3.0,
    "summary lenet --image 1x28x28": 3.0,
}
"""And the seconds that each may take on an idle machine."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    with TemporaryDirectory() as folder:
        run(folder, "train quickstart train.epochs=1")
        print(f"{'command':<36}{'median':>8}{'least':>8}{'aim':>6}")
        for command, aim in COMMANDS.items():
            seconds = [run(folder, command) for _ in range(repeats)]
            middle = statistics.median(seconds)
            print(f"{command:<36}{middle:>8.2f}{min(seconds):>8.2f}{aim:>6.1f}", flush=True)


def run(folder: str, command: str) -> float:
    """Return the seconds of one command."""
    raycnn = [str(Path(sys.executable).with_name("raycnn")), *command.split()]
    start = time.perf_counter()
    subprocess.run(raycnn, cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
