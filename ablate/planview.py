"""A plan as a table and as JSON."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from ablate.errors import plural
from ablate.rows import Plan, Row
from ablate.run.ledger import Ledger
from ablate.run.trunks import saved_flops
from ablate.terminal import WIDE, fits, say
from ablate.views import View, html_table

if TYPE_CHECKING:
    import pandas as pd

HEADINGS = ("variant", "size", "params", "vs base", "FLOP/token", "vs base", "tokens", "memory", "differs in")


def plan_json(plan: Plan, ledger: Ledger) -> dict[str, Any]:
    """The machine-readable plan: one entry for every row (a variant at a size, axis setting and budget)."""
    done = _done(plan, ledger)
    return {
        "study": plan.grid.name,
        "trials": len(plan.trials),
        "done": len(done),
        "match": plan.grid.match,
        "variants": [
            {
                "name": row.variant,
                "stage": row.stage,
                "begins_from": row.parent.stage if row.parent else None,
                "trials": len(plan.trials_of(row)),
                "size": row.size,
                "axes": row.axes,
                "budget": row.budget,
                "params_total": row.cost.params_total,
                "params_non_embedding": row.cost.params_non_embedding,
                "flops_per_token": row.cost.flops_forward,
                "match_residual": match_residual(row, plan.grid.match),
                "residuals": dict(row.residuals),
                "solved": dict(row.solved),
                "differs_in": list(row.differs_in),
                "confounded": row.confounded,
                "tokens": row.tokens,
                "train_flops": row.flops,
                "memory_bytes": memory_bytes(row),
            }
            for row in plan.rows
        ],
        "total_flops": plan.total_flops,
        "shared_flops": saved_flops(plan, done),
    }


def _done(plan: Plan, ledger: Ledger) -> set[str]:
    """The trials that have ended."""
    return {trial.id for trial in plan.trials if ledger.trial(trial.id).record() is not None}


def _seeds(plan: Plan) -> list[int]:
    return sorted({seed for row in plan.rows for seed in row.seeds})


def _seeds_said(plan: Plan) -> str:
    seeds = _seeds(plan)
    many = len(seeds) > 5 and seeds == list(range(seeds[0], seeds[-1] + 1))
    return f"{seeds[0]} to {seeds[-1]}" if many else str(seeds)


def match_residual(row: Row, match: str) -> float:
    """How far the row is from its baseline in what was matched; in parameters where nothing was."""
    if match == "both":
        return max(row.residuals.values(), key=abs)
    return row.residuals["flops" if match == "flops" else "params"]


def memory_bytes(row: Row) -> float:
    """Estimate of a trial's memory in float32: weights, gradients, two optimizer moments, activations."""
    batch = row.spec.train.batch_tokens / row.spec.train.accumulate
    return 16 * row.cost.params_total + row.cost.activation_bytes * batch


def print_plan(plan: Plan, ledger: Ledger, console: Console | None = None) -> None:
    """The plan for a person."""
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDE
    done = _done(plan, ledger)
    table = _table(plan)
    if fits(table, console):
        console.print(table)
    else:  # no number is cut off
        for row in plan.rows:
            say(console, "\n".join(_lines(row)))
    for line in _remarks(plan, done):
        say(console, line)


def _table(plan: Plan) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in HEADINGS[:-1]:
        table.add_column(name, justify="left" if name in ("variant", "size") else "right", no_wrap=True)
    table.add_column(HEADINGS[-1])
    for row in plan.rows:
        *cells, differs = _cells(row)
        table.add_row(*cells, differs + ("  [yellow]confounded[/]" if row.confounded else ""))
    return table


def _cells(row: Row) -> tuple[str, ...]:
    """What stands below each of `HEADINGS`."""
    return (
        row.variant,
        row.cell,
        f"{row.cost.params_total:,}",
        f"{row.residuals['params']:+.2%}",
        f"{row.cost.flops_forward:,.0f}",
        f"{row.residuals['flops']:+.2%}",
        f"{row.tokens:,}",
        f"{memory_bytes(row) / 1e6:,.0f} MB",
        _differs(row),
    )


def _differs(row: Row) -> str:
    """In what, and what matching has solved: `channel  (arch.d_ff 86)`."""
    solved = ", ".join(f"{path} {value}" for path, value in row.solved.items())
    return ", ".join(row.differs_in) + (f"  ({solved})" if solved else "")


def _lines(row: Row) -> Iterator[str]:
    """A row of the table as text."""
    yield f"{row.variant} ({row.cell})" if row.cell else row.variant
    yield f" params {row.cost.params_total:,} ({row.residuals['params']:+.2%})"
    yield f" FLOP/token {row.cost.flops_forward:,.0f} ({row.residuals['flops']:+.2%})"
    yield f" tokens {row.tokens:,}, memory {memory_bytes(row) / 1e6:,.0f} MB"
    if differs := _differs(row) + "  confounded" * row.confounded:
        yield f" differs in {differs}"


def _remarks(plan: Plan, done: set[str]) -> list[str]:
    """What there is to say of the whole."""
    lines = [
        f"{plural(len(plan.trials), 'trial')} over seeds {_seeds_said(plan)}, {len(done)} already done; match: "
        f"{plan.grid.match} within {plan.grid.tolerance:.1%}; {plan.total_flops:.3g} training FLOPs in all"
    ]
    if saved := saved_flops(plan, done):
        left = sum(trial.row.flops for trial in plan.trials if trial.id not in done)
        lines.append(
            "trials that differ in length alone train their first steps once: "
            f"{saved / left:.0%} of the FLOPs to come are not run"
        )
    return lines


def plan_view(plan: Plan, ledger: Ledger) -> View:
    """The plan as `print_plan` has it, in a notebook as a table; its numbers are those of `plan_json`."""
    rows = []
    for row in plan.rows:
        *cells, differs = _cells(row)
        said = f"{differs}  confounded" if row.confounded else differs
        rows.append([*cells, str(len(plan.trials_of(row))), said])
    headings = [*HEADINGS[:-1], "trials", HEADINGS[-1]]
    html = html_table(headings, rows, _remarks(plan, _done(plan, ledger)), left=("variant", "size", "differs in"))
    with io.StringIO() as stream:
        print_plan(plan, ledger, Console(file=stream, highlight=False, force_jupyter=False, force_terminal=False))
        text = "\n".join(line.rstrip() for line in stream.getvalue().splitlines())
    return View(text, html, partial(_frame, plan_json(plan, ledger)["variants"]), plan)


def _frame(variants: list[dict[str, Any]]) -> pd.DataFrame:
    """One row a variant at a size, axis setting and budget."""
    import pandas as pd

    rows = []
    for each in variants:
        residuals = {f"residual_{name}": value for name, value in each["residuals"].items()}
        rows.append({key: value for key, value in each.items() if key != "residuals"} | residuals)
    return pd.DataFrame(rows)
