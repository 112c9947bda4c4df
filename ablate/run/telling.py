"""What `ablate run` says in words: what is to be done before it, what it came to after it."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from ablate.errors import plural
from ablate.grid import Grid
from ablate.run.mlflow_store import shown
from ablate.run.study import Outcome
from ablate.terminal import say


def to_train(grid: Grid, missing: int) -> str:
    """What a planner may leave out or add is said beforehand."""
    candidates = grid.race or grid.predict or grid.promote
    more = ", and what follows from the sweeps" if grid.tune else ""
    return f"{missing} to train{' at most' if candidates else ''}{more}"


def compared(baselines: list[dict[str, Any]]) -> str:
    """What the results are to be compared with."""
    said = [
        f"{each['stage']} {each['name']} {each['value']:.4f}".strip()
        for each in baselines
        if each.get("split", "valid") == "valid"
    ]
    return "; to compare with: " + ", ".join(said) if said else ""


def tell(outcome: Outcome, console: Console, uri: str) -> None:
    """The end of a run in words: counts, failures, what to do next."""
    say(console, outcome.words)
    if failed := [key for key, status in outcome.statuses.items() if status == "failed"]:
        said = "failed trials: `ablate why ID` shows the error; --retry-failed tries again"
        say(console, f"{said} ({', '.join(failed)})", "red")
    if outcome.enough and not outcome.stopped:
        left = sum(status == "pending" for status in outcome.statuses.values())
        say(console, f"{outcome.enough}: {plural(left, 'trial')} not run")
    if outcome.tracking_trouble:
        trouble = f"MLflow at {shown(uri)} was not updated: {outcome.tracking_trouble}"
        say(console, f"{trouble}; run again to catch up, or `ablate track STUDY`", "yellow")
    if outcome.stopped:
        left = sum(status in ("pending", "running") for status in outcome.statuses.values())
        say(console, f"{outcome.stopped} with {plural(left, 'trial')} to go: the same command goes on from here")
