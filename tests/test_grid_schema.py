"""The JSON Schema of grids: up to date, no stricter than the code that reads grids, and of use for mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, TINY, Cli
from jsonschema import Draft7Validator

from ablate import registry
from ablate.errors import UserError
from ablate.grid import KEYS, MODELINE, load_grid
from ablate.overlays import ladders, overlays
from ablate.plan import make_plan
from ablate.spec import SECTIONS, TrialSpec, to_tree
from ablate.yamlfile import parse_yaml, read_yaml

COMMITTED = ROOT / "docs" / "grid.schema.json"
GRIDS = sorted((ROOT / "experiments").glob("*.yaml"))


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return json.loads(COMMITTED.read_text())


@pytest.fixture(scope="module")
def validator(schema: dict[str, Any]) -> Draft7Validator:
    Draft7Validator.check_schema(schema)
    return Draft7Validator(schema)


def refused(validator: Draft7Validator, tree: Any) -> list[str]:
    return [error.message[:200] for error in validator.iter_errors(tree)]


def test_the_committed_schema_is_up_to_date(cli: Cli) -> None:
    """Otherwise: `ablate schema --out docs/grid.schema.json`."""
    made = cli("schema")  # in a process of its own: other tests add components
    assert made.returncode == 0, made.stderr
    assert made.stdout == COMMITTED.read_text()


def test_a_schema_with_a_plugin_knows_its_components(cli: Cli, tmp_path: Path, validator: Draft7Validator) -> None:
    plugin = ROOT / "docs" / "examples" / "my_variants.py"
    assert cli("schema", "--plugin", plugin, "--out", tmp_path / "s.json").returncode == 0
    tree = {"base": {"arch": {"sublayers": {"s": "average"}}}}
    assert refused(validator, tree)
    assert not refused(Draft7Validator(json.loads((tmp_path / "s.json").read_text())), tree)


@pytest.mark.parametrize("file", GRIDS, ids=lambda file: file.stem)
def test_grids_that_are_shipped_are_accepted(file: Path, validator: Draft7Validator) -> None:
    assert refused(validator, read_yaml(file).value) == []


def test_every_preset_variant_and_ladder_is_accepted(validator: Draft7Validator) -> None:
    for overlay in overlays().values():
        tree = {"variants": {"x": dict(overlay.settings), "y": overlay.name}, "base": dict(overlay.settings)}
        assert refused(validator, tree) == [], overlay.name
    for name, rungs in ladders().items():
        assert refused(validator, {"sizes": name}) == []
        for rung in rungs.values():
            assert refused(validator, {"sizes": {"a": dict(rung)}}) == [], name


def test_every_component_with_all_its_options_is_accepted(validator: Draft7Validator) -> None:
    slots = {"mixer": "sublayers.s", "channel": "sublayers.f"}
    for entry in registry.catalogue():
        if entry.code:
            continue  # a plugin of another test
        section = {"task": "data", "tokenizer": "data", "optimizer": "train", "schedule": "train"}
        path = f"{section.get(entry.slot, 'arch')}.{slots.get(entry.slot, entry.slot)}"
        whole = {"name": entry.name, **entry.defaults}
        options = {f"{path}.{name}": value for name, value in entry.defaults.items()}
        tree = {"variants": {"a": {path: entry.name}, "b": {path: whole}, "c": options}, "axes": {path: [whole]}}
        assert refused(validator, tree) == [], path


def test_a_trial_with_all_its_settings_is_accepted(validator: Draft7Validator) -> None:
    tree = {name: part for name, part in to_tree(TrialSpec()).items() if name in SECTIONS}
    del tree["data"]["content"], tree["data"]["vocabulary"]  # filled in, never written
    tree["resources"] |= {"memory": "8 GB", "hours": 0.5, "parallel": {"data": 2}}
    assert refused(validator, {"base": tree}) == []


WHOLE = """\
study: whole
base: {preset: gpt2, resources.custom: {tpu: 1}}
variants: [baseline, rope, rmsnorm+swiglu]
sizes: {arch.d_model: [32, 64], arch.d_head: [16, null]}
budgets: {flops: [1e12, 2_000_000]}
match: both
tolerance: 0.02
seeds: [3, 4]
stages: {pretrain: {}, next: {from: pretrain, seeds: 2, axes: {train.lr: [1e-4, 1e-3]}, data.task: classify}}
rungs: {at: [0.3, 0.6], keep: 0.5}
predict: {flops: 1e18, within: 0.02, form: power}
tune: {train.lr: {low: 1e-3, high: 1e-2, points: 5}, train.optimizer.beta2: [0.9, 0.95, 0.99], seeds: 2}
design: {factors: {a: rope, b: {arch.norm: rmsnorm}}, kind: factorial}
hypothesis: {claim: it helps, variant: rope, expect: better, smallest: 0.01}
published: narang_table1
race: {first: 3, most: 12, bounds: pocock}
smallest: {loss: 0.01}
promote: {wanted: better, sure: 0.9}
profiles: {one_gpu: {seeds: 5, train.lr: 1e-3, budgets.tokens: 1_000, arch.position: rope}}
plugins: [mine.py]
axes: {train.lr: 1e-3, train.schedule: [cosine, {name: wsd, warmup: 0.1}]}
"""


def test_every_key_is_accepted_and_described(schema: dict[str, Any], validator: Draft7Validator) -> None:
    tree = parse_yaml(WHOLE, Path("g.yaml")).value
    assert set(tree) == set(KEYS) == set(schema["properties"])
    assert refused(validator, tree) == []
    assert all(each["description"] for each in schema["properties"].values())
    words, told = (schema["definitions"]["position"]["anyOf"][0][key] for key in ("enum", "enumDescriptions"))
    assert "arXiv:2104.09864" in told[words.index("rope")]


MISTAKES = {
    "a key": ("seeds: 2", "sedes: 2"),
    "a position": ("position: learned", "position: ropee"),
    "a variant": ("rope: rope", "rope: ropee"),
    "a combination": ("rope: rope", "rope: rope+swigly"),
    "a field of the training": ("lr: 3e-3", "learning_rate: 3e-3"),
    "a dotted path": ("rope: rope", "rope: {train.lrr: 1e-3}"),
    "an option": ("rope: rope", "rope: {arch.position: {name: rope, bas: 10}}"),
    "an option of another component": ("rope: rope", "rope: {arch.position: {name: alibi, base: 10}}"),
    "a number as text": ("d_model: 16", "d_model: wide"),
    "a part of a layer": ("depth: 1", "depth: 1.5"),
    "a value of an option": ("rope: rope", "rope: {arch.sublayers.f: {name: ffn, activation: rely}}"),
    "a boolean": ("depth: 1", "depth: 1, bias: maybe"),
    "no seeds": ("seeds: 2", "seeds: 0"),
    "a preset": ("base:\n", "base:\n  preset: gpt-two\n"),
    "what is matched": ("seeds: 2", "seeds: 2\nmatch: parms"),
    "a budget": ("seeds: 2", "seeds: 2\nbudgets: {token: 1000}"),
    "two budgets": ("seeds: 2", "seeds: 2\nbudgets: {tokens: 1000, flops: 1e9}"),
    "a ladder": ("seeds: 2", "seeds: 2\nsizes: lapto"),
    "a section in capitals": ("  arch:", "  Arch:"),
    "a race": ("seeds: 2", "seeds: 2\nrace: {frist: 2}"),
    "a kind of design": ("seeds: 2", "seeds: 2\ndesign: {factors: {a: rope, b: swiglu}, kind: full}"),
    "an axis": ("seeds: 2", "seeds: 2\naxes: {train.precision: [fp16]}"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_refused_as_the_harness_refuses_them(
    name: str, validator: Draft7Validator, write: Any, token_cache: Path
) -> None:
    assert refused(validator, parse_yaml(TINY, Path("g.yaml")).value) == []
    right, wrong = MISTAKES[name]
    assert TINY.count(right) == 1
    file = write(TINY.replace(right, wrong))
    assert refused(validator, read_yaml(file).value)
    with pytest.raises(UserError):
        make_plan(load_grid(file), token_cache)


def test_the_line_for_editors_is_no_part_of_the_question(write: Any) -> None:
    assert load_grid(write(f"{MODELINE} $schema=s.json\n# Question: why?\n{TINY}")).question == "Question: why?"
