"""What `experiments/LOG.md` says was found is what the kept records say, computed again."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache

import pandas as pd
import pytest
from conftest import ROOT
from test_modifications import RECORDS, kept

from ablate.grid import load_grid
from analysis.tables import comparison_table, overall_table
from analysis.tuning import reported

LOG = (ROOT / "experiments" / "LOG.md").read_text()
ON_ONE_LINE = " ".join(LOG.split())
KEPT = sorted(file.name.removesuffix(".csv.gz") for file in RECORDS.glob("*.csv.gz"))


@lru_cache
def cells(study: str) -> pd.DataFrame:
    return _compared(comparison_table, study)


@lru_cache
def overall(study: str) -> pd.DataFrame:
    return _compared(overall_table, study)


def _compared(table: Callable[..., pd.DataFrame], study: str) -> pd.DataFrame:
    grid = load_grid(ROOT / "experiments" / f"{study}.yaml")
    swept = dict.fromkeys(grid.tune.paths) if grid.tune else None
    return table(reported(kept(study), swept), grid.variants[0].name, grid.smallest)


# study, variant, cell (None: over all of them), difference, its 95 % interval, verdict
SAID = [
    ("compute_race", "d8", "flops=1.6e+10", 0.130, 0.111, 0.149, "worse"),
    ("compute_race", "d8", "flops=1e+09", -0.175, -0.603, 0.253, "indistinguishable"),
    ("width_depth", "depth_1", None, 0.013, -0.063, 0.089, "indistinguishable"),
    ("width_depth", "depth_8", None, 0.101, 0.056, 0.145, "worse"),
    ("width_depth", "depth_16", None, 0.250, 0.207, 0.293, "worse"),
    ("removals", "no_residual", "depth=2", 0.499, 0.205, 0.792, "worse"),
    ("removals", "no_residual", "depth=6", 1.074, 1.056, 1.091, "worse"),
    ("removals", "no_attention", None, 0.283, 0.259, 0.307, "worse"),
    ("activations", "sigmoid", None, 0.242, 0.190, 0.293, "worse"),
    ("activations", "swiglu", None, -0.019, -0.064, 0.026, "indistinguishable"),
    ("experts", "switch_8", None, 0.018, -0.005, 0.041, "indistinguishable"),
    ("experts", "top_2_of_8", None, -0.058, -0.085, -0.032, "better"),
    ("orders", "sandwich_5", None, 0.119, 0.024, 0.215, "indistinguishable"),
    ("orders", "sandwich_1", None, 0.000, -0.045, 0.046, "indistinguishable"),
    ("positions", "nope", None, -0.006, -0.009, -0.004, "equivalent"),
    ("positions", "alibi", None, -0.127, -0.141, -0.113, "better"),
    ("positions", "rope", None, -0.120, -0.134, -0.106, "better"),
    ("positions", "sinusoidal", None, 0.388, 0.240, 0.535, "worse"),
    ("ngram", "ngram_3", "tokens=131072", -0.241, -0.304, -0.178, "better"),
    ("ngram", "ngram_3", "tokens=524288", 0.207, 0.167, 0.247, "worse"),
    ("ngram", "ngram_5", "tokens=524288", -0.201, -0.241, -0.162, "better"),
    ("cosine", "made_for_5_times", "tokens=20480", -0.225, -0.272, -0.178, "better"),
    ("batch_size", "tokens_256", None, -0.170, -0.198, -0.143, "better"),
    ("batch_size", "tokens_4096", None, 0.623, 0.553, 0.693, "worse"),
    ("kaplan", "lstm", None, 0.086, 0.062, 0.109, "worse"),
    ("sharing", "shared", None, 0.127, 0.090, 0.165, "worse"),
    ("sharing", "shared_wide", None, -0.076, -0.122, -0.031, "better"),
    ("sharing", "universal", None, 0.484, 0.412, 0.556, "worse"),
    ("norms_depth", "post", None, 0.258, 0.185, 0.332, "worse"),
    ("norms_depth", "sandwich", None, 0.179, 0.155, 0.202, "worse"),
    ("norms_depth", "deepnorm", None, 0.416, 0.289, 0.543, "worse"),
    ("line_up", "perceptron", None, -0.300, -0.356, -0.244, "better"),
    ("line_up", "cnn", None, -0.220, -0.278, -0.163, "better"),
    ("line_up", "lstm", None, 0.090, -0.012, 0.191, "indistinguishable"),
    ("vaswani_table3", "vaswani_b1", None, 0.024, 0.015, 0.032, "worse"),
    ("vaswani_table3", "vaswani_c4", None, 0.116, 0.082, 0.151, "worse"),
    ("vaswani_table3", "vaswani_d1", None, -0.051, -0.067, -0.036, "better"),
    ("vaswani_table3", "vaswani_a1", None, -0.004, -0.031, 0.022, "indistinguishable"),
    ("heads", "four", None, -0.054, -0.065, -0.043, "better"),
    ("heads", "eight", None, -0.042, -0.089, 0.004, "indistinguishable"),
    ("recall", "lstm", None, -0.417, -0.509, -0.325, "worse"),
    ("recall", "convolution", None, -0.486, -0.497, -0.474, "worse"),
    ("recipes", "wsd", None, -0.158, -0.200, -0.117, "better"),
    ("recipes", "seq_warmup", None, -0.017, -0.038, 0.004, "indistinguishable"),
    ("length", "none", None, -0.137, -0.157, -0.118, "worse"),
    ("length", "alibi", None, -0.101, -0.156, -0.046, "worse"),
    ("positions_encoder", "shaw", None, -1.082, -1.166, -0.999, "better"),
    ("positions_encoder", "nope", None, -0.006, -0.009, -0.003, "equivalent"),
    ("efficient", "longformer", "seq_len=512", 0.000, -0.003, 0.003, "indistinguishable"),
    ("efficient", "linformer", "seq_len=512", 0.135, 0.131, 0.139, "worse"),
    ("efficient", "fnet", "seq_len=512", 0.197, 0.175, 0.218, "worse"),
    ("digits", "lenet", None, 0.009, -0.028, 0.046, "indistinguishable"),
    ("digits", "mlp", None, 0.012, 0.002, 0.023, "indistinguishable"),
    ("polarity", "no_mixing", None, -0.014, -0.034, 0.006, "indistinguishable"),
    ("polarity", "kim_cnn", None, -0.020, -0.051, 0.010, "indistinguishable"),
    ("polarity", "attention_pool", None, -0.009, -0.012, -0.005, "worse"),
    ("parity", "lstm", None, 0.404, 0.388, 0.420, "better"),
    ("parity", "learned", None, 0.046, 0.011, 0.082, "indistinguishable"),
    ("chorales", "music", None, -0.336, -0.543, -0.130, "better"),
    ("chorales", "rope", None, -1.490, -1.844, -1.135, "better"),
    ("intents", "no_mixing", None, -0.034, -0.057, -0.010, "indistinguishable"),
    ("intents", "kim_cnn", None, 0.004, -0.026, 0.034, "indistinguishable"),
    ("blimp", "rope", "lm", -0.266, -0.282, -0.250, "better"),
    ("blimp", "rope", "grammar", 0.003, -0.018, 0.024, "indistinguishable"),
    ("fashion", "lenet", None, 0.069, 0.065, 0.072, "better"),
    ("fashion", "mlp", None, 0.054, 0.045, 0.063, "better"),
    ("cosine", "made_for_5_times", "tokens=184320", -0.018, -0.036, 0.000, "indistinguishable"),
]


@pytest.mark.parametrize(("study", "variant", "cell", "diff", "lo", "hi", "verdict"), SAID)
def test_the_log_has_the_numbers_of_the_records(
    study: str, variant: str, cell: str | None, diff: float, lo: float, hi: float, verdict: str
) -> None:
    found = overall(study) if cell is None else cells(study)
    found = found[found["variant"] == variant]
    if cell is not None:
        named = found[["stage", "size", "axes", "budget"]].fillna("").astype(str)
        found = found[(named == cell).any(axis=1)]
    (row,) = found.to_dict("records")
    assert [row["diff"], row["lo"], row["hi"]] == pytest.approx([diff, lo, hi], abs=0.0006)
    assert row["verdict"] == verdict
    (section,) = re.findall(rf"^### {study}:.*?(?=^##|\Z)", LOG, re.MULTILINE | re.DOTALL)
    assert f"{abs(diff):.3f}" in section


@pytest.mark.parametrize(
    ("study", "variant", "diff", "lo", "hi"),
    [
        ("length", "none", 0.231, 0.191, 0.271),
        ("length", "alibi", 0.276, 0.231, 0.322),
        ("length", "rope", 0.059, 0.031, 0.086),
        ("recall", "lstm", -0.634, -0.647, -0.622),
        ("dyck", "lstm", 0.026, 0.012, 0.040),
        ("fashion", "lenet", 0.066, 0.053, 0.080),
        ("intents", "no_mixing", -0.038, -0.048, -0.029),
        ("parity", "lstm", 0.468, 0.458, 0.478),
        ("dyck", "learned", -0.029, -0.048, -0.010),
    ],
)
def test_what_is_told_of_test_data(study: str, variant: str, diff: float, lo: float, hi: float) -> None:
    """Which is longer than training's where strings are."""
    found = overall(study).set_index("variant").loc[variant]
    assert [found["test_diff"], found["test_lo"], found["test_hi"]] == pytest.approx([diff, lo, hi], abs=0.0006)
    assert found["test_verdict"] == ("better" if diff > 0 else "worse") and f"{abs(diff):.3f} [" in ON_ONE_LINE


def test_what_emerges_by_one_metric_alone() -> None:
    rope = kept("emergence").query("variant == 'rope'").sort_values("params_total")
    means = rope.groupby("params_total")[["test_accuracy", "test_exact_match"]].mean()
    assert means["test_accuracy"].round(3).tolist() == [0.181, 0.372, 0.505, 0.602, 0.835, 0.785]
    assert means["test_exact_match"].round(3).tolist() == [0.0, 0.0, 0.001, 0.001, 0.088, 0.041]
    for name in means:
        assert ", ".join(f"{value:.3f}" for value in means[name][:4]) in ON_ONE_LINE


def test_how_far_seeds_alone_move_a_fine_tuning() -> None:
    tuned = kept("finetuning").query("stage != 'pretrain'")
    models = tuned.groupby(["stage", "variant", "parent_seed"])["score"]
    assert len(models) == 20 and (models.size() == 5).all()
    ranges = (models.max() - models.min())["as_released"]
    assert (ranges.min(), ranges.max()) == pytest.approx((0.026, 0.040))
    spread = models.var().groupby("stage").mean() ** 0.5
    assert spread.round(4).to_dict() == {
        "as_released": 0.0129, "corrected": 0.0140, "fresh_top": 0.0126, "longer": 0.0088, "slower_below": 0.0154,
    }  # fmt: skip
    gains = models.mean().unstack("stage").sub(models.mean()["as_released"], axis=0).mean()
    assert gains.round(3).to_dict() == {
        "as_released": 0.0, "corrected": -0.004, "fresh_top": -0.007, "longer": 0.069, "slower_below": -0.051,
    }  # fmt: skip


def test_every_kept_record_has_its_section() -> None:
    assert KEPT and all(f"\n### {study}: " in LOG and f"`{study}`" in LOG for study in KEPT)


@pytest.mark.parametrize("study", KEPT)
def test_kept_records_are_small(study: str) -> None:
    assert (RECORDS / f"{study}.csv.gz").stat().st_size < 300_000
