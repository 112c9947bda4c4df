"""Measure the named parts (default: all) and write benchmarks/README.md."""

from __future__ import annotations

import datetime
import importlib
import json
import sys
from pathlib import Path

from benchmarks.measure import loaded, machine

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results.json"
PARTS = {
    "step": "Training step against plain PyTorch (nanoGPT's shape), one thread, CPU time. Target: plain / ours at "
    "least 0.97 at small.",
    "trial": "Whole trial against its own bare step loop, CPU time. Target: at least 0.95.",
    "launch": "Grids as a user sees them, wall clock: Ray Tune function trainables around the plain loop, and ours. "
    "Targets: a trivial trial's marginal cost at most 5 ms local and 1/20 of Tune's under Ray; 4.5 times as fast "
    "at tiny, 1.6 at small.",
    "components": "Training step of every mixer, channel, norm, residual and position relative to the slot's default "
    "(d 128, 2 layers, T 256), CPU time. One above 2 is worth a look.",
    "complexity": "Table 1 of Vaswani et al. 2017 as measured: forward pass of one layer, fitted over n and d, "
    "CPU time.",
    "fits": "Fits of scaling laws against scipy from a grid of starts, CPU time, one thread. Targets: a full fit 500 "
    "times as fast at an objective no worse; 4,000 resamples 10 times as fast as numeric BFGS, 3 times as analytic.",
    "replay": "Racing and promotion replayed on grids with planted effects: share of the full grid's verdicts that "
    "are reached, and of its FLOPs.",
    "ladder": "A ladder of lengths on shared first steps against independent runs, two variants at tiny, one thread. "
    "Target: at most 55 % of the FLOPs, losses within seed noise.",
    "cohort": "K trials in one program against the same one after the other, one thread, CPU time. On GPUs: "
    "`python -m benchmarks.gpu`.",
    "workers": "Trials an hour of a study on one core and two, and in cohorts, wall clock from the first trial to "
    "the last. Targets: two workers 1.85 times as fast as one; 2.1 times in cohorts of 4 at tiny.",
    "tool": "What the tool itself takes, CPU time.",
    "startup": "Start-up, whole processes, wall clock. Targets: 250 ms for --help, 500 ms for list.",
}
WALL_CLOCK = ("launch", "workers", "startup")


def main(names: list[str]) -> None:
    known = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for name in names or PARTS:
        if name in WALL_CLOCK and loaded():
            print(f"{name}: skipped, the machine is busy")
            continue
        rows = importlib.import_module(f"benchmarks.{name}").table()
        known[name] = {"rows": rows, "machine": machine(), "date": datetime.date.today().isoformat()}
        print("\n".join(" | ".join(row) for row in rows), flush=True)
        RESULTS.write_text(json.dumps(known, indent=1) + "\n")
    write(known)


def write(known: dict) -> None:
    """The tables, and what stands in `notes.md`."""
    intro = "`python -m benchmarks [part ...]` measures and rewrites this page. Both sides run in turn in one run; "
    lines = ["# Benchmarks", "", intro + "medians, ratios with their quartiles.", ""]
    for name, title in PARTS.items():
        if name not in known:
            continue
        header, *rows = known[name]["rows"]
        lines += [f"## {name}", "", title, "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        lines += ["", f"{known[name]['machine']}; {known[name]['date']}.", ""]
    lines.append((FOLDER / "notes.md").read_text().strip())
    (FOLDER / "README.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
