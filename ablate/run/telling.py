"""What `ablate run` says in words: what is to be done before it, what it came to after it."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape

from ablate.errors import plural
from ablate.grid import Grid
from ablate.run.mlflow_store import shown
from ablate.run.study import Outcome


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
    console.print(outcome.words)
    if failed := [key for key, status in outcome.statuses.items() if status == "failed"]:
        console.print(
            f"[red]failed trials: `ablate why ID` shows the error; --retry-failed tries again[/] "
            f"({', '.join(failed)})",
            soft_wrap=True,
        )
    if outcome.enough and not outcome.stopped:
        left = sum(status == "pending" for status in outcome.statuses.values())
        console.print(f"{outcome.enough}: {plural(left, 'trial')} not run", markup=False, soft_wrap=True)
    if outcome.tracking_trouble:
        console.print(
            f"[yellow]MLflow at {escape(shown(uri))} was not updated: {escape(outcome.tracking_trouble)}; "
            "run again to catch up, or `ablate track STUDY`[/]",
            soft_wrap=True,
        )
    if outcome.stopped:
        left = sum(status in ("pending", "running") for status in outcome.statuses.values())
        console.print(f"{outcome.stopped} with {plural(left, 'trial')} to go: the same command goes on from here")
