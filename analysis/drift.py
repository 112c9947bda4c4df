"""Whether trials that are compared were run alike, and what one trial comes to on another machine."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import stdev
from typing import Any

from analysis.columns import CELL
from analysis.records import read_curve

FIELDS = ("hardware", "device", "torch", "threads", "ablate", "git_commit")  # what makes an environment set
PAIRED = (*CELL, "seed", "parent_seed")
ROUNDING = 1e-4  # largest relative difference of a curve that is put down to rounding
Set = tuple[str, ...]


def set_of(environment: Mapping[str, Any] | None) -> Set | None:
    """The set of a record's environment; None where a trial never ran."""
    if not environment:
        return None
    known = {**environment, "hardware": environment.get("gpu") or environment.get("cpu")}
    return tuple("" if known.get(name) is None else str(known[name]) for name in FIELDS)


@dataclass(frozen=True)
class Trial:
    """What is needed of a finished trial."""

    variant: str
    pair: tuple[Any, ...]  # the values of PAIRED
    set: Set


def trials_of(study: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]]) -> list[Trial]:
    """The finished trials of a study; `records` by trial id."""
    seeds = {each["id"]: each["seed"] for each in study["trials"]}
    found = []
    for label in study["trials"]:
        record = records.get(label["id"])
        ran = set_of(record.get("environment")) if record and record.get("status") == "finished" else None
        if ran is not None:
            named = {**label, "stage": label.get("stage") or "", "parent_seed": seeds.get(label.get("parent"))}
            found.append(Trial(label["variant"], tuple(named.get(name) for name in PAIRED), ran))
    return found


def sets_of(trials: Iterable[Trial]) -> dict[Set, int]:
    """How many trials each set ran, the largest first."""
    counts: dict[Set, int] = {}
    for each in trials:
        counts[each.set] = counts.get(each.set, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def pairs_across(trials: Sequence[Trial], baseline: str) -> dict[tuple[str, ...], tuple[int, int]]:
    """Of each variant in each cell (the values of CELL, then the variant): how many pairs with the baseline, of one
    seed, there are, and how many of them are of two sets."""
    ours = {each.pair: each.set for each in trials if each.variant == baseline}
    found: dict[tuple[str, ...], tuple[int, int]] = {}
    for each in trials:
        if each.variant != baseline and each.pair in ours:
            key = (*each.pair[: len(CELL)], each.variant)
            pairs, across = found.get(key, (0, 0))
            found[key] = (pairs + 1, across + (ours[each.pair] != each.set))
    return found


def said(set_: Set) -> str:
    """A set in words."""
    words = zip(("", "", "torch ", "threads ", "ablate ", "commit "), set_, strict=True)
    return ", ".join(f"{word}{value}" for word, value in words if value)


@dataclass(frozen=True)
class Rerun:
    """A trial that was trained again on another set, beside its record."""

    trial_id: str
    first: Set
    again: Set
    largest: float  # relative difference of any number of the curves; infinite where their rows are not the same
    loss_diff: float  # of the final loss, again less first, nats per token
    noise: float | None  # standard deviation of the final loss over seeds, of the trial's cell; None with one seed

    @property
    def outcome(self) -> str:
        """identical | rounding | within | beyond | different, where there is no noise to compare with."""
        if self.largest == 0:
            return "identical"
        if self.largest < ROUNDING:
            return "rounding"
        if self.noise is None or not math.isfinite(self.loss_diff):
            return "different"
        return "within" if abs(self.loss_diff) <= self.noise else "beyond"

    @property
    def words(self) -> str:
        """One sentence."""
        far = f"largest relative difference of its curve {self.largest:.2g}, final loss {self.loss_diff:+.2g}"
        noise = "" if self.noise is None else f"; noise of a seed {self.noise:.2g}"
        told = {
            "identical": "identical to the bit",
            "rounding": f"equal to rounding ({far})",
            "within": f"different within the noise of a seed ({far}{noise})",
            "beyond": f"DIFFERENT BEYOND THE NOISE OF A SEED ({far}{noise})",
            "different": f"different ({far}; one seed has no noise to compare with)",
        }[self.outcome]
        return f"trial {self.trial_id} of [{said(self.first)}], trained again on [{said(self.again)}]: {told}"


def reruns(results: Path, study: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]]) -> list[Rerun]:
    """Every trial of a study that was trained again on some set: `drift/<set>/<trial>.json` in the results."""
    labels = {each["id"]: each for each in study["trials"]}
    found = []
    for file in sorted((Path(results) / "drift").glob("*/*.json")):
        record = records.get(file.stem)
        if file.stem not in labels or record is None or record.get("status") != "finished":
            continue
        first, again = read_curve(Path(results) / "trials" / file.stem / "metrics.jsonl"), _again(file)
        sets = set_of(record.get("environment")), set_of(again.get("environment"))
        if sets[0] is not None and sets[1] is not None:
            loss = again["loss"] if again["loss"] is not None else math.nan
            noise = _noise(labels, records, labels[file.stem])
            diff = loss - record["metrics"]["loss"]
            found.append(Rerun(file.stem, sets[0], sets[1], apart(first, again["rows"]), diff, noise))
    return found


def _again(file: Path) -> dict[str, Any]:
    """What a trial came to again; nothing where the file cannot be read as that."""
    try:
        told = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return {}
    kinds = {"environment": dict, "rows": list, "loss": int | float | None}
    if not isinstance(told, dict) or not all(isinstance(told.get(key), kind) for key, kind in kinds.items()):
        return {}
    return told if all(isinstance(row, dict) for row in told["rows"]) else {}


def apart(one: Sequence[Mapping[str, Any]], two: Sequence[Mapping[str, Any]]) -> float:
    """The largest relative difference of two curves' numbers, infinite where they have not the same rows."""
    if len(one) != len(two):
        return math.inf
    largest = 0.0
    for a, b in zip(one, two, strict=True):
        if a.keys() != b.keys():
            return math.inf
        for key in a:
            if a[key] == b[key]:
                continue
            if not all(isinstance(each[key], int | float) for each in (a, b)) or key in ("step", "tokens"):
                return math.inf
            largest = max(largest, abs(a[key] - b[key]) / max(abs(a[key]), abs(b[key])))
    return largest


def _noise(
    labels: Mapping[str, Mapping[str, Any]], records: Mapping[str, Mapping[str, Any]], of: Mapping[str, Any]
) -> float | None:
    """Of the trials that differ from one in the seed alone."""
    mine = [records.get(each["id"]) for each in labels.values() if each["group_id"] == of["group_id"]]
    losses = [each["metrics"]["loss"] for each in mine if each is not None and each["status"] == "finished"]
    return stdev(losses) if len(losses) > 1 else None
