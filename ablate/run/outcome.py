"""What a record says of how a trial came out."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ablate.run.files import read_json
from ablate.run.ledger import TrialFolder
from analysis.columns import EARLY

UNKNOWN = ("params_total", "flops_per_token", "train_flops", "tokens", "tokens_per_s", "environment")


def final_metrics(folder: TrialFolder, status: str, steps: int) -> dict[str, Any]:
    """The last evaluation: what was measured on validation data (on test data where the task has no other), and on
    the other splits as `test_loss`, `train_accuracy` and so on; and the `early_loss`.

    A trial that did not finish has no final loss; what it last reached is `last_loss`.
    """
    rows = folder.rows()
    last: dict[str, dict[str, Any]] = {row["split"]: row for row in rows}
    main = "valid" if "valid" in last else "test"
    if status != "finished":
        return {"loss": None, "last_loss": last.get(main, {}).get("loss")}
    metrics: dict[str, Any] = {}
    for split in (main, *(each for each in last if each not in (main, "batch"))):
        prefix = "" if split == main else f"{split}_"
        metrics |= {
            prefix + key: value for key, value in last[split].items() if key not in ("step", "tokens", "split")
        }
    if "train_loss" in metrics:
        metrics["generalisation_gap"] = metrics["loss"] - metrics["train_loss"]
    return metrics | early_loss(rows, steps)


def early_loss(rows: Sequence[Mapping[str, Any]], steps: int) -> dict[str, float]:
    """`early_loss`, the validation loss at the evaluation nearest, in ratio, to 1/8 of a trial's steps; nothing where
    there is none on the way."""
    seen = [row for row in rows if row["split"] == "valid" and 0 < row["step"] and row["loss"] is not None]
    nearest = min(seen, key=lambda row: abs(math.log(row["step"] / (EARLY * steps))), default=None)
    return {} if nearest is None else {"early_loss": nearest["loss"]}


def without_result(folder: TrialFolder, status: str, error: str, **known: Any) -> dict[str, Any]:
    """The record of a trial that has come to its end before its training has. `known` is what can be said of it."""
    return {
        "id": folder.id,
        "group_id": None,
        "status": status,
        "error": error,
        "traceback": None,
        "spec": read_json(folder.spec) or {},
        "metrics": final_metrics(folder, status, steps=0),
        **dict.fromkeys(UNKNOWN),
        "wall_s": None,
        **known,
        "ended": time.time(),
    }
