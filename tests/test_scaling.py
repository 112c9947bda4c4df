"""What a report says of scale, of made-up trials whose laws are known."""

from __future__ import annotations

import json
from pathlib import Path

import fabricate
import numpy as np
import pandas as pd
import pytest
from fabricate import PARAMS

from analysis.curves import compute_curves
from analysis.report import write_report
from analysis.scaling import SCALES, chosen, compare, optima
from analysis.table import study_table

BUDGETS = (25_000, 100_000, 400_000)
CROSSING = 1e10  # FLOPs at which the two laws below are equal
LAWS = {"base": (1.5, 0.20), "rope": (1.5, 0.30)}  # E, alpha; both are 3.0 at the crossing


def loss(label: dict) -> float:
    c = 6.0 * PARAMS[label["size"]] * float(label["budget"].removeprefix("tokens="))
    E, alpha = LAWS[label["variant"]]
    noise = np.random.default_rng([ord(each) for each in label["id"]]).standard_normal()
    return float((E + 1.5 * (c / CROSSING) ** -alpha) * np.exp(0.002 * noise))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("results")
    fabricate.study(root, loss, sizes=("s", "m", "l", "xl"), budgets=BUDGETS)
    return root


def test_variants_are_compared_by_their_laws(results: Path) -> None:
    kept, dropped = chosen(study_table(results, "made"))
    (found,) = compare(kept, "base")
    assert not len(dropped) and not found.note
    (row,) = found.table.to_dict("records")
    assert row["variant"] == "rope" and row["status"] == "overtakes"
    assert row["lo"] < row["at"] < row["hi"] < 1.2 * row["lo"] and row["at"] == pytest.approx(CROSSING, rel=0.03)
    assert row["alpha_lo"] < 0.1 < row["alpha_hi"] and row["alpha_lo"] > 0
    for end in ("low", "high"):  # 1.5 (k C / X)^-0.2 = 1.5 (C / X)^-0.3 gives k = (C / X)^0.5
        truth = (row[f"c_{end}"] / CROSSING) ** 0.5
        assert row[f"gain_{end}_lo"] < truth < row[f"gain_{end}_hi"]
    assert set(found.gains["variant"]) == {"rope"}


def test_too_few_computes_are_no_law(results: Path) -> None:
    kept, _ = chosen(study_table(results, "made"))
    few = kept[kept["train_flops"].isin(sorted(kept["train_flops"].unique())[: SCALES - 1])]
    assert compare(few, "base") == []


def test_points_that_gates_drop_are_listed_in_the_report(tmp_path: Path) -> None:
    fabricate.study(tmp_path, loss, sizes=("s", "m", "l", "xl"), budgets=BUDGETS)
    table = study_table(tmp_path, "made")
    bad = table["trial_id"].iloc[0]
    file = tmp_path / "trials" / bad / "record.json"
    record = json.loads(file.read_text()) | {"epochs": 7.5}
    file.write_text(json.dumps(record))
    kept, dropped = chosen(study_table(tmp_path, "made"))
    assert list(dropped["trial_id"]) == [bad] and bad not in set(kept["trial_id"])
    report = write_report(tmp_path, "made")
    for text in (report.html.read_text(), report.markdown.read_text()):
        assert "repeated: data seen 7.5 times" in text
        assert "Variants across scale" in text and "rope overtakes base at" in text
    assert list(pd.read_csv(report.html.parent / "left_out.csv")["trial_id"]) == [bad]
    for name in ("gains", "crossover_rope"):
        assert (report.html.parent / f"{name}.svg").read_bytes().startswith(b"<?xml")


def test_curves_know_which_points_are_cooled(results: Path) -> None:
    """Without rates in the records the schedule is unknown; of a cosine the end of a finished run alone is cooled."""
    table = study_table(results, "made")
    curves = compute_curves(results, study_table(results, "made"))
    whole = table.set_index("trial_id").loc[curves["trial"]]
    assert np.allclose(curves["c"], whole["train_flops"].to_numpy() * curves["d"] / whole["tokens"].to_numpy())
    assert not curves["cooled"].any() and (curves["schedule"] == "").all() and (curves["step"] > 0).all()
    for file in (results / "trials").glob("*/record.json"):
        record = json.loads(file.read_text())
        record["spec"]["train"]["schedule"] = {"name": "cosine"}
        file.write_text(json.dumps(record))
    cooled = compute_curves(results, study_table(results, "made")).query("cooled")
    assert (cooled["step"] == fabricate.STEPS).all() and cooled["trial"].nunique() == len(table)


def chinchilla(n: np.ndarray, d: np.ndarray) -> np.ndarray:
    return 1.2 + 30.0 * n**-0.4 + 300.0 * d**-0.5


def of_budgets(noise: float = 0.0) -> pd.DataFrame:
    """Trials at six sizes of five budgets, around the best one."""
    rows = []
    for c in np.geomspace(1e10, 1e14, 5):
        best = (0.4 * 30 / (0.5 * 300)) ** (1 / 0.9) * (c / 6) ** (0.5 / 0.9)
        for ratio in (0.25, 0.5, 1.0, 2.0, 4.0):
            n = best * ratio
            rows.append({"params_non_embedding": n, "tokens": c / 6 / n, "train_flops": c})
    table = pd.DataFrame(rows)
    wrong = np.exp(noise * np.random.default_rng(0).standard_normal(len(table)))
    return table.assign(variant="base", loss=chinchilla(table["params_non_embedding"], table["tokens"]) * wrong)


def test_the_best_sizes_by_three_approaches() -> None:
    first, second, third = optima(of_budgets(1e-3), pd.DataFrame(columns=["trial", "n", "c", "loss", "cooled"]))
    assert first.note and first.made is None  # no curves: it says so, and the others stand
    for each in (second, third):
        assert each.made is not None and each.made.params["n_exponent"] == pytest.approx(0.5 / 0.9, abs=0.02)
        low, high = each.made.ci95["n_exponent"]
        assert low < each.made.params["n_exponent"] < high
    assert third.law is not None and third.law.law.name == "chinchilla"


def test_one_budget_a_size_says_nothing_of_the_best() -> None:
    table = of_budgets()
    assert optima(table[table["train_flops"] == table["train_flops"].min()], pd.DataFrame()) == []
