"""What a trial may ask for: read strictly, written out as it was given, asked of Ray by Ray's names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY
from runs import plan_of

from ablate.errors import SpecError
from ablate.resources import Resources
from ablate.spec import parse, to_tree


@pytest.mark.parametrize(
    ("tree", "asked"),
    [
        ({}, {"CPU": 1}),
        ({"cpus": 2, "gpus": 0.5}, {"CPU": 2, "GPU": 0.5}),
        ({"memory": "8 GB"}, {"CPU": 1, "memory": 8_000_000_000}),
        ({"memory": "1.5GiB"}, {"CPU": 1, "memory": 3 * 2**29}),
        ({"memory": 4096}, {"CPU": 1, "memory": 4096}),
        ({"custom": {"tpu": 1, "label": 0.01}}, {"CPU": 1, "tpu": 1.0, "label": 0.01}),
        ({"gpus": 4, "parallel": {"data": 2, "tensor": 2}}, {"CPU": 1, "GPU": 4}),
        ({"cpus": 2, "gpus": 0, "parallel": {"data": 2, "shard": True}}, {"CPU": 2}),
    ],
)
def test_what_is_asked_of_ray(tree: dict[str, Any], asked: dict[str, float]) -> None:
    need = parse(Resources, tree)
    assert need.of_ray() == asked
    assert parse(Resources, to_tree(need)) == need


@pytest.mark.parametrize(
    ("tree", "place", "words"),
    [
        ({"memory": "8 Gb"}, ["memory"], "unknown unit 'Gb'"),
        ({"memory": "lots"}, ["memory"], "'lots' must be a size: bytes, or a number with a unit, as 8 GB"),
        ({"memory": True}, ["memory"], "True must be a size"),
        ({"memory": 0}, ["memory"], "0 must be a size"),
        ({"memory": "0 GB"}, ["memory"], "must be a size"),
        ({"custom": "tpu"}, ["custom"], "'tpu' must be a mapping of names to amounts"),
        ({"custom": {"CPU": 2}}, ["custom", "CPU"], "'CPU' is asked for as resources.cpus"),
        ({"custom": {"memory": 2}}, ["custom", "memory"], "'memory' is asked for as resources.memory"),
        ({"custom": {"tpu": 0}}, ["custom", "tpu"], "0 must be a positive number"),
        ({"custom": {"tpu": "1"}}, ["custom", "tpu"], "'1' must be a positive number"),
        ({"custom": {"tpu": True}}, ["custom", "tpu"], "True must be a positive number"),
        ({"custom": {"tpu": 1.5}}, ["custom", "tpu"], "1.5 must be a whole number, or a part of one from 0.0001"),
        ({"custom": {"tpu": 1e-5}}, ["custom", "tpu"], "must be a whole number, or a part of one from 0.0001"),
        ({"tpu": 1}, ["tpu"], "unknown key 'tpu'"),
        ({"parallel": 2}, ["parallel"], "2 must be a mapping, as {data: 2}"),
        ({"parallel": {"pipeline": 2}}, ["parallel", "pipeline"], "unknown key 'pipeline'"),
        ({"parallel": {"data": 0}}, ["parallel", "data"], "0"),
        ({"parallel": {"data": True}}, ["parallel", "data"], "True must be a whole number"),
        ({"parallel": {"data": 2, "shard": 1}}, ["parallel", "shard"], "1 must be true or false"),
        ({"parallel": {"tensor": 2, "shard": True}}, ["parallel", "shard"], "nothing is sharded over one process"),
        ({"gpus": 2, "parallel": {"data": 4}}, ["gpus"], "2 GPUs for a trial of 4 processes"),
        ({"gpus": 0, "parallel": {"data": 2}}, ["cpus"], "1 CPUs for a trial of 2 processes"),
    ],
)
def test_what_cannot_be_asked(tree: dict[str, Any], place: list[str], words: str) -> None:
    with pytest.raises(SpecError) as error:
        parse(Resources, tree)
    assert list(error.value.path) == place and words in error.value.problem


def test_variants_ask_for_their_own(tmp_path: Path, token_cache: Path, write: Callable[..., Path]) -> None:
    """By dotted paths over the base's, one name of `custom` at a time; the trials' ids stay what they are."""
    base = TINY.replace("base:\n", "base:\n  resources: {memory: 200 MB, custom: {label: 0.01}}\n")
    text = base.replace("  rope: rope\n", "  rope: {use: rope, resources.custom.tpu: 1, resources.cpus: 2}\n")
    plan = plan_of(text, tmp_path / "ours", token_cache)
    asked = {row.variant: row.spec.resources.of_ray() for row in plan.rows}
    assert asked["plain"] == {"CPU": 1, "memory": 2e8, "label": 0.01}
    assert asked["rope"] == {"CPU": 2, "memory": 2e8, "label": 0.01, "tpu": 1}
    without = plan_of(TINY, tmp_path / "without", token_cache)
    assert [trial.id for trial in plan.trials] == [trial.id for trial in without.trials]
