"""The tables of papers, made from a study's frames: every number is worked out here a second time."""

from __future__ import annotations

import json
import math
from pathlib import Path

import fabricate
import layouts_made as made
import numpy as np
import pandas as pd
import pytest
from layouts_made import compared_laws, comparisons, later, points, shown_tree

from analysis import layouts
from analysis.fit import ScalingLaw
from analysis.isoflop import isoflop
from analysis.layouts import LayoutError, frame, markdown
from analysis.optimal import allocation
from analysis.scaling import Optimum
from analysis.table import TableError, study_table
from analysis.tables import comparison_table
from analysis.transfer import pretrained

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def study(tmp_path: Path) -> pd.DataFrame:
    return made.study(tmp_path)


def test_narang(study: pd.DataFrame) -> None:
    compared = comparison_table(study, "base")
    layout = layouts.narang(pretrained(study, ""), later(), compared, {"rope": "Positions"})
    found = frame(layout).set_index(["group", "variant"])
    rope = found.loc[("l, Positions", "rope")]
    assert rope["loss"] == pytest.approx(1.42) and rope["early_loss"] == pytest.approx(fabricate.early(1.42))
    assert rope["early_loss_sd"] == pytest.approx(0.02)
    reach = 4.302652729911275 * 0.02 / math.sqrt(3)  # Student's t of 2 degrees of freedom
    assert (rope["loss_lo"], rope["loss_hi"]) == pytest.approx((1.42 - reach, 1.42 + reach))
    assert (rope["params_total"], rope["flops_per_token"]) == (16_000, 32_000)
    assert rope["loss_verdict"] == "better" and len(rope["loss_trial_ids"].split()) == 3
    assert (rope["sst accuracy"], rope["sst accuracy_lo"], rope["sst accuracy_verdict"]) == (
        0.9,
        0.9 - 0.05,
        "better",
    )
    assert found.loc[("s", "glu"), "loss_verdict"] == "indistinguishable"
    assert list(dict.fromkeys(found.index.get_level_values(0))) == ["s", "s, Positions", "l", "l, Positions"]
    assert "**1.420 [1.370, 1.470]** ▲" in markdown(layout) and "16.0K | 32.0K" in markdown(layout)
    ended = [note for note in layout.notes if note.startswith("Trials that came")]
    assert ended[0] == "Trials that came to their end: glu, l: 2 of 3; all of the others."
    assert ended[1].startswith(
        "Trials that came to their end: glu, s, cola: 2 of 3; glu, l, cola: 2 of 3; glu, s, sst: 2 of"
    )


def test_narang_of_a_study_without_stages_or_comparison(study: pd.DataFrame) -> None:
    found = frame(layouts.narang(pretrained(study, "")))
    assert list(found)[-3:] == ["loss", "loss_lo", "loss_hi"] and len(found) == 6
    assert len(frame(layouts.narang(pretrained(study, "nothing")))) == 0
    with pytest.raises(LayoutError, match="narang: the table has no column 'steps_per_s'; its columns: size"):
        layouts.narang(pretrained(study, "").drop(columns="steps_per_s"))


def test_ordering(study: pd.DataFrame) -> None:
    compared = comparison_table(study[study["size"] == "s"], "base")
    orders = {"base": "sfsfsf", "rope": "sssfff", "glu": "sffcsf"}
    layout = layouts.ordering(compared, orders)
    found = frame(layout)
    assert found["order"].tolist() == ["sfsfsf", "sffcsf", "sssfff"]  # the worst first; equal ones as they came
    assert found[["n_s", "n_f", "n_c"]].to_numpy().tolist() == [[3, 3, 0], [2, 3, 1], [3, 3, 0]]
    assert found["perplexity"].tolist() == pytest.approx([math.exp(2.02), math.exp(2.02), math.exp(1.92)])
    assert found["diff"][2] == pytest.approx(-0.1) and found["score_verdict"][2] == "better"
    assert "| `sfsfsf` | base | 3 | 3 | 0 |" in markdown(layout)
    turned = frame(layouts.ordering(compared.assign(better="higher", metric="accuracy"), orders))
    assert turned["order"].tolist() == ["sssfff", "sfsfsf", "sffcsf"] and "perplexity" not in turned
    with pytest.raises(LayoutError, match="no order of variant 'glu'; orders of: base, rope"):
        layouts.ordering(compared, {"base": "sf", "rope": "fs"})
    with pytest.raises(LayoutError, match=r"several metrics \(loss, accuracy\)"):
        layouts.ordering(compared.assign(metric=["loss", "loss", "accuracy"]), orders)
    assert len(frame(layouts.ordering(compared.iloc[:0], {}))) == 0


def test_position(study: pd.DataFrame) -> None:
    rows = later()[lambda rows: rows["size"] == "s"]
    found = frame(layouts.position(rows)).set_index("variant")
    assert found["task_mean"].tolist()[:2] == pytest.approx([0.65, 0.75]) and np.isnan(found["task_mean"]["glu"])
    assert found.loc["rope", "cola accuracy_sd"] == 0.02 and found.loc["rope", "cola accuracy_verdict"] == "better"
    mixed = rows.assign(metric=rows["column"], better=np.where(rows["column"] == "sst", "lower", "higher"))
    assert "task_mean" not in frame(layouts.position(mixed))
    cells_ = frame(layouts.position(layouts.by_cell(comparison_table(study, "base"))))
    assert [name for name in cells_ if name.endswith("loss")] == [
        "s, tokens=100000 loss", "l, tokens=100000 loss"]  # fmt: skip
    assert cells_.loc[1, "task_mean"] == pytest.approx((1.92 + 1.42) / 2)
    assert len(frame(layouts.position(rows.iloc[:0]))) == 0
    with pytest.raises(LayoutError, match="several rows of task 'cola'"):
        layouts.position(pd.concat((rows, rows)))


def test_vaswani3_leaves_blank_what_is_the_base_models(tmp_path: Path) -> None:
    shapes = {"base": (8, 64, "rope"), "one": (1, 512, "rope"), "learned": (8, 64, "learned")}
    labels = fabricate.study(tmp_path, lambda label: 2.0 + 0.1 * label["seed"], tuple(shapes))
    for label in labels:
        heads, width, position = shapes[label["variant"]]
        arch = {
            "n_heads": heads,
            "d_head": width,
            "depth": 2,
            "order": "sf",
            "position": {"name": position},
            "swap": None,
        }
        arch["sublayers"] = {"s": {"name": "attention", **({"d_value": 64} if heads == 1 else {})}}
        tree = {"arch": arch, "data": {"seq_len": 64}, "train": {"dropout": 0.1}, "seed": label["seed"]}
        (tmp_path / "trials" / label["id"] / "spec.json").write_text(json.dumps(tree))
    trials = study_table(tmp_path, "made")
    told = layouts.settings(tmp_path, trials)
    assert layouts.whole_orders(told) == dict.fromkeys(shapes, "sfsf")
    layout = layouts.vaswani3(comparison_table(trials, "base"), told, "base", {"one": "(A)", "learned": "(E)"})
    found = frame(layout).set_index("variant")
    names = ["group", "arch.depth", "arch.n_heads", "arch.d_head", "arch.sublayers.s.d_value", "train.dropout"]
    assert list(found)[:7] == [*names, "arch.position"]
    assert found.loc["base", names[1:4]].tolist() == [2, 8, 64]
    assert [None if pd.isna(each) else each for each in found.loc["one", [*names, "arch.position"]]] == [
        "(A)", None, 1, 512, 64, None, None]  # fmt: skip
    assert found.loc["learned", "arch.position"] == "learned" and pd.isna(found.loc["learned", "arch.n_heads"])
    assert "| one |  | 1 | 512 | 64 |  |  | 2.1000 ± 0.1000 ≈ |" in markdown(layout)
    with pytest.raises(LayoutError, match="no baseline 'big' in a cell of base, one, learned"):
        layouts.vaswani3(comparison_table(trials, "base"), told, "big")
    for each in trials.loc[trials["variant"] == "one", "trial_id"]:
        (tmp_path / "trials" / each / "spec.json").unlink()
    with pytest.raises(TableError, match=r"spec.json is missing"):
        layouts.settings(tmp_path, trials)


@pytest.mark.filterwarnings("error")
def test_what_costs_nothing_has_no_growth() -> None:
    costs = pd.DataFrame({"variant": ["table", "full"] * 2, "seq_len": [8, 8, 16, 16], "flops": [0.0, 1.0, 0.0, 4.0]})
    found = frame(layouts.complexity(costs.assign(trial_ids=["a", "b", "c", "d"]), heading="Variant"))
    assert np.isnan(found["growth"][0]) and found["growth"][1] == 2.0
    assert found["flops_16_trial_ids"].tolist() == ["c", "d"]


def test_complexity() -> None:
    trees = [shown_tree("attention", length, depth) for length in (128, 512, 256) for depth in (1, 2)]
    costs = layouts.layer_costs(trees)
    assert costs["flops"].tolist() == pytest.approx([n * (30 * n + 1000) for n in (128, 512, 256)])
    layout = layouts.complexity(costs.assign(seconds=0.5), {"attention": "self_attention"})
    found = frame(layout).iloc[0]
    assert found["complexity_per_layer"] == "O(n²·d)" and found["maximum_path_length"] == "O(1)"
    grown = math.log(512 * (30 * 512 + 1000) / (256 * (30 * 256 + 1000)), 2)
    assert found["growth"] == pytest.approx(grown) and found["flops_128"] == pytest.approx(128 * (30 * 128 + 1000))
    assert [column.key for column in layout.columns][4:] == [
        "flops_128", "flops_256", "flops_512", "growth", "seconds_128", "seconds_256", "seconds_512"]  # fmt: skip
    with pytest.raises(LayoutError, match="unknown kind of layer 'lstm'; known: self_attention, recurrent"):
        layouts.complexity(costs, {"attention": "lstm"})
    with pytest.raises(LayoutError, match="attention at length 128 has one depth"):
        layouts.layer_costs(trees[:1])
    with pytest.raises(LayoutError, match="no column of a cost; known: flops, seconds"):
        layouts.complexity(costs.drop(columns="flops"))
    assert len(frame(layouts.complexity(costs.iloc[:0]))) == 0


def test_isoflop_and_optima() -> None:
    found_ = isoflop(points(), draws=20)
    found = frame(layouts.isoflop(found_.vertices, found_.warnings))
    assert found["n"].to_numpy() == pytest.approx(np.sqrt(found["c"] / 6).to_numpy(), rel=1e-3)
    assert found["tokens_per_param"].to_numpy() == pytest.approx(1.0, rel=2e-3)
    assert (found["n_lo"] <= found["n"]).all() and (found["n"] <= found["n_hi"]).all()
    few = frame(layouts.isoflop(found_.vertices.drop(columns=["lo", "hi"]).assign(n=np.nan, reason="too few")))
    assert "n_lo" not in few and few["reason"].unique().tolist() == ["too few"]
    law = ScalingLaw("chinchilla").fit(points(), points()["loss"])
    parts = [Optimum("2", found_), Optimum("3", allocation(law), law), Optimum("1", note="no curves")]
    layout = layouts.optima(parts, 6e20)
    rows = frame(layout).set_index("approach")
    assert rows["n_exponent"].tolist()[:2] == pytest.approx([0.5, 0.5], abs=2e-3)
    assert rows["n"].tolist()[:2] == pytest.approx([1e10, 1e10], rel=0.05) and np.isnan(rows.loc["1", "n"])
    assert rows.loc["2", ["n_exponent_lo", "n_exponent_hi"]].tolist() == pytest.approx([0.5, 0.5], abs=5e-3)
    assert rows.loc["1", "note"] == "no curves" and np.isnan(rows.loc["3", "n_lo"])
    assert "at 6×10²⁰ FLOPs" in layout.title and len(frame(layouts.optima([], 1e20))) == 0


def test_scaling_and_laws() -> None:
    layout = layouts.scaling(comparisons())
    found = frame(layout).iloc[0]
    verdicts = found[["alpha_diff_verdict", "gain_low_verdict", "gain_high_verdict"]].tolist()
    assert verdicts == ["indistinguishable", "worse", "better"] and found["group"] == "lr=1"
    assert "lr=2: too few points" in layout.notes and "**∞ [1.10, ∞]** ▲" in markdown(layout)
    assert len(frame(layouts.scaling([]))) == 0
    compared = compared_laws()
    told = layouts.laws(compared)
    assert "| shared | yes | gain | 1×10¹² | 2 [1.5, ∞] |  | 80 | 40 |" in markdown(told)
    assert told.notes == ("shared: few points",) and told.title == "Laws of variants against base"
    assert len(frame(layouts.laws(compared.iloc[:0]))) == 0
    with pytest.raises(LayoutError, match=r"several baselines \(base, gpt\)"):
        layouts.laws(pd.concat((compared, compared.assign(baseline="gpt"))))
