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


@lru_cache
def profiled(file: Path, profile: str, cache: Path) -> Plan:
    return make_plan(load_grid(file, profile=profile), cache)


@every_grid
def test_its_profiles_are_the_same_study_at_a_larger_scale(file: Path, token_cache: Path) -> None:
    grid = load_grid(file)
    if not grid.profiles:
        pytest.skip(f"{file.name} has no profiles")
    assert grid.profiles == ("one_gpu", "eight_gpus")
    small = planned(file, token_cache)
    said = re.search(r"^Profiles: one_gpu ([\d,]+) trials\b.*, eight_gpus ([\d,]+)\b", grid.question, re.MULTILINE)
    assert said is not None
    flops = small.total_flops
    for profile, trials in zip(grid.profiles, said.groups(), strict=True):
        plan = profiled(file, profile, token_cache)
        assert int(trials.replace(",", "")) == len(plan.trials)
        assert [each.name for each in plan.grid.variants] == [each.name for each in small.grid.variants]
        assert plan.total_flops > flops
        flops = plan.total_flops
