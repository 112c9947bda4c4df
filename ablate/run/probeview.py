"""What a plan will take, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ablate.errors import plural
from ablate.rows import Plan
from ablate.run.estimates import study_hours, trial_seconds
from ablate.run.hours import Rates, duration, rates_said
from ablate.run.ledger import Ledger
from ablate.run.measure import Figures
from ablate.terminal import WIDE, fits, say

HEADINGS = (
    "variant",
    "size",
    "step",
    "quartiles",
    "evaluation",
    "set-up",
    "peak memory",
    "rows at once",
    "a trial",
    "to go",
    "all",
)


def probe_json(
    plan: Plan, ledger: Ledger, figures: Mapping[str, Figures], slots: float, rates: Rates
) -> dict[str, Any]:
    """Every row with what was measured of it, seconds a trial and trials to go; and the hours of all of them."""
    to_go = [trial for trial in plan.trials if ledger.trial(trial.id).record() is None]
    seconds: dict[str, float] = {}
    rows = []
    for row in plan.rows:
        measured = figures[row.spec.row_id]
        left = [trial for trial in to_go if trial.row is row]
        one = None if "failed" in measured else trial_seconds(measured, row.spec)
        if one is not None:
            seconds |= {trial.id: one for trial in left}
        labels = {
            "variant": row.variant,
            "size": row.size,
            "axes": row.axes,
            "budget": row.budget,
            "stage": row.stage,
        }
        rows.append({**labels, "cell": row.cell, **measured, "trial_s": one, "to_go": len(left)})
    whole = study_hours(to_go, seconds, slots)
    candidates = plan.grid.race or plan.grid.predict or plan.grid.promote or plan.grid.rungs
    bound = "at most" if candidates else "at least" if plan.grid.tune else ""
    return {"rows": rows, "slots": slots, "bound": bound, **whole, **rates.of(whole["device_hours"])}


def print_probe(tree: Mapping[str, Any], console: Console | None = None) -> None:
    """For a person."""
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDE
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in HEADINGS:
        table.add_column(name, justify="left" if name in HEADINGS[:2] else "right", no_wrap=True)
    measured = [row for row in tree["rows"] if "failed" not in row]
    for row in tree["rows"]:
        first = (escape(row["variant"]), escape(row["cell"]))
        table.add_row(*first, *(_cells(row) if row in measured else ["[red]failed[/]"]))
    if fits(table, console):
        console.print(table)
    else:  # no number is cut off
        for row in measured:
            said = [f" {name} {cell}" for name, cell in zip(HEADINGS[2:], _cells(row), strict=True)]
            say(console, "\n".join([_name(row), *said]))
    for row in tree["rows"]:
        if "failed" in row:
            say(console, f"{_name(row)}: {row['failed']}", "red")
        elif row["micro_batches"] > 1:
            say(console, f"{_name(row)}: micro-batches in {row['micro_batches']} pieces, for memory")
    say(
        console,
        f"{plural(tree['trials'], 'trial')} to go: {tree['bound']} {tree['device_hours']:.3g} device hours, "
        f"{duration(3600 * tree['hours'])} with {tree['slots']:g} at once".replace("  ", " ")
        + rates_said(tree)
        + (f"; {plural(tree['unknown'], 'trial')} of rows that failed are not counted" if tree["unknown"] else ""),
    )


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['variant']} ({row['cell']})" if row["cell"] else str(row["variant"])


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What stands below each of `HEADINGS`, the name apart."""
    low, high = row["step_quartiles_s"]
    most = row["largest_rows"]
    return (
        _ms(row["step_s"]),
        f"{1e3 * low:.3g} to {_ms(high)}",
        _ms(row["evaluation_s"]),
        f"{row['setup_s']:.2f} s",
        f"{row['memory_bytes'] / 1e6:,.0f} MB",
        f"{row['rows_at_once']}" + (f" of {most}" if most else ""),
        duration(row["trial_s"]),
        str(row["to_go"]),
        duration(row["trial_s"] * row["to_go"]),
    )


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"
