"""What the record of a trial says that has trained."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ablate.diagnose.record import diagnose
from ablate.run.environment import environment, peak_memory_bytes
from ablate.run.outcome import final_metrics
from ablate.spec import to_tree
from ablate.train.cohort.members import cohort_of
from ablate.train.forks import forked_from

if TYPE_CHECKING:
    from ablate.train.training import Trial


def record_of(trial: Trial, status: str, reason: str | None) -> dict[str, Any]:
    """`reason` is why it did not finish."""
    spec, run, cost = trial.spec, trial.run, trial.cost
    tokens = spec.train.tokens_at(run.step)
    return {
        "id": spec.trial_id,
        "group_id": spec.group_id,
        "status": status,
        "error": reason,
        "spec": to_tree(spec),
        "parent": spec.parent,
        "forked": forked_from(trial.folder.history()),
        "cohort": cohort_of(trial.folder.history()),
        "parallel": _parallel(trial),
        "compiled": trial.compiled,
        "begun": run.begun,
        "metric": {"name": run.task.metric, "better": "higher" if run.task.higher_is_better else "lower"},
        "metrics": final_metrics(trial.folder, status, run.steps),
        "layers": {"initial": trial.layers_at_first, "final": run.by_layer()},
        "diagnostics": _diagnostics(trial),
        "params_total": cost.params_total,
        "params_non_embedding": cost.params_non_embedding,
        "params_active": cost.params_active,
        "params_by_slot": cost.params_by_slot,
        "flops_per_token": cost.flops_forward,
        "flops_per_token_backward": cost.flops_backward,
        "flops_per_token_algorithmic": cost.flops_algorithmic,
        "train_flops": cost.flops_train * tokens,
        "train_flops_6nd": cost.flops_6n * tokens,
        "tokens": tokens,
        "steps": run.step,
        "cooled_steps": run.cooled_steps(),
        "epochs": tokens / run.task.train_tokens,
        "data": run.task.facts(),
        "tokens_per_s": tokens / trial.train_s if trial.train_s else None,
        "wall_s": trial.wall_s(),
        "profile": trial.profile.state(),
        "micro_batches": trial.pieces.count,
        "micro_note": trial.pieces.note,
        "peak_memory_bytes": peak_memory_bytes(trial.device),
        "environment": environment(trial.device),
        "ended": time.time(),
    }


def _parallel(trial: Trial) -> dict[str, Any] | None:
    """Over which processes it was trained, and what that means for its numbers; None for one."""
    parallel = trial.spec.resources.parallel
    if parallel.ranks == 1:
        return None
    note = "the same numbers as of one process, up to rounding"
    if parallel.data > 1:
        note += ", and but for dropout, whose masks are another draw of the same distribution"
    return {**to_tree(parallel), "note": note}


def _diagnostics(trial: Trial) -> dict[str, dict[str, Any]]:
    """Each diagnostic that was asked for, before the first step and after the last."""
    final = diagnose(trial.run, final=True)
    return {name: {"initial": trial.seen_at_first[name], "final": final[name]} for name in final}
