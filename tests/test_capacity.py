"""Curves of training and validation: gaps, and flags on curves that are made to have them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.capacity import FALL, GAP, RISE, capacity_table, curve_points
from analysis.diagnostics import gradient_distances, pruning_curves, pruning_table, study_diagnostics
from analysis.report import write_report
from analysis.table import study_curves, study_table

STEPS = (0, 10, 20, 50, 100, 200, 400, 800)
LABELS = {"stage": "", "size": "s", "axes": "", "budget": "b"}


def made(
    valid: list[float], train: list[float], gaps: list[float], noise: tuple[float, ...] = (0.0,), own: bool = True
) -> dict[str, Any]:
    """The row of trials with these curves from step 10 on, one a seed; the samples of the last row are others,
    on which everything is 0.5 lower. `own`: with the diagnostic `train_curve`."""
    trials, rows = [], []
    for seed, (gap, shift) in enumerate(zip(gaps, noise, strict=True)):
        trial = {"trial_id": f"t{seed}", "variant": "v", "seed": seed, "status": "finished", **LABELS}
        trials.append(
            trial
            | {
                "loss": train[-1] + gap - 0.5,
                "train_loss": train[-1] - 0.5,
                "generalisation_gap": gap,
                "curve_loss": valid[-1] + shift if own else math.nan,
                "curve_train_loss": train[-1] if own else math.nan,
            }
        )
        for step, v, t in zip(STEPS, (9.0, *valid), (9.0, *train), strict=True):
            last = step == STEPS[-1]
            values = {"valid": v + (shift if step >= 400 else 0.0) - 0.5 * last, "batch": t + 0.2}
            if own or last:
                values["train"] = t - 0.5 * last
            if step == 0:
                del values["batch"]
            for split, loss in values.items():
                rows.append(trial | {"step": step, "tokens": 100 * step, "split": split, "loss": loss})
    (row,) = capacity_table(pd.DataFrame(trials), pd.DataFrame(rows)).to_dict("records")
    return row


FALLING = [5.0, 4.0, 3.0, 2.5, 2.0, 1.5, 1.0]
FLAT = [5.0, 4.0, 3.0, 2.5, 2.02, 2.005, 2.0]


def test_overfitting_is_a_rise_while_training_falls() -> None:
    row = made([5.0, 4.2, 3.4, 3.0, 2.8, 2.9, 3.1], FALLING, [2.1])
    assert row["flag"] == "overfitting" and row["best_loss"] == 2.8 and row["best_at"] == 0.25
    assert row["rise"] == pytest.approx(0.3) and row["seen"] == 1.0
    level = 2.8 * RISE
    assert made([5.0, 4.2, 3.4, 3.0, 2.8, 2.8, 2.8 + 0.9 * level], FALLING, [1.8])["flag"] == ""
    assert made([5.0, 4.2, 3.4, 3.0, 2.8, 2.8, 2.8 + 1.1 * level], FALLING, [1.8])["flag"] == "overfitting"
    rising = [5.0, 4.0, 3.0, 2.5, 2.0, 2.2, 2.4]  # training that went wrong is something else
    assert made([5.0, 4.2, 3.4, 3.0, 2.8, 2.9, 3.1], rising, [0.7])["flag"] == ""


def test_a_rise_must_stand_out_from_the_seeds() -> None:
    """The same mean rise of 0.3: standard error 0.05 with one noise, 0.25 with the other."""
    valid = [5.0, 4.2, 3.4, 3.0, 2.8, 2.9, 3.1]
    for spread, flag in ((0.05, "overfitting"), (0.25, "")):
        row = made(valid, FALLING, [2.0] * 2, (-spread, spread))
        assert row["flag"] == flag and row["rise"] == pytest.approx(0.3) and row["n"] == 2


def test_underfitting_is_a_fall_that_goes_on_with_a_small_gap() -> None:
    row = made([5.1, 4.1, 3.1, 2.6, 2.1, 1.6, 1.1], FALLING, [0.01])
    assert row["flag"] == "underfitting" and row["fall"] == pytest.approx(0.5) and row["rise"] == 0
    assert row["train_loss"] == 0.5 and row["gap"] < GAP * 0.5
    assert made([5.1, 4.1, 3.1, 2.6, 2.1, 1.6, 1.1], FALLING, [0.1])["flag"] == ""
    row = made([5.1, 4.1, 3.1, 2.6, 2.12, 2.11, 2.1], FLAT, [0.01])
    assert row["flag"] == "" and row["fall"] == pytest.approx(0.005) and row["fall"] < FALL * 2


def test_without_the_diagnostic_the_end_s_other_samples_are_left_out() -> None:
    """The last evaluation of validation data does not count; training losses are those of the batches."""
    row = made([5.0, 4.2, 3.4, 3.0, 2.8, 2.9, 3.1], FALLING, [2.1], own=False)
    assert row["seen"] == 0.5 and row["rise"] == pytest.approx(0.1) and row["flag"] == "overfitting"
    assert row["fall"] == pytest.approx(0.5)
    short = made([5.0, 4.2, 3.4, 3.0, 2.8, 2.7, 2.6], FALLING, [0.0], own=False)
    assert short["flag"] == "underfitting" and short["best_at"] == 0.5


def test_the_gap_has_an_interval_over_seeds() -> None:
    gaps = [0.10, 0.13, 0.16]
    row = made([5.1, 4.1, 3.1, 2.6, 2.1, 1.6, 1.1], FALLING, gaps, (0.0, 0.0, 0.0))
    found = stats.ttest_1samp(gaps, 0).confidence_interval(0.95)
    assert (row["gap"], row["gap_lo"], row["gap_hi"]) == pytest.approx((0.13, found.low, found.high))
    assert row["loss"] == pytest.approx(1.0 + 0.13 - 0.5)
    assert np.isnan(made(FALLING, FALLING, [0.1])["gap_lo"])


def test_few_points_are_unknown() -> None:
    trial = {"trial_id": "t", "variant": "v", "seed": 0, "status": "finished", **LABELS}
    values = {"loss": 1.0, "train_loss": 1.0, "generalisation_gap": 0.0}
    none = pd.DataFrame(columns=["trial_id", "split", "step", "tokens", "loss"])
    (row,) = capacity_table(pd.DataFrame([trial | values]), none).to_dict("records")
    assert row["flag"] == "unknown" and row["gap"] == 0
    assert len(curve_points(pd.DataFrame([trial | values]), none)) == 0


# ---- in a report


def results(root: Path, heads: bool = True) -> Path:
    """A study of two variants with the diagnostics in their records."""
    import fabricate

    fabricate.study(root, lambda label: 2.0 + label["seed"] / 100 + 0.1 * (label["variant"] == "rope"))
    for file in sorted(root.glob("trials/*/record.json")):
        record = json.loads(file.read_text())
        loss = record["metrics"]["loss"]
        curve = {"initial": None, "final": {"train": loss - 0.1, "valid": loss}}
        found: dict[str, Any] = {"train_curve": curve}
        if heads:
            pruned = [loss, 1.002 * loss, 1.02 * loss, 1.005 * loss, 2 * loss]
            final = {"heads": [], "removed": [0, 1, 2, 3, 4], "loss": pruned, "one_each": 1.5 * loss}
            found["heads"] = {"initial": None, "final": final}
            norms = {"distance": [0, 1, 2], "norm": [1.0, 0.5, None]}
            found["gradients"] = {"initial": norms, "final": norms}
        file.write_text(json.dumps(record | {"diagnostics": found}))
    return root


def test_the_tables_of_diagnostics(tmp_path: Path) -> None:
    diagnostics = study_diagnostics(results(tmp_path), "made")
    assert set(diagnostics["name"]) == {"train_curve", "heads", "gradients"}
    table = pruning_table(diagnostics)
    assert table[["variant", "n", "heads", "spare"]].to_dict("records") == [
        {"variant": "base", "n": 3, "heads": 4.0, "spare": 0.25},  # the third evaluation is above, whatever follows
        {"variant": "rope", "n": 3, "heads": 4.0, "spare": 0.25},
    ]
    assert table["one_each"].tolist() == pytest.approx([1.5 * 2.01, 1.5 * 2.11])
    curves = pruning_curves(diagnostics)
    assert len(curves) == 30 and curves["share"].max() == 1.0
    norms = gradient_distances(diagnostics)
    assert len(norms) == 36 and norms["norm"].isna().sum() == 12


@pytest.mark.filterwarnings("error")
def test_the_section_is_there_when_there_is_something_to_show(tmp_path: Path) -> None:
    root = results(tmp_path)
    report = write_report(root, "made")
    text, page = report.markdown.read_text(), report.html.read_text()
    assert "## Capacity" in text and "## Attention heads" in text and ">Capacity</h2>" in page
    table = capacity_table(study_table(root, "made"), study_curves(root, "made"))
    back = pd.read_csv(report.html.parent / "capacity.csv")
    assert back["gap"].tolist() == pytest.approx(table["gap"].tolist())
    assert table["flag"].tolist() == ["", "underfitting"]  # 0.1 is 5.2 % of 1.91, and 4.98 % of 2.01
    assert text.count("underfitting |") == 1
    for name in ("train_and_valid", "pruning", "gradients"):
        assert f"({name}.svg)" in text and (report.html.parent / f"{name}.svg").stat().st_size > 5000
    assert (report.html.parent / "heads.csv").exists()


def test_no_heads_no_table_of_heads(tmp_path: Path) -> None:
    text = write_report(results(tmp_path, heads=False), "made").markdown.read_text()
    assert "## Capacity" in text and "## Attention heads" not in text and "pruning" not in text
