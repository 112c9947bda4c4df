"""What results are filed under: a component's meaning, by golden costs and defaults, and the ids of trials.

`python tests/test_identity.py` writes the golden files anew.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from own_plugins import own_plugins

from ablate.cost import count
from ablate.registry import add_plugin, catalogue, find
from ablate.spec import (
    FORMAT,
    ArchSpec,
    Component,
    DataSpec,
    Resources,
    TrainSpec,
    TrialSpec,
    canonical,
    canonical_component,
    parse,
    to_tree,
)
from ablate.subject import MODELS, VOCAB, Subject, T

GOLDEN = Path(__file__).parent / "golden"
COMPONENTS, FIELDS, TRIALS = (GOLDEN / f"{name}.json" for name in ("components", "fields", "trial_ids"))
REGENERATE = "python tests/test_identity.py"
PLACES = {"corpus", "path", "hub", "hub_config", "column"}  # `content` stands for them

GELU_TANH = {"name": "ffn", "activation": "gelu_tanh"}
DILATED = {"name": "convolution", "dilation": 2}
SPECS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "another seed": {"seed": 1},
    "gpt2": {
        "arch": {"d_model": 768, "n_heads": 12, "depth": 12, "init": "gpt2", "sublayers": {"f": GELU_TANH}},
        "data": {"seq_len": 1024, "tokenizer": {"name": "bpe", "vocab": 50257}},
        "train": {"tokens": 10_000_000, "batch_tokens": 524_288, "lr": 6e-4},
    },
    "llama": {
        "arch": {
            "bias": False,
            "position": {"name": "rope", "base": 500_000},
            "norm": {"name": "rmsnorm", "eps": 1e-5},
            "sublayers": {"f": {"name": "glu", "activation": "swish", "hidden": "full"}},
            "head": {"name": "softmax", "tied": False},
        },
        "train": {"schedule": {"name": "wsd", "shape": "linear"}},
    },
    "sandwich order, shared": {"arch": {"order": "ssfsff", "depth": 1, "sharing": {"name": "all", "norms": False}}},
    "hybrid": {"arch": {"order": "scf", "sublayers": {"c": DILATED}, "position": "none"}},
    "every number of the training": {
        "data": {"seq_len": 64, "valid": 0.1, "test": 0.02},
        "train": {
            "tokens": 200_000,
            "batch_tokens": 2048,
            "accumulate": 2,
            "optimizer": {"name": "adam", "beta2": 0.98},
            "weight_decay": 0.0,
            "clip": None,
            "dropout": 0.1,
            "label_smoothing": 0.1,
            "z_loss": 1e-4,
            "eval_points": 5,
        },
    },
}


def spec(tree: dict[str, Any]) -> TrialSpec:
    """A trial whose data and precision are resolved, which is when it gets an id."""
    made = parse(TrialSpec, tree)
    data = replace(made.data, content=made.data.content or "0123456789abcdef")
    return replace(made, data=data, train=replace(made.train, precision="fp32"))


def component_facts() -> dict[str, dict[str, Any]]:
    """What each component of the package is, and what it costs in the small architecture of the checks."""
    facts = {}
    for entry in catalogue():
        fact: dict[str, Any] = {"version": entry.version, "causal": entry.causal, "form": entry.form}
        fact["defaults"] = entry.defaults
        if entry.slot in MODELS:
            subject = Subject(entry, Component(entry.name))
            cost = count(subject.arch, VOCAB, T, entry.causal, **subject.shape)
            fact |= {"params_total": cost.params_total, "flops_forward": cost.flops_forward}
        facts[f"{entry.slot}/{entry.name}"] = fact
    return facts


def field_facts() -> dict[str, Any]:
    """The format of specifications, and the defaults that ids leave out: of what is neither component nor place."""
    sections = {"arch": ArchSpec, "data": DataSpec, "train": TrainSpec}
    defaults = {
        f"{name}.{each.name}": each.default
        for name, cls in sections.items()
        for each in fields(cls)
        if not each.metadata.get("slot") and each.name not in {"sublayers", *PLACES}
    }
    return {"format": FORMAT, "defaults": defaults}


def trial_ids() -> dict[str, str]:
    return {name: spec(tree).trial_id for name, tree in SPECS.items()}


FOUND = component_facts()  # when the tests are collected: before any plugin is there
EXPECTED: dict[str, dict[str, Any]] = json.loads(COMPONENTS.read_text()) if COMPONENTS.exists() else {}


@pytest.mark.parametrize("name", sorted(FOUND.keys() | EXPECTED.keys()))
def test_component_is_what_it_was(name: str) -> None:
    found, expected = FOUND.get(name), EXPECTED.get(name)
    if found is None:
        pytest.fail(f"{name} is gone: results that name it cannot be made again; if that is meant, `{REGENERATE}`")
    if expected is None:
        pytest.fail(f"{name} is new: enter it with `{REGENERATE}`")
    changed = [key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)]
    if changed == ["defaults"] and expected["defaults"].items() <= found["defaults"].items():
        pytest.fail(f"{name} has a new option: if its default leaves the meaning as it was, `{REGENERATE}`")
    if changed and found["version"] == expected["version"]:
        what = "; ".join(f"{key} was {expected.get(key)}, is {found.get(key)}" for key in sorted(changed))
        pytest.fail(
            f"{name}: {what}. Results of the old and the new meaning would be taken for each other: "
            f"raise `version` in its @register, then `{REGENERATE}`"
        )
    assert not changed, f"{name} has version {found['version']}: `{REGENERATE}`"


def test_fields_are_what_they_were() -> None:
    """An id that lacks a field stands for its default: a default that changes would change what old ids mean."""
    found, expected = json.loads(json.dumps(field_facts())), json.loads(FIELDS.read_text())
    now, before = found["defaults"], expected["defaults"]
    changed = [name for name in before if name not in now or now[name] != before[name]]
    if found["format"] == expected["format"]:
        assert not changed, f"{', '.join(changed)}: raise FORMAT in ablate/spec.py, then `{REGENERATE}`"
    assert found == expected, f"a field is new, or FORMAT was raised: `{REGENERATE}`"


@pytest.mark.parametrize("name", SPECS)
def test_trial_id_is_what_it_was(name: str) -> None:
    """An id that changes makes published results unreachable, and everybody's trials run again."""
    expected = json.loads(TRIALS.read_text())
    assert expected.keys() == SPECS.keys()
    assert spec(SPECS[name]).trial_id == expected[name], (
        f"the id of {name!r} changed: undo what changed it, or where a version was raised, `{REGENERATE}`"
    )


def test_ids_are_distinct() -> None:
    assert len(set(trial_ids().values())) == len(SPECS)
    assert all(len(each) == 12 and int(each, 16) >= 0 for each in trial_ids().values())


# --- what an id depends on


def changed(tree: dict[str, Any]) -> bool:
    return spec(tree).trial_id != spec({}).trial_id


@pytest.mark.parametrize("section", ["arch", "data", "train"])
def test_defaults_do_not_count(section: str) -> None:
    """Written out or left out, whole or option by option."""
    default = to_tree(spec({}))[section]
    assert not changed({section: {**default, "precision": "fp32"} if section == "train" else default})
    for key, value in default.items():
        assert not changed({section: {key: value}}), key
        if isinstance(value, dict) and "name" in value:
            slot = {"task": "task", "tokenizer": "tokenizer"}.get(key, key)
            assert not changed({section: {key: {**value, **find(slot, value["name"]).defaults}}}), key


OTHERS: dict[str, dict[str, Any]] = {
    "arch": {
        "d_model": 64,
        "n_heads": 2,
        "d_head": 8,
        "d_ff": 99,
        "depth": 3,
        "order": "fs",
        "sublayers": {"s": "lstm"},
        "bias": False,
        "embedding": {"name": "table", "scaled": True},
        "position": "rope",
        "norm": "rmsnorm",
        "residual": "post",
        "sharing": "all",
        "init": "gpt2",
        "head": {"name": "softmax", "tied": False},
        "stack": "universal",
        "encoder": True,
        "swap": {"by": "glu", "every": 2},
        "model": "nnlm",
    },
    "data": {
        "tokenizer": "characters",
        "seq_len": 64,
        "valid": 0.1,
        "test": 0.1,
        "content": "other",
        "task": "mlm",
        "vocabulary": "0123456789ab",
        "vocab_multiple": 64,
    },
    "train": {
        "tokens": 2_000_000,
        "batch_tokens": 8192,
        "accumulate": 2,
        "optimizer": "sgd",
        "lr": 2e-3,
        "schedule": "constant",
        "weight_decay": 0.0,
        "clip": None,
        "dropout": 0.1,
        "label_smoothing": 0.1,
        "z_loss": 1e-4,
        "epochs": 0.5,
        "ema": 0.99,
        "batch_ramp": 0.5,
        "seq_warmup": 0.5,
        "layer_decay": 0.9,
        "diagnostics": ["gradients"],
        "eval_points": 3,
        "eval_tokens": 4096,
        "final_eval_tokens": 4096,
        "diverge_above": 2.0,
    },
}
OF_A_PARENT = {"reinit_layers": 1, "decay_to": "start", "mixout": 0.1}
OF_A_PACE = {"ramp_parts": 4, "ramp_shape": "doubling", "seq_start": 16}
OF_AN_ENCODER = {"encoder_depth": 2, "encoder_order": "fs", "share_embeddings": False}


def test_every_setting_counts() -> None:
    """Each field of an architecture, of data and of training has its share in the id, and so has the parent."""
    inside = {*PLACES, "precision", *OF_AN_ENCODER, *OF_A_PARENT, *OF_A_PACE}
    for section, cls in (("arch", ArchSpec), ("data", DataSpec), ("train", TrainSpec)):
        names = {each.name for each in fields(cls)} - inside
        assert OTHERS[section].keys() == names
        for key, value in OTHERS[section].items():
            assert changed({section: {key: value}}), key
    ids = [spec({section: {key: value}}).trial_id for section in OTHERS for key, value in OTHERS[section].items()]
    ids += [spec({"arch": {"encoder": True, key: value}}).trial_id for key, value in OF_AN_ENCODER.items()]
    child = {"parent": "0123456789ab"}
    ids += [spec({**child, "train": {key: value}}).trial_id for key, value in OF_A_PARENT.items()]
    paced = {"batch_ramp": 0.3, "seq_warmup": 0.3}
    ids += [spec({"train": {**paced, key: value}}).trial_id for key, value in OF_A_PACE.items()]
    ids += [spec(each).trial_id for each in (child, {"parent": "ba9876543210"}, {"train": paced}, {})]
    assert len(set(ids)) == len(ids)
    assert replace(spec({}), train=replace(spec({}).train, precision="bf16")).trial_id != spec({}).trial_id


def test_resources_and_places_do_not_count() -> None:
    assert not changed({"resources": {"cpus": 7, "gpus": 0.5, "memory": "8 GB", "custom": {"tpu": 1}}})
    assert not changed({"resources": {"gpus": 4, "parallel": {"data": 2, "tensor": 2}}})
    assert {each.name for each in fields(Resources)} == {"cpus", "gpus", "memory", "custom", "hours", "parallel"}
    for data in (
        {"corpus": "shakespeare"},
        {"path": "somewhere/else.txt"},
        {"path": {"train": "a", "valid": "b", "test": "c"}},
        {"hub": "owner/name", "hub_config": "one", "column": "content"},
    ):
        assert not changed({"data": data})


def test_the_path_of_a_tokenizer_does_not_count() -> None:
    one, other = (Component("file", (("path", path),)) for path in ("a.json", "b.json"))
    assert canonical_component("tokenizer", one) == canonical_component("tokenizer", other)


def test_seeds() -> None:
    """Replicates have ids of their own and one group."""
    replicates = [spec({"seed": seed}) for seed in range(3)]
    assert len({each.trial_id for each in replicates}) == 3
    assert len({each.group_id for each in replicates}) == 1
    assert replicates[0].group_id not in {each.trial_id for each in replicates}
    assert spec({"arch": {"depth": 3}}).group_id != replicates[0].group_id


# --- plugins: their code stands for a version

PLUGIN = '''\
from ablate import Norm, register


@register("norm", "halving", paper="Doe 2020")
class Halving(Norm):
    """x / 2."""

    def forward(self, x):
        return x / 2
'''


def test_the_code_of_a_plugin_counts(write: Callable[..., Path]) -> None:
    """Not the place where it lies, nor what stands around the code."""
    ids = []
    for file, source in (
        ("a.py", PLUGIN),
        ("elsewhere/b.py", PLUGIN.replace("x / 2.", "Half of it.")),
        ("c.py", PLUGIN.replace("return x / 2", "return x / 3")),
    ):
        with own_plugins():
            add_plugin(write(source, file))
            ids.append(spec({"arch": {"norm": "halving"}}).trial_id)
    assert ids[0] == ids[1] != ids[2]


def test_a_version_is_part_of_the_id() -> None:
    tree = canonical(spec({}))
    assert tree["arch"]["norm"] == {"name": "layernorm", "version": find("norm", "layernorm").version}
    assert tree["arch"]["sublayers"]["s"] == {"name": "attention", "version": find("mixer", "attention").version}


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for file, tree in ((COMPONENTS, FOUND), (FIELDS, field_facts()), (TRIALS, trial_ids())):
        file.write_text(json.dumps(tree, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"wrote {file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file}", file=sys.stderr)
