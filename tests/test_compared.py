"""The tables of comparison by the rules that a study states: its smallest effect of interest, its race."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import fabricate
import numpy as np
import pandas as pd
import pytest
from conftest import TINY

from ablate.errors import UserError
from ablate.grid import load_grid
from analysis.compared import compared
from analysis.promotion import Gates
from analysis.racing import RacePlan, pairs, standing
from analysis.report import write_report
from analysis.report.noise import noise_table
from analysis.table import read_study, study_table, validated
from analysis.tables import comparison_table, overall_table

SHIFTS = {"base": 0.0, "rope": -0.5, "alibi": 0.001, "none": 0.4}
RACE = {"first": 3, "most": 8, "level": 0.05, "smallest": 0.0, "futile": 0.1, "bounds": "pocock", "noise": "own",
        "spend": None}  # fmt: skip


def loss(label: dict[str, Any]) -> float:
    rng = np.random.default_rng([ord(each) for each in f"{label['variant']} {label['size']} {label['seed']}"])
    return 2.0 + SHIFTS[label["variant"]] + 0.02 * float(rng.standard_normal())


def study(root: Path, sizes: tuple[str, ...] = ("s",), seeds: int = 8, **told: Any) -> dict[str, Any]:
    """A made-up study; `told` are more facts of it."""
    fabricate.study(root, loss, tuple(SHIFTS), sizes, seeds=range(seeds))
    file = root / "studies" / "made" / "study.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | told))
    return read_study(root, "made")


def of(table: pd.DataFrame, variant: str) -> dict[str, Any]:
    (row,) = table[table["variant"] == variant].to_dict("records")
    return row


def test_without_rules_of_its_own_a_study_has_the_plain_tables(tmp_path: Path) -> None:
    facts = study(tmp_path, ("s", "m"))
    table = study_table(tmp_path, "made")
    cells, overall = compared(table, facts)
    pd.testing.assert_frame_equal(cells, comparison_table(table, "base"))
    pd.testing.assert_frame_equal(overall.drop(columns="over"), overall_table(table, "base"))
    assert set(overall["over"]) == {"2 cells"}


INSIDE, OUTSIDE = "equivalent", "indistinguishable"


@pytest.mark.parametrize(
    ("smallest", "said"),
    [(0.1, INSIDE), (0.0001, OUTSIDE), ({"loss": 0.1}, INSIDE), ({"accuracy": 0.1}, OUTSIDE), (None, OUTSIDE)],
)
def test_the_smallest_effect_of_interest(tmp_path: Path, smallest: Any, said: str) -> None:
    facts = study(tmp_path, smallest=smallest)
    for table in compared(study_table(tmp_path, "made"), facts):
        assert [of(table, name)["verdict"] for name in ("rope", "alibi", "none")] == ["better", said, "worse"]


def test_a_study_with_an_equivalent_variant_says_so(tmp_path: Path) -> None:
    study(tmp_path, smallest=0.1)
    report = write_report(tmp_path, "made")
    assert "is <strong>equivalent</strong> to base" in report.html.read_text()
    for text in (report.html.read_text(), report.markdown.read_text()):
        assert "smallest effect of interest" in text and "0.1; equivalent: shown to be smaller" in text
    assert "equivalent" in report.summary


@pytest.mark.parametrize("sizes", [("s",), ("s", "m")])
def test_raced_verdicts_are_those_of_the_race(tmp_path: Path, sizes: tuple[str, ...]) -> None:
    facts = study(tmp_path, sizes, race=RACE)
    table = study_table(tmp_path, "made")
    cells, overall = compared(table, facts)
    told = {key: value for key, value in RACE.items() if key != "spend"}
    decisions = standing(pairs(table, "base"), RacePlan(**told)).decisions
    for row, decision in decisions.items():
        mine = of(cells[cells["size"] == row[1]], row[-1])
        assert (mine["diff"], mine["lo"], mine["hi"]) == (decision.diff, decision.lo, decision.hi)
        assert mine["p_holm"] == decision.p_holm
    plain = of(comparison_table(table[table["size"] == "s"], "base"), "rope")
    raced = of(cells[cells["size"] == "s"], "rope")
    assert raced["hi"] - raced["lo"] > plain["hi"] - plain["lo"]  # the price of looking often
    assert of(overall, "rope")["verdict"] == "better" and of(overall, "none")["verdict"] == "worse"
    assert of(overall, "alibi")["verdict"] == "indistinguishable"
    assert of(overall, "rope")["diff"] == pytest.approx(cells[cells["variant"] == "rope"]["diff"].mean())
    assert np.isnan(of(overall, "rope")["lo"]) == (len(sizes) > 1)
    report = write_report(tmp_path, "made")
    assert (
        "looks from 3 to 8 seeds" in report.html.read_text()
        and "looks from 3 to 8 seeds" in report.markdown.read_text()
    )


def test_with_promotion_the_race_is_at_the_largest_scale(tmp_path: Path) -> None:
    """`none` was not promoted: no trial of it was run at xl."""
    promoted = lambda label: None if (label["variant"], label["size"]) == ("none", "xl") else loss(label)  # noqa: E731
    fabricate.study(tmp_path, promoted, tuple(SHIFTS), ("s", "m", "l", "xl"), seeds=range(8))
    file = tmp_path / "studies" / "made" / "study.json"
    tree = json.loads(file.read_text()) | {"race": RACE, "promote": asdict(Gates())}
    for trial in tree["trials"]:
        trial["train_flops"] = 6.0 * fabricate.PARAMS[trial["size"]] * 100_000
    file.write_text(json.dumps(tree))
    table = study_table(tmp_path, "made")
    cells, overall = compared(table, read_study(tmp_path, "made"))
    plain, small = comparison_table(table, "base"), cells["size"] != "xl"
    mine, theirs = (each[small].drop(columns="p_bh") for each in (cells, plain))  # one correction is over all rows
    pd.testing.assert_frame_equal(mine, theirs, check_dtype=False)
    told = {key: value for key, value in RACE.items() if key != "spend"}
    raced = table[(table["size"] == "xl") & (table["variant"] != "none")]
    for row, decision in standing(pairs(raced, "base"), RacePlan(**told)).decisions.items():
        mine = of(cells[cells["size"] == "xl"], row[-1])
        assert (mine["lo"], mine["hi"], mine["p_holm"]) == (decision.lo, decision.hi, decision.p_holm)
    assert of(cells[cells["size"] == "xl"], "none")["verdict"] == "unknown"
    assert [of(overall, name)["verdict"] for name in ("rope", "none")] == ["better", "worse"]
    assert [of(overall, name)["over"] for name in ("rope", "none")] == ["xl, tokens=100000", "3 cells"]
    at_xl = of(cells[cells["size"] == "xl"], "rope")
    assert [of(overall, "rope")[name] for name in ("diff", "lo", "hi")] == [at_xl[k] for k in ("diff", "lo", "hi")]
    below = overall_table(table[table["size"] != "xl"], "base")
    assert of(overall, "none")["diff"] == pytest.approx(of(below, "none")["diff"])
    report = write_report(tmp_path, "made")
    page = report.html.read_text()
    assert "not promoted: worse" in page and "worse (3 cells)" in report.summary
    assert "over the smaller scales, 95 %" in page and "the largest, 95 %" in page
    assert "8 pending" in page
    tree["promote"]["level"], tree["enough"] = 0.01, "it is decided"
    file.write_text(json.dumps(tree))
    page = write_report(tmp_path, "made").html.read_text()
    assert "over the smaller scales, 99 %" in page and "8 not needed" in page and "8 pending" not in page
    tree["race"] = None  # promotion alone compares at the same places
    file.write_text(json.dumps(tree))
    _, plain = compared(table, read_study(tmp_path, "made"))
    assert plain.set_index("variant")["over"].to_dict() == overall.set_index("variant")["over"].to_dict()
    top = overall_table(table[table["size"] == "xl"], "base")
    assert of(plain, "rope")["diff"] == pytest.approx(of(top, "rope")["diff"])


def test_raced_verdicts_count_the_pairs_that_were_used(tmp_path: Path) -> None:
    """Eight seeds are there: three decide what is clear, and four that no more can."""
    facts = study(tmp_path, race=RACE)
    _, overall = compared(study_table(tmp_path, "made"), facts)
    assert [int(of(overall, name)["n"]) for name in ("rope", "alibi", "none")] == [3, 4, 3]


def test_layouts_of_a_race_say_how_it_was_tested(tmp_path: Path) -> None:
    study(tmp_path / "plain")
    study(tmp_path / "raced", race=RACE)
    reports = [write_report(tmp_path / name, "made") for name in ("plain", "raced")]
    plain, raced = (each.html.read_text() for each in reports)
    heads = ["| bootstrap, 95 % |" in each.markdown.read_text() for each in reports]
    assert heads == [True, False]  # a race has none, and a column without values is left out
    assert "sequential tests at the looks of a race" in raced and "sequential tests" not in plain


def test_more_is_better_is_turned_back(tmp_path: Path) -> None:
    facts = study(tmp_path, race=RACE)
    table = study_table(tmp_path, "made").assign(better="higher")
    cells, overall = compared(table, facts)
    for row in (of(cells, "rope"), of(overall, "rope")):
        assert row["verdict"] == "worse" and row["lo"] < row["diff"] < row["hi"] < 0


def test_a_race_keeps_its_error_in_the_tables() -> None:
    """And a level of 40 % is seen to be none of 5 %."""
    bound = lambda n: 0.05 + 3 * np.sqrt(0.05 * 0.95 / n)  # noqa: E731
    assert wrong_share(60, RACE) <= bound(60)
    assert wrong_share(20, RACE | {"level": 0.4}) > bound(20)


def wrong_share(n: int, race: dict[str, Any]) -> float:
    """Of studies of 12 variants without any effect, that stop each row where the race would: the share in which any
    verdict is better or worse, in the cells and over them."""
    rng, wrong = np.random.default_rng(5), 0
    plan = RacePlan(**{key: value for key, value in race.items() if key != "spend"})
    for _ in range(n):
        table = noise_only(rng)
        seen = standing(pairs(table, "v0"), plan).seen
        kept = [
            row["variant"] == "v0" or row["seed"] < seen[("", "s", "", "", row["variant"])]
            for row in table[["variant", "seed"]].to_dict("records")
        ]
        found = compared(table[kept], {"baseline": "v0", "race": race})
        wrong += any(each["verdict"].isin(["better", "worse"]).any() for each in found)
    return wrong / n


def noise_only(rng: np.random.Generator, variants: int = 13, seeds: int = 8) -> pd.DataFrame:
    rows = [
        {"variant": f"v{v}", "seed": s, "loss": rng.standard_normal()} for v in range(variants) for s in range(seeds)
    ]
    blank = dict.fromkeys(("params_total", "flops_per_token", "train_flops", "tokens_per_s", "early_loss"), np.nan)
    blank |= dict.fromkeys(("bits_per_byte", "test_loss", "test_score", "generalisation_gap"), np.nan)
    labels = {"size": "s", "axes": "", "budget": "", "status": "finished", "parent": pd.NA}
    made = pd.DataFrame(rows).assign(**labels, **blank)
    return validated(made.assign(trial_id=[f"t{k}" for k in range(len(made))]), "made up")


def test_the_noise_of_the_baseline_and_what_it_leaves_to_be_seen(tmp_path: Path) -> None:
    """Three comparisons of eight pairs: by the noncentral t at 5 % / 3."""
    from scipy import stats

    study(tmp_path)
    (row,) = noise_table(study_table(tmp_path, "made"), "base").to_dict("records")
    base = [loss({"variant": "base", "size": "s", "seed": seed}) for seed in range(8)]
    assert row["sd"] == pytest.approx(np.std(base, ddof=1)) and (row["n"], row["pairs"]) == (8, 8)
    apart = [
        np.var([loss({"variant": name, "size": "s", "seed": seed}) - base[seed] for seed in range(8)], ddof=1)
        for name in ("rope", "alibi", "none")
    ]
    assert row["paired_sd"] == pytest.approx(np.sqrt(np.mean(apart)))
    reach = row["detectable"] * np.sqrt(8) / row["paired_sd"]
    assert stats.nct.sf(stats.t.isf(0.05 / 6, 7), 7, reach) == pytest.approx(0.8, abs=1e-6)


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("smallest: 0", "0 must be a number above 0"),
        ("smallest: {loss: big}", "'big' must be a number above 0"),
        ("smallest: 0.1\nhypothesis: {variant: rope, smallest: 0.1}", "is given in hypothesis too"),
    ],
)
def test_mistakes(tmp_path: Path, block: str, said: str) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(TINY + block + "\n")
    with pytest.raises(UserError, match=r"grid.yaml:\d+: smallest") as caught:
        load_grid(file)
    assert said in str(caught.value)


def test_what_a_hypothesis_calls_smallest_is_the_study_s(tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(TINY + "hypothesis: {variant: rope, smallest: 0.1, metric: accuracy}\n")
    assert load_grid(file).smallest == {"accuracy": 0.1}
    file.write_text(TINY + "smallest: 0.2\n")
    assert load_grid(file).smallest == 0.2
