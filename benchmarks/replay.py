"""Racing and promotion replayed on grids run in full: agreement with their verdicts against the share of their FLOPs.

`python -m benchmarks.replay` takes made-up grids of all kinds, `... KIND` those of one, `... RESULTS STUDY ...`
recorded ones.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.effects import compare
from analysis.promotion import Gates
from analysis.racing import RacePlan
from analysis.replay import Promotion, replay
from analysis.table import finished, read_study, study_table, validated

HEADER = ["grid", "rule", "rows", "agreement", "missed", "extra", "flipped", "share of FLOPs"]
GRIDS = 3  # made-up grids of each kind
SCALES = 5
Effects = Callable[[np.random.Generator, int], np.ndarray]


def half(size: float) -> Effects:
    """Half of the variants like the baseline, half better or worse by `size` deviations of a paired difference."""
    return lambda rng, rows: rng.choice([0.0, 1.0], rows) * rng.choice([-size, size], rows)


def spread(size: float) -> Effects:
    """Effects of every size, many of them on the border of what the grid can tell."""
    return lambda rng, rows: size * rng.standard_normal(rows)


def made(effects: Effects, rows: int, seeds: int, scales: int, draw: int, noise: float = 0.01) -> pd.DataFrame:
    """A grid with `rows` variants and a baseline: loss 1.7 (C / 1e12)^-0.05 times what variant and seed do."""
    rng = np.random.default_rng(draw)
    shifts = np.concatenate(([0.0], effects(rng, rows)))
    luck = rng.standard_normal((scales, seeds))
    found = []
    for v, shift in enumerate(shifts):
        for scale in range(scales):
            flops = 1e12 * 8.0**scale
            own = (rng.standard_normal(seeds) / np.sqrt(2) + luck[scale] + shift) * noise
            for seed in range(seeds):
                loss = 1.7 * (flops / 1e12) ** -0.05 * np.exp(own[seed])
                label = {"variant": f"v{v}" if v else "base", "size": f"s{scale}", "seed": seed, "loss": loss}
                found.append(
                    label | {"train_flops": flops, "axes": "", "budget": "", "trial_id": f"{v}.{scale}.{seed}"}
                )
    blank = dict.fromkeys(("params_total", "flops_per_token", "tokens_per_s", "early_loss", "bits_per_byte"), np.nan)
    blank |= dict.fromkeys(("test_loss", "test_score", "generalisation_gap"), np.nan)
    table = pd.DataFrame(found).assign(status="finished", parent_seed=pd.NA, **blank)
    return validated(table, "made up")


SETTINGS = (
    ("own", "pocock", 0.0),
    ("own", "pocock", 0.1),
    ("own", "obrien_fleming", 0.1),
    ("pooled", "pocock", 0.1),
    ("pooled", "pocock", 0.3),
    ("pooled", "obrien_fleming", 0.1),
)
RACES = {
    f"race, {noise} noise, {bounds}, futile {futile:g}": RacePlan(
        first=2 if noise == "pooled" else 3, most=100, noise=noise, bounds=bounds, futile=futile
    )
    for noise, bounds, futile in SETTINGS
}
OWN = RacePlan(3, 100, bounds="pocock")
POOLED = RacePlan(2, 100, bounds="pocock", noise="pooled")
PROMOTIONS = {
    "gates, sure 0.5": Promotion(Gates(sure=0.5)),
    "gates, sure 0.9": Promotion(Gates(sure=0.9)),
    "gates better, sure 0.9": Promotion(Gates(wanted="better", sure=0.9)),
    "gates, sure 0.9, raced": Promotion(Gates(sure=0.9), race=OWN),
    "gates, sure 0.9, raced pooled": Promotion(Gates(sure=0.9), race=POOLED),
    "gates better, sure 0.9, raced": Promotion(Gates(wanted="better", sure=0.9), race=OWN),
}
KINDS = {"half 0, half 5 sd": half(5), "half 0, half 3 sd": half(3), "normal, 4 sd": spread(4)}


def again(effects: Effects, rows: int, seeds: int, scales: int) -> str:
    """How often a second full grid has the verdicts of the first: what no rule can be expected to beat."""
    same = []
    for draw in range(GRIDS):
        table = made(effects, rows, 2 * seeds, scales, draw)
        table = table[table["size"] == f"s{scales - 1}"]
        both = [compare(finished(table[table["seed"] % 2 == side]), "base")["verdict"] for side in (0, 1)]
        same.append(float((both[0] == both[1]).mean()))
    return f"{np.mean(same):.1%}"


def summary(grid: str, rule: str, replays: list[pd.DataFrame]) -> list[str]:
    """One line of the table, means over grids and orders."""
    found = pd.concat(replays)
    shares = [f"{found[name].mean():.1%}" for name in ("agreement", "missed", "extra", "flipped", "flops_share")]
    return [grid, rule, str(int(found["rows"].mean())), *shares]


def table() -> list[list[str]]:
    """The table of made-up grids."""
    return [HEADER, *(line for kind in KINDS for line in lines(kind))]


def lines(kind: str) -> list[list[str]]:
    """The lines of the grids of one kind."""
    effects, found = KINDS[kind], []
    for seeds in (5, 12, 20):
        name = f"40 rows, {seeds} seeds, {kind}"
        grids = [made(effects, 40, seeds, 1, draw) for draw in range(GRIDS)]
        found.append([name, "the full grid again", "40", again(effects, 40, seeds, 1), "", "", "", "100.0%"])
        found += [summary(name, rule, [replay(each, "base", plan) for each in grids]) for rule, plan in RACES.items()]
    for seeds in (5, 12):
        name = f"20 rows, {SCALES} scales, {seeds} seeds, {kind}"
        grids = [made(effects, 20, seeds, SCALES, draw) for draw in range(GRIDS)]
        found.append([name, "the full grid again", "20", again(effects, 20, seeds, SCALES), "", "", "", "100.0%"])
        found += [
            summary(name, rule, [replay(each, "base", promotion) for each in grids])
            for rule, promotion in PROMOTIONS.items()
        ]
    return found


def recorded(results: Path, study: str) -> list[list[str]]:
    """The lines of a recorded study."""
    trials, baseline = study_table(results, study), str(read_study(results, study)["baseline"])
    rules = {name: replace(plan, first=2) for name, plan in RACES.items()}
    return [summary(study, name, [replay(trials, baseline, rule, study, orders=6)]) for name, rule in rules.items()]


def main(words: list[str]) -> None:
    """Print the table of made-up grids, of all kinds or of one, or of recorded studies."""
    if len(words) > 1:
        found = [line for study in words[1:] for line in recorded(Path(words[0]), study)]
    else:
        found = [line for kind in words or KINDS for line in lines(kind)]
    for line in [HEADER, *found]:
        print(" | ".join(line), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
