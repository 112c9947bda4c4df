"""A plan as a table and as JSON."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from ablate.errors import plural
from ablate.rows import Plan, Row
from ablate.run.ledger import Ledger
from ablate.run.trunks import saved_flops


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


def match_residual(row: Row, match: str) -> float:
    """How far the row is from its baseline in what was matched; in parameters where nothing was."""
    if match == "both":
        return max(row.residuals.values(), key=abs)
    return row.residuals["flops" if match == "flops" else "params"]


def memory_bytes(row: Row) -> float:
    """Estimate of a trial's memory in float32: weights, gradients, two optimizer moments, activations."""
    batch = row.spec.train.batch_tokens / row.spec.train.accumulate
    return 16 * row.cost.params_total + row.cost.activation_bytes * batch


def print_plan(plan: Plan, ledger: Ledger) -> None:
    """The plan for a person."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 240  # a file or a pipe has no width: nothing is cut off
    done = _done(plan, ledger)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name, justify in (("variant", "left"), ("size", "left"), ("params", "right"), ("vs base", "right")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for name in ("FLOP/token", "vs base", "tokens", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("differs in")
    for row in plan.rows:
        differs = ", ".join(row.differs_in)
        if row.solved:
            differs += "  (" + ", ".join(f"{path} {value}" for path, value in row.solved.items()) + ")"
        if row.confounded:
            differs += "  [yellow]confounded[/]"
        table.add_row(
            row.variant,
            row.cell,
            f"{row.cost.params_total:,}",
            f"{row.residuals['params']:+.2%}",
            f"{row.cost.flops_forward:,.0f}",
            f"{row.residuals['flops']:+.2%}",
            f"{row.tokens:,}",
            f"{memory_bytes(row) / 1e6:,.0f} MB",
            differs,
        )
    console.print(table)
    console.print(
        f"{plural(len(plan.trials), 'trial')} over seeds {_seeds(plan)}, {len(done)} already done; match: "
        f"{plan.grid.match} within {plan.grid.tolerance:.1%}; {plan.total_flops:.3g} training FLOPs in all",
        soft_wrap=True,
    )
    if saved := saved_flops(plan, done):
        left = sum(trial.row.flops for trial in plan.trials if trial.id not in done)
        console.print(
            "trials that differ in length alone train their first steps once: "
            f"{saved / left:.0%} of the FLOPs to come are not run",
            soft_wrap=True,
        )
