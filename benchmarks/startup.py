"""Start-up of the commands, whole processes, wall clock."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import interleaved, median_ms

GRID = Path(__file__).parent.parent / "experiments" / "quickstart.yaml"


def table() -> list[list[str]]:
    with tempfile.TemporaryDirectory() as results:
        commands = {
            "bare python": ["-c", "pass"],
            "ablate --help": ["-m", "ablate", "--help"],
            "ablate list": ["-m", "ablate", "list"],
            "ablate plan quickstart.yaml": ["-m", "ablate", "plan", str(GRID), "--results", results],
        }
        sides = {name: lambda args=args: _run(args) for name, args in commands.items()}
        seconds = interleaved(sides, rounds=9, clock=time.perf_counter)
    return [["command", "median, ms"], *([name, median_ms(each)] for name, each in seconds.items())]


def _run(arguments: list[str]) -> None:
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
