"""Results folders as `ablate run` leaves them, with losses of a test's choosing and nothing trained."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

STEPS = 800
PARAMS = {"s": 1_000, "m": 4_000, "l": 16_000, "xl": 64_000}  # by size
UNIGRAM = 3.1416
EVALUATED = (0, 8, 40, 90, 120, 300, STEPS)  # the nearest to 100, an eighth, is 90
Loss = Callable[[dict[str, Any]], float | str | None]


def study(
    root: Path,
    loss: Loss,
    variants: Sequence[str] = ("base", "rope"),
    sizes: Sequence[str] = ("s",),
    axes: Sequence[str] = ("",),
    budgets: Sequence[int] = (100_000,),
    seeds: Sequence[int] = (0, 1, 2),
    name: str = "made",
    question: str = "Question: does it help?",
    differs: dict[str, list[str]] | None = None,
    facts: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Write a study and its trials; returns their labels.

    `loss(label)` is a final loss, or `diverged`, `failed`, `running` (a curve and no record), or None: untouched.
    `differs` says in which slots a variant differs; one that does in several is marked as confounded.
    `facts` are more about the data.
    """
    trials, rows = [], []
    for size, axis, budget, variant in itertools.product(sizes, axes, budgets, variants):
        slots = (differs or {}).get(variant, [])
        row = {"variant": variant, "size": size, "axes": axis, "budget": f"tokens={budget:g}"}
        residuals = {"params": 0.0 if variant == variants[0] else 0.0042, "flops": 0.01}
        rows.append(row | {"residuals": residuals, "differs_in": slots, "confounded": len(slots) > 1})
        for seed in seeds:
            group = hashlib.sha256(repr(row).encode()).hexdigest()[:12]
            label = row | {"group_id": group, "seed": seed, "axis_values": {"train.dropout": 0.1} if axis else {}}
            label["id"] = hashlib.sha256(repr((group, seed)).encode()).hexdigest()[:12]
            trials.append(label)
            write_trial(root / "trials" / label["id"], label, budget, loss(label))
    data = {"corpus": "kjv", "tokenizer": "bytes", "vocab": 256, "train_tokens": 3_954_658}
    tree = {
        "study": name,
        "question": question,
        "baseline": variants[0],
        "match": "params",
        "tolerance": 0.01,
        "data": data | {"fingerprint": "f00d" * 3, "baselines": [unigram(UNIGRAM)]} | (facts or {}),
        "rows": rows,
        "trials": trials,
    }
    folder = root / "studies" / name
    folder.mkdir(parents=True)
    (folder / "study.json").write_text(json.dumps(tree))
    return trials


def unigram(entropy: float) -> dict[str, Any]:
    """A text's unigram entropy, as a task's facts have it."""
    return {"stage": "", "name": "unigram entropy", "metric": "loss", "value": entropy}


def curve(final: float) -> list[dict[str, Any]]:
    """Evaluations that end at `final`: the validation loss at a step is higher by 1 - step / steps."""
    rows = []
    for step in EVALUATED:
        for split, more in (("batch", 0.5), ("valid", 0.0), ("train", -0.1)):
            loss = final + more + 1 - step / STEPS
            rows.append({"step": step, "tokens": step * 125, "split": split, "loss": loss})
    return rows


def early(final: float) -> float:
    """The early loss of such a curve."""
    return final + 1 - 90 / STEPS


def write_trial(folder: Path, label: dict[str, Any], budget: int, outcome: float | str | None) -> None:
    """A trial's folder, for what `study`'s `loss` may return."""
    folder.mkdir(parents=True, exist_ok=True)
    if outcome is None:
        return
    status = "finished" if not isinstance(outcome, str) else outcome
    rows = curve(outcome if not isinstance(outcome, str) else 2.5)
    if status != "finished":
        rows = [*rows[:9], {"step": 90, "tokens": 90 * 125, "split": "batch", "loss": None}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if status != "running":
        (folder / "record.json").write_text(json.dumps(_record(label, budget, status, outcome)))


def _record(label: dict[str, Any], budget: int, status: str, outcome: float | str) -> dict[str, Any]:
    params = PARAMS.get(label["size"], 1_000)
    done = status == "finished"
    loss = {"loss": outcome if done else None}
    others = {"bits_per_byte": 1.4 * outcome, "perplexity": 2.0**outcome} if not isinstance(outcome, str) else {}
    if not isinstance(outcome, str):
        others |= {
            "early_loss": early(outcome),
            "train_loss": outcome - 0.1,
            "test_loss": outcome + 0.02,
            "generalisation_gap": 0.1,
        }
    record: dict[str, Any] = {
        "id": label["id"],
        "group_id": label["group_id"],
        "status": status,
        "error": {"failed": "ValueError: a | b\nis <not> right", "diverged": "the loss is nan at step 90"}.get(
            status
        ),
        "spec": {"train": {"precision": "fp32"}},
        "metrics": loss | others,
        "steps": STEPS,
        "wall_s": 12.5,
        "environment": {"device": "cpu", "cpu": "a processor", "torch": "2.8", "git_commit": "c0ffee"},
    }
    if status == "failed":
        return record | dict.fromkeys(("params_total", "flops_per_token", "train_flops", "tokens", "tokens_per_s"))
    return record | {
        "params_total": params,
        "params_non_embedding": params // 2,
        "flops_per_token": 2.0 * params,
        "train_flops": 6.0 * params * budget,
        "train_flops_6nd": 3.0 * params * budget,
        "tokens": budget,
        "epochs": budget / 3_954_658,
        "tokens_per_s": 5000.0 + label["seed"] ** 3,
        "peak_memory_bytes": 1 << 20,
    }
