"""What `experiments/LOG.md` says was found is what the kept records say, computed again."""

from __future__ import annotations

import re
from functools import lru_cache

import pandas as pd
import pytest
from conftest import ROOT
from test_modifications import RECORDS, kept

from ablate.grid import load_grid
from analysis.tables import comparison_table, overall_table

LOG = (ROOT / "experiments" / "LOG.md").read_text()
KEPT = sorted(file.name.removesuffix(".csv.gz") for file in RECORDS.glob("*.csv.gz"))


@lru_cache
def cells(study: str) -> pd.DataFrame:
    grid = load_grid(ROOT / "experiments" / f"{study}.yaml")
    return comparison_table(kept(study), grid.variants[0].name, grid.smallest)


@lru_cache
def overall(study: str) -> pd.DataFrame:
    grid = load_grid(ROOT / "experiments" / f"{study}.yaml")
    return overall_table(kept(study), grid.variants[0].name, grid.smallest)


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


def test_every_kept_record_has_its_section() -> None:
    assert KEPT and all(f"\n### {study}: " in LOG and f"`{study}`" in LOG for study in KEPT)


@pytest.mark.parametrize("study", KEPT)
def test_kept_records_are_small(study: str) -> None:
    assert (RECORDS / f"{study}.csv.gz").stat().st_size < 300_000
