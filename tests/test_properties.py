"""Properties of ids and of the expansion of grids, for drawn specifications and grids; examples are in test_spec,
test_identity and test_grid."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from runs import plan_of
from test_spec import trees

from ablate.errors import SpecError, UserError
from ablate.rows import Plan
from ablate.spec import Resources, TrialSpec, canonical, digest, parse, to_tree

PLACES = {"corpus", "path", "hub", "hub_config", "column"}  # `content` stands for them
DRAWN = settings(max_examples=40, deadline=None, derandomize=True)
PLANNED = settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def resolved(tree: Mapping[str, Any]) -> TrialSpec:
    """A drawn specification as it is when it gets an id."""
    try:
        made = parse(TrialSpec, tree)
    except SpecError:  # parts that were drawn one by one and contradict each other
        reject()
    data = replace(made.data, content=made.data.content or "abc")
    return replace(made, data=data, train=replace(made.train, precision="fp32"))


def shuffled(tree: Any, chance: Random) -> Any:
    """The same mappings with their keys in another order."""
    if not isinstance(tree, dict):
        return tree
    return {key: shuffled(tree[key], chance) for key in chance.sample(sorted(tree), len(tree))}


# ---- ids


@DRAWN
@given(tree=trees(), number=st.integers(0, 999))
def test_an_id_does_not_depend_on_the_order_of_keys_nor_on_defaults_written_out(tree: Any, number: int) -> None:
    spec, chance = resolved(tree), Random(number)
    assert resolved(shuffled(tree, chance)).trial_id == spec.trial_id
    assert parse(TrialSpec, shuffled(to_tree(spec), chance)).trial_id == spec.trial_id
    assert digest(json.loads(json.dumps(shuffled(canonical(spec), chance)))) == spec.trial_id


@DRAWN
@given(tree=trees(), corpus=st.text(min_size=1), column=st.text(), cpus=st.integers(1, 99))
def test_an_id_does_not_depend_on_resources_and_places(tree: Any, corpus: str, column: str, cpus: int) -> None:
    spec = resolved(tree)
    data = replace(spec.data, path=None, hub=None, hub_config=None, corpus=corpus, column=column)
    moved = replace(spec, data=data, resources=Resources(cpus=cpus, gpus=0.25))
    assert (moved.trial_id, moved.group_id) == (spec.trial_id, spec.group_id)


@settings(DRAWN, max_examples=10)
@given(one=trees(), two=trees())
def test_any_field_changes_the_id_of_any_trial(one: Any, two: Any) -> None:
    """Each field is put to another trial's value, where that is legal beside the others: the id changes where the
    value does. (`test_identity` has a value of its own for every field.)"""
    spec, other = resolved(one), resolved(two)
    ids = spec.trial_id, spec.group_id
    for section in ("arch", "data", "train"):
        mine, theirs = getattr(spec, section), getattr(other, section)
        for name in {each.name for each in fields(mine)} - PLACES:
            try:
                changed = replace(spec, **{section: replace(mine, **{name: getattr(theirs, name)})})
            except UserError:
                continue
            same = getattr(mine, name) == getattr(theirs, name)
            assert ((changed.trial_id == ids[0]), (changed.group_id == ids[1])) == (same, same), name


@DRAWN
@given(one=trees(), two=trees(), seeds=st.lists(st.integers(0, 99), min_size=2, max_size=5, unique=True))
def test_a_group_is_what_differs_in_the_seed_alone(one: Any, two: Any, seeds: list[int]) -> None:
    a, b = resolved(one), resolved(two)
    assert len({replace(a, seed=seed).group_id for seed in seeds}) == 1
    assert len({replace(a, seed=seed).trial_id for seed in seeds}) == len(seeds)
    alike = replace(a, seed=0).trial_id == replace(b, seed=0).trial_id
    assert (a.group_id == b.group_id) == alike


# ---- grids

VARIANTS = {"plain": {}, "rope": "rope", "slow": {"train.lr": 1e-3}, "rms": {"arch.norm": "rmsnorm"}}
AXES = {"train.dropout": [0.0, 0.1], "arch.bias": [True, False]}


@st.composite
def grids(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from(sorted(VARIANTS)), min_size=1, max_size=3, unique=True))
    axes = draw(st.lists(st.sampled_from(sorted(AXES)), max_size=2, unique=True))
    tree: dict[str, Any] = {
        "study": "drawn",
        "base": {
            "arch": {"d_model": 16, "n_heads": 2, "depth": 1, "position": "learned"},
            "data": {"corpus": "kjv", "tokenizer": "bytes", "seq_len": 16},
            "train": {"tokens": 6400, "batch_tokens": 256, "lr": 3e-3},
        },
        "variants": {name: VARIANTS[name] for name in names},
        "sizes": {"arch.d_model": draw(st.lists(st.sampled_from((16, 24, 32)), min_size=1, max_size=2, unique=True))},
        "seeds": draw(st.integers(1, 3)),
        "match": "none",
    }
    return tree | ({"axes": {path: AXES[path] for path in axes}} if axes else {})


def planned(tree: Mapping[str, Any], folder: Path, cache: Path) -> Plan:
    return plan_of(yaml.safe_dump(tree, sort_keys=False), folder, cache)


def ids(plan: Plan) -> set[str]:
    return {trial.id for trial in plan.trials}


@pytest.mark.slow
@PLANNED
@given(data=st.data(), tree=grids())
def test_a_grid_is_the_product_of_its_lists_in_any_order(
    data: st.DataObject, tree: dict[str, Any], tmp_path: Path, token_cache: Path
) -> None:
    plan = planned(tree, tmp_path, token_cache)
    lists = [tree["variants"], tree["sizes"]["arch.d_model"], range(tree["seeds"]), *tree.get("axes", {}).values()]
    assert len(plan.trials) == len(list(itertools.product(*lists))) == len(ids(plan))
    assert all(trial.id == trial.spec.trial_id for trial in plan.trials)
    turned = json.loads(json.dumps(tree))
    turned["variants"] = {name: tree["variants"][name] for name in data.draw(st.permutations(list(tree["variants"])))}
    turned["sizes"]["arch.d_model"] = data.draw(st.permutations(tree["sizes"]["arch.d_model"]))
    if "axes" in tree:
        paths = data.draw(st.permutations(list(tree["axes"])))
        turned["axes"] = {path: data.draw(st.permutations(tree["axes"][path])) for path in paths}
    assert ids(planned(turned, tmp_path, token_cache)) == ids(plan)


@pytest.mark.slow
@PLANNED
@given(data=st.data(), tree=grids())
def test_a_grid_that_grows_keeps_its_trials(
    data: st.DataObject, tree: dict[str, Any], tmp_path: Path, token_cache: Path
) -> None:
    before = ids(planned(tree, tmp_path, token_cache))
    left = sorted(VARIANTS.keys() - tree["variants"].keys())
    more = data.draw(st.sampled_from(left))
    grown = tree | {"variants": {**tree["variants"], more: VARIANTS[more]}, "seeds": tree["seeds"] + 1}
    after = ids(planned(grown, tmp_path, token_cache))
    assert before < after
    renamed = tree | {"study": "another", "variants": {f"{name}_2": each for name, each in tree["variants"].items()}}
    assert ids(planned(renamed, tmp_path, token_cache)) == before
