"""What the MLflow runs of a study and of its variants say of their trials: counts, means over seeds, compute."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from ablate.run.alike import own_flops, own_seconds
from ablate.run.trial_run import legal
from ablate.tuning import TUNE
from analysis.columns import cell_name
from analysis.records import ENDED, is_number


@dataclass(frozen=True)
class Ended:
    """What is kept of a record while its study is published."""

    mark: str  # hash of the record
    status: str
    ended: float  # s since the epoch
    variant: str
    cell: str
    loss: float | None
    metric: str
    better: str
    score: float | None  # the headline metric
    swept: bool  # to choose a setting: never the best of a study
    flops: float
    wall_s: float


def ended(record: Mapping[str, Any], label: Mapping[str, Any], mark: str) -> Ended:
    """The summary of a record."""
    metric = record.get("metric") or {"name": "loss", "better": "lower"}
    return Ended(
        mark,
        record["status"],
        record["ended"],
        label["variant"],
        cell_name(label) or "all",
        _number(record["metrics"].get("loss")),
        metric["name"],
        metric["better"],
        _number(record["metrics"].get(metric["name"])),
        label["stage"] == TUNE,
        own_flops(record) or 0.0,
        own_seconds(record) or 0.0,
    )


def aggregates(trials: Iterable[Ended], planned: int) -> dict[str, float]:
    """Metrics of a variant's run: trials by status and those to come, FLOPs and hours of all, and in each cell
    (stage, size, axes, budget) n, mean, standard deviation and standard error over the finished trials of the final
    loss and of the headline metric."""
    found = list(trials)
    out = _counts(found, planned)
    cells: dict[str, list[Ended]] = {}
    for each in found:
        if each.status == "finished":
            cells.setdefault(each.cell, []).append(each)
    for cell, part in cells.items():
        named = {"loss": [each.loss for each in part], part[0].metric: [each.score for each in part]}
        for name, values in named.items():
            known = [value for value in values if value is not None]
            out |= {legal(f"{cell}/{name}_{key}"): value for key, value in _spread(known).items()}
    return out


def study_aggregates(trials: Iterable[Ended], planned: int) -> tuple[dict[str, float], dict[str, str]]:
    """Metrics and tags of the study's run: counts, compute, and the variant with the best mean of the headline metric
    in the cell whose trials took most FLOPs (means of different cells do not compare)."""
    found = list(trials)
    out, tags = _counts(found, planned), {}
    done = [each for each in found if each.score is not None and each.status == "finished" and not each.swept]
    if done:
        cell = max(done, key=lambda each: (each.flops, each.cell)).cell
        groups: dict[str, list[float]] = {}
        for each in done:
            if each.cell == cell and each.score is not None:
                groups.setdefault(each.variant, []).append(each.score)
        means = {variant: fmean(scores) for variant, scores in groups.items()}
        metric = next(each for each in done if each.cell == cell)
        best = (min if metric.better == "lower" else max)(sorted(means), key=lambda name: means[name])
        out["best/score"] = means[best]
        tags = {"ablate.best_variant": best, "ablate.best_cell": cell, "ablate.best_metric": metric.metric}
    return out, tags


def _counts(found: list[Ended], planned: int) -> dict[str, float]:
    counts = {f"trials/{status}": float(sum(each.status == status for each in found)) for status in ENDED}
    return {
        **counts,
        "trials/to_come": float(planned - len(found)),
        "compute/train_flops": sum(each.flops for each in found),
        "compute/hours": sum(each.wall_s for each in found) / 3600,
    }


def _spread(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    out = {"n": float(len(values)), "mean": fmean(values)}
    if len(values) > 1:
        sd = stdev(values)
        out |= {"sd": sd, "se": sd / len(values) ** 0.5}
    return out


def _number(value: Any) -> float | None:
    return float(value) if is_number(value) else None


def parent_status(statuses: list[str], to_come: bool) -> str:
    """KILLED when trials are still to come, as the driver ends; FAILED when one failed; else FINISHED."""
    if to_come:
        return "KILLED"
    return "FAILED" if "failed" in statuses else "FINISHED"
