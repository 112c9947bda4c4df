"""Every grid that the repository ships says what it asks and what it costs, and comes to a fair comparison."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import pytest
from conftest import ROOT, SHARED

from ablate.grid import load_grid
from ablate.match import TARGETS
from ablate.plan import make_plan
from ablate.rows import Plan

GRIDS = sorted((ROOT / "experiments").glob("*.yaml"))
HEADER = ("Question", "Papers?", "Cost", "Expected")

every_grid = pytest.mark.parametrize("file", GRIDS, ids=lambda file: file.stem)


NEEDS = {"../../shared/data": SHARED / "data", "corpus: fashion_mnist": Path("/usr/share/datasets/fashion-mnist")}


def planned(file: Path, cache: Path) -> Plan:
    """The plan; skips, by name, where the data that the grid asks for are not on this machine."""
    for words, place in NEEDS.items():
        if words in file.read_text() and not place.exists():
            pytest.skip(f"{file.name} needs {place}")
    return _planned(file, cache)


@lru_cache
def _planned(file: Path, cache: Path) -> Plan:
    return make_plan(load_grid(file), cache)


def test_there_is_a_grid_to_start_from() -> None:
    assert ROOT / "experiments" / "quickstart.yaml" in GRIDS


@every_grid
def test_it_opens_with_its_question_paper_cost_and_expected_result(file: Path) -> None:
    lines = load_grid(file).question.splitlines()
    said = [next((line for line in lines if re.match(rf"{word}: \S+ \S+", line)), None) for word in HEADER]
    assert None not in said, dict(zip(HEADER, said, strict=True))
    question, paper, *_ = said
    assert question == lines[0] and question.endswith("?")
    assert re.search(r"arXiv:\d{4}\.\d{4,5}|\b(19|20)\d\d\b", paper)


@every_grid
def test_its_name_is_the_name_of_its_file(file: Path) -> None:
    assert load_grid(file).name == file.stem


@every_grid
def test_its_cost_is_what_it_plans(file: Path, token_cache: Path) -> None:
    plan = planned(file, token_cache)
    (said,) = re.findall(r"^Cost: ([\d,]+) trials?\b", plan.grid.question, re.MULTILINE)
    assert int(said.replace(",", "")) == len(plan.trials)
    assert re.search(r"^Cost: .*\d+ (second|minute|hour|day)s?\b", plan.grid.question, re.MULTILINE)


@every_grid
def test_its_variants_are_matched_and_repeated(file: Path, token_cache: Path) -> None:
    plan = planned(file, token_cache)
    assert len(plan.grid.variants) > 1 and len(plan.grid.seeds) > 1
    for row in plan.rows:
        for target in TARGETS[plan.grid.match]:
            assert abs(row.residuals[target]) <= plan.grid.tolerance, (row.variant, row.size)
        assert (row.variant == plan.baseline) == (not row.differs_in)
        # one change of the paper's, or it says why
        together = plan.grid.published or "\nTogether: " in plan.grid.question
        assert together or not row.confounded, (row.variant, row.differs_in)


@every_grid
def test_its_profiles_ask_the_same(file: Path) -> None:
    small = load_grid(file)
    assert small.profiles == ("one_gpu", "eight_gpus")
    assert re.search(
        r"^Profiles: one_gpu [\d,]+ trials .*, eight_gpus [\d,]+ .*not run", small.question, re.MULTILINE
    )
    for profile in small.profiles:
        large = load_grid(file, profile=profile)
        assert [each.name for each in large.variants] == [each.name for each in small.variants]
        assert len(large.seeds) >= len(small.seeds)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["experts", "ngram", "orders"])
def test_what_its_profile_costs_is_what_it_plans(name: str, token_cache: Path) -> None:
    """Of a few: each is counted anew at its size, for ten seconds."""
    file = ROOT / "experiments" / f"{name}.yaml"
    small, large = planned(file, token_cache), make_plan(load_grid(file, profile="one_gpu"), token_cache)
    (said,) = re.findall(r"^Profiles: one_gpu ([\d,]+) trials of ([\d.e+]+) FLOPs", small.grid.question, re.MULTILINE)
    assert said == (f"{len(large.trials):,}", f"{large.total_flops:.1e}") and large.total_flops > small.total_flops
