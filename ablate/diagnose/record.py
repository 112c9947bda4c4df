"""What a trial's record has of the looks inside that its specification asks for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ablate.diagnose.activations import activations
from ablate.diagnose.attention import attention
from ablate.diagnose.gradients import gradients
from ablate.diagnose.heads import heads
from ablate.tasks.base import Batch, first_rows

if TYPE_CHECKING:
    from ablate.train.run import Run

LOOKED_AT = 8  # rows, where a few are enough


def diagnose(run: Run, final: bool) -> dict[str, Any]:
    """Each diagnostic of `train.diagnostics` by its name, of the model as it is now.

    Those of a trained model alone are None before the end. Numbers that are not finite are None.
    """
    found: dict[str, Any] = {}
    for name in run.spec.train.diagnostics:
        found[name] = None
        if final or name not in AT_THE_END:
            with run.autocast():
                found[name] = _finite(LOOKS[name](run))
    return found


def _sample(run: Run, split: str) -> list[Batch]:
    """As many tokens of a split as an evaluation on the way reads."""
    batches = run.task.held_out(split, run.spec.train.eval_tokens, run.rows_at_once)
    return [batch.to(run.device) for batch in batches]


def _few(run: Run) -> Batch:
    tokens = LOOKED_AT * run.spec.data.row_tokens
    return first_rows(run.task.held_out(_main(run), tokens, LOOKED_AT), LOOKED_AT).to(run.device)


def _main(run: Run) -> str:
    """The split that is measured: validation, where there is one."""
    return "valid" if "valid" in run.task.splits else run.task.splits[-1]


def _train(run: Run) -> str:
    return "train" if "train" in run.task.splits else _main(run)


def _train_curve(run: Run) -> dict[str, float] | None:
    """Both losses on the samples that the curves are of: the evaluation at the end has larger ones."""
    splits = [split for split in ("train", "valid") if split in run.task.splits]
    return {split: run.evaluate(split, final=False)["loss"] for split in splits}


LOOKS: dict[str, Callable[[Run], Any]] = {
    "activations": lambda run: activations(run.measured(), _sample(run, _main(run)), run.task.losses),
    "attention": lambda run: attention(run.measured(), _few(run), run.task.losses),
    "gradients": lambda run: gradients(run.measured(), _few(run), run.task.losses),
    "heads": lambda run: heads(run.measured(), _sample(run, _train(run)), _sample(run, _main(run)), run.task.losses),
    "train_curve": _train_curve,
}
AT_THE_END = ("heads", "train_curve")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
