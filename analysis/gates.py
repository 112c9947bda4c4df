"""Points that should not be fitted, each with the reason: they bend a law more than noise does."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.errors import AnalysisError

KNOWN = {  # columns by what they hold: the first of these names that a table has
    "trial": ("trial_id",),
    "status": ("status",),
    "loss": ("loss",),
    "variant": ("variant",),
    "seed": ("seed",),
    "n": ("params_non_embedding", "n"),
    "d": ("tokens", "d"),
    "c": ("train_flops", "c"),
    "target": ("target_flops",),
    "lr": ("lr", "train.lr"),
    "epochs": ("epochs",),
    "schedule": ("schedule", "train.schedule"),
    "cooled": ("cooled", "cooled_steps"),
    "steps": ("steps",),
    "steps_done": ("steps_done",),
}
TEXT = {"trial", "status", "variant", "seed", "schedule"}
CONSTANT = {"constant", "inverse_sqrt"}  # schedules that have no end to come to


@dataclass(frozen=True)
class Limits:
    """What the gates let through.

    `cooled`: the least share of a run's steps that its cooldown must have; `off_target`: the most |c - target| /
    target; `nd_factor`: the most that c may be above or below `flops` n d; `flops` and `convention`: how c is
    counted, and of which parameters, as reasons quote it; `epochs`: how often data may be seen; `form`:
    `data_constrained` fits repeated data, and they are let through.
    """

    cooled: float = 0.1
    off_target: float = 0.05
    nd_factor: float = 3.0
    flops: float = 6.0
    convention: str = "n without embeddings"
    epochs: float = 1.0
    form: str = ""


@dataclass(frozen=True)
class Trials:
    """A table whose columns are named by what they hold (`KNOWN`), and which of its rows are left so far."""

    table: pd.DataFrame
    limits: Limits
    left: pd.Series

    def reasons(self, wrong: pd.Series, words: pd.Series | str) -> pd.Series:
        """`words` where a row is wrong, missing elsewhere."""
        told = pd.Series(words, index=self.table.index, dtype="object") if isinstance(words, str) else words
        return told.where(wrong.fillna(False).astype(bool))


@dataclass(frozen=True)
class Gate:
    """`needs`: columns without which it says nothing; `any_of`: it needs one of these besides."""

    name: str
    says: str
    needs: tuple[str, ...]
    check: Callable[[Trials], pd.Series]
    any_of: tuple[str, ...] = ()

    def lacks(self, columns: Collection[str]) -> str:
        """Which columns keep it from being applied; empty where none does."""
        missing = [name for name in self.needs if name not in columns]
        if self.any_of and not set(self.any_of) & set(columns):
            missing.append(" or ".join(self.any_of))
        return ", ".join(missing)


GATES: dict[str, Gate] = {}


def _gate(
    *needs: str, any_of: tuple[str, ...] = ()
) -> Callable[[Callable[[Trials], pd.Series]], Callable[[Trials], pd.Series]]:
    """Registers a gate by its function's name; its docstring is what it says."""

    def register(check: Callable[[Trials], pd.Series]) -> Callable[[Trials], pd.Series]:
        says = " ".join((check.__doc__ or "").split())
        GATES[check.__name__] = Gate(check.__name__, says, needs, check, any_of)
        return check

    return register


@_gate("loss")
def unfinished(trials: Trials) -> pd.Series:
    """Diverged, failed or without a final loss."""
    table = trials.table
    status = table["status"] if "status" in table else pd.Series("finished", index=table.index)
    status = status.astype("object").where(status.notna(), "finished")
    none = ~(np.isfinite(table["loss"]) & (table["loss"] > 0))
    return trials.reasons(none | (status != "finished"), status.where(status != "finished", "no loss").astype(str))


@_gate(any_of=("trial", "loss"))
def duplicate(trials: Trials) -> pd.Series:
    """The same trial twice, or the same parameters, tokens, seed and loss in one variant: the first is kept."""
    table, found = trials.table, pd.Series(index=trials.table.index, dtype="object")
    same = [name for name in ("variant", "n", "d", "seed", "lr") if name in table]
    alike = {"n", "d", "seed", "loss"} <= set(table)
    for keys, there, words in (
        ([*same[:1], "trial"] if "variant" in table else ["trial"], "trial" in table, "the same trial again"),
        ([*same, "loss"], alike, "the same parameters, tokens, seed and loss again"),
    ):
        if there:
            rows = table[trials.left & table[keys[-1]].notna()]
            again = rows.duplicated(keys).reindex(table.index, fill_value=False)
            found = found.fillna(trials.reasons(again, words))
    return found


@_gate(any_of=("cooled", "steps_done"))
def under_cooled(trials: Trials) -> pd.Series:
    """A decaying learning rate that did not come to its end, or a cooldown that is too short for its run: `cooled` is
    whether it has cooled, or for how many of its steps."""
    table, least = trials.table, trials.limits.cooled
    found = pd.Series(index=table.index, dtype="object")
    decays = ~table["schedule"].isin(CONSTANT) if "schedule" in table else pd.Series(True, index=table.index)
    if "steps_done" in table:
        done = table["steps_done"] / table["steps"]
        found = found.fillna(trials.reasons(decays & (done < 1), "stopped at " + _percent(done) + " of its schedule"))
    if "cooled" in table and _is_flag(table["cooled"]):
        found = found.fillna(
            trials.reasons(decays & (table["cooled"] == 0), "its learning rate did not come to its end")
        )
    elif "cooled" in table:
        whole = table["steps_done"] if "steps_done" in table else table["steps"]
        share = table["cooled"] / whole
        words = "cooled for " + _percent(share) + f" of its steps, less than {least:.0%}"
        found = found.fillna(trials.reasons(decays & (share < least), words))
    return found


@_gate("epochs")
def repeated(trials: Trials) -> pd.Series:
    """Data seen more than once, unless the form is data_constrained."""
    epochs = trials.table["epochs"]
    if trials.limits.form == "data_constrained":
        return pd.Series(index=trials.table.index, dtype="object")
    return trials.reasons(epochs > trials.limits.epochs * (1 + 1e-9), epochs.map("data seen {:.3g} times".format))


@_gate("c", "target")
def off_target(trials: Trials) -> pd.Series:
    """Compute away from the budget that was asked for."""
    table = trials.table
    off = (table["c"] - table["target"]) / table["target"]
    words = "compute is " + off.map("{:+.1%}".format) + " off its target"
    return trials.reasons(off.abs() > trials.limits.off_target, words)


@_gate("c", "n", "d")
def off_convention(trials: Trials) -> pd.Series:
    """Compute that is not near 6 n d: n, d and c are not counted alike."""
    table, limits = trials.table, trials.limits
    ratio = table["c"] / (limits.flops * table["n"] * table["d"])
    words = "c is " + ratio.map("{:.3g}".format) + f" times {limits.flops:g} n d ({limits.convention})"
    return trials.reasons(np.abs(np.log(ratio)) > np.log(limits.nd_factor), words)


@_gate("lr", "n", "d", "loss")
def edge_of_sweep(trials: Trials) -> pd.Series:
    """The best of several learning rates of one variant, n and d is the smallest or largest tried: it is not tuned.

    A learning rate that diverged was tried; a trial that another gate dropped, or that failed, was not.
    """
    table, best = trials.table, _best_rates(trials)
    tried = trials.left | (table["status"] == "diverged") if "status" in table else trials.left
    groups = table[tried].groupby(_sweep(table), dropna=False)["lr"]
    low, high, count = (groups.transform(how).reindex(table.index) for how in ("min", "max", "nunique"))
    smallest = np.where(best == low, "smallest", "largest")
    words = "the best learning rate, " + best.map("{:.3g}".format) + ", is the " + smallest + " of its sweep"
    return trials.reasons((count > 1) & ((best == low) | (best == high)), words)


@_gate("lr", "n", "d", "loss")
def not_the_best_rate(trials: Trials) -> pd.Series:
    """Another learning rate of the same variant, n and d has a lower loss, the mean over seeds."""
    best = _best_rates(trials)
    words = "learning rate " + best.map("{:.3g}".format) + " has a lower loss"
    rate = trials.table["lr"]
    return trials.reasons(best.notna() & rate.notna() & (rate != best), words)


def _sweep(table: pd.DataFrame) -> list[str]:
    return [name for name in ("variant", "n", "d") if name in table]


def _best_rates(trials: Trials) -> pd.Series:
    """Of every row, the learning rate with the lowest mean loss of its variant, n and d among the rows left."""
    table, keys = trials.table, _sweep(trials.table)
    means = table[trials.left].groupby([*keys, "lr"], dropna=False)["loss"].mean().reset_index()
    lowest = means.sort_values("loss", kind="stable").drop_duplicates(keys)
    return table[keys].merge(lowest, how="left", on=keys)["lr"].set_axis(table.index)


def _percent(share: pd.Series) -> pd.Series:
    return share.map("{:.0%}".format)


def gate(
    table: pd.DataFrame,
    keep: Collection[str] = (),
    limits: Limits | None = None,
    columns: Mapping[str, str] | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The points to fit, and the others with two columns more, `gate` and `reason`.

    Gates are applied in the order of `GATES`, each to the rows that those before it left. `keep` names gates that are
    not to be applied, and trials (by trial_id or by row label) that none may drop. `columns` says which
    column holds what, as in `KNOWN`. What was applied, and what was skipped and why, is `applied(...)` of the same
    arguments, and is kept as `attrs["gates"]` of both tables.

    Raises `AnalysisError` for a `keep` that is neither a gate nor a trial.
    """
    limits = limits or Limits()
    trials = _named(table, columns or {})
    names = table.index.astype(str).to_series(index=trials.index).to_frame("row")
    names["trial"] = trials["trial"].astype(str) if "trial" in trials else ""
    unknown = [each for each in map(str, keep) if each not in GATES and not (names == each).any(axis=None)]
    if unknown:
        raise AnalysisError(f"keep {unknown[0]!r}: neither a trial nor a gate; gates: {', '.join(GATES)}")
    spared = names.isin([str(each) for each in keep]).any(axis=1)
    left, why = pd.Series(True, index=trials.index), pd.DataFrame(index=trials.index, columns=["gate", "reason"])
    for each in GATES.values():
        if each.name in keep or each.lacks(trials):
            continue
        reasons = each.check(Trials(trials, limits, left)).where(left & ~spared)
        dropped = reasons.notna()
        why.loc[dropped, "gate"], why.loc[dropped, "reason"] = each.name, reasons[dropped]
        left &= ~dropped
    kept, dropped_rows = table[left.to_numpy()].copy(), table[~left.to_numpy()].copy()
    for name in ("gate", "reason"):
        dropped_rows[name] = why.loc[~left, name].to_numpy()
    said = applied(table, keep, columns).to_dict("records")
    kept.attrs["gates"], dropped_rows.attrs["gates"] = said, said
    return kept, dropped_rows


def applied(
    table: pd.DataFrame, keep: Collection[str] = (), columns: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """One row a gate: `gate`, what it `says`, whether it is `applied`, and if not, why it is `skipped`."""
    there, rows = _named(table, columns or {}), []
    for each in GATES.values():
        lacks = each.lacks(there)
        skipped = "kept on request" if each.name in keep else f"no column {lacks}" if lacks else ""
        rows.append({"gate": each.name, "says": each.says, "applied": not skipped, "skipped": skipped})
    return pd.DataFrame(rows)


def _named(table: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """The columns that gates know, by what they hold; rows are numbered from 0 unless their labels are unique.

    steps_done, and cooled as a number of steps, are left out without steps.
    """
    found = {}
    for what, names in KNOWN.items():
        name = columns.get(what) or next((each for each in names if each in table), None)
        if name is not None and name not in table:
            raise AnalysisError(f"no column {name!r} for {what}; columns: {', '.join(map(str, table))}")
        if name is not None and table[name].notna().any():
            found[what] = table[name] if what in TEXT else _numbers(table[name])
    if "steps" not in found:
        found = {what: column for what, column in found.items() if what != "steps_done"}
        if "cooled" in found and not _is_flag(found["cooled"]):
            del found["cooled"]
    made = pd.DataFrame(found, index=table.index)
    return made if table.index.is_unique else made.reset_index(drop=True)


def _is_flag(cooled: pd.Series) -> bool:
    """Whether `cooled` says yes or no, rather than for how many steps."""
    return bool(cooled.dropna().isin([0, 1]).all())


def _numbers(column: pd.Series) -> pd.Series:
    """A column as numbers, missing where it has none."""
    values = pd.to_numeric(column, errors="coerce")
    return pd.Series(values.to_numpy(dtype=float, na_value=np.nan), index=column.index)
