"""Every check on every component, and every named variant, preset and ladder: a new one is tested by existing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from ablate.build import build_model, form_of, refuse_misfits
from ablate.check import Subject, checks_for, subjects
from ablate.errors import SpecError, UserError
from ablate.overlays import Overlay, ladders, overlays
from ablate.registry import KINDS, SLOTS, catalogue, find
from ablate.show import describe, figure_of, shown
from ablate.spec import ArchSpec, Component, TrainSpec, parse, to_tree

CASES = [(subject, check) for subject in subjects() for check in checks_for(subject)]
LENGTH = 8
SIZES = {"arch.d_model": 16, "arch.n_heads": 2, "arch.d_head": 8, "arch.d_ff": 24, "arch.depth": 2}


@pytest.mark.parametrize(
    ("subject", "check"),
    [
        pytest.param(subject, check, id=f"{subject.name}-{check.__name__.removeprefix('check_')}")
        for subject, check in CASES
    ],
)
def test_contract(subject: Subject, check: Callable[[Subject], None]) -> None:
    check(subject)


# settings of numbers, which the registry does not list, of mixers whose masks or shapes hang on them
NUMBERS: list[tuple[str, dict[str, Any]]] = [
    ("additive", {"d_value": 3}),
    ("concat", {"dropout": 0.0}),
    ("gaussian", {"learned": True, "d_value": 7}),
    ("bilinear", {"d_value": 7}),
    ("grouped_query", {"kv_heads": 1}),
    ("grouped_query", {"kv_heads": 4, "d_value": 3}),
    ("collaborative", {"shared": 3}),
    ("sliding_window", {"window": 2}),
    ("sliding_window", {"window": 30}),
    ("longformer", {"window": 4, "global_tokens": 3}),
    ("longformer", {"global_tokens": 7, "dilated_heads": 2}),
    ("longformer", {"global_tokens": 0, "dilated_heads": 4, "dilation": 3}),
    ("longformer", {"global_tokens": 11}),
    ("bigbird", {"block": 1, "random_blocks": 1}),
    ("bigbird", {"block": 3, "random_blocks": 1}),
    ("bigbird", {"block": 2, "random_blocks": 0, "global_blocks": 5}),
    ("linformer", {"rank": 1}),
    ("linformer", {"rank": 20, "sharing": "none", "d_value": 3}),
    ("linformer_block_causal", {"block": 5, "rank": 7, "sharing": "none"}),
    ("linformer_block_causal", {"block": 1, "rank": 1, "d_value": 7}),
]
MIXERS = [Subject(find("mixer", name), Component(name, tuple(options.items()))) for name, options in NUMBERS]


@pytest.mark.parametrize(
    ("subject", "check"),
    [
        pytest.param(subject, check, id=f"{subject.name}-{check.__name__.removeprefix('check_')}")
        for subject in MIXERS
        for check in checks_for(subject)
    ],
)
def test_contract_with_numbers(subject: Subject, check: Callable[[Subject], None]) -> None:
    check(subject)


def test_every_component_is_checked() -> None:
    """Eleven checks and more in the ten slots, with every value of every literal or boolean option."""
    checked = {subject.entry for subject, _ in CASES}
    assert checked == set(catalogue()) and {entry.slot for entry in checked} == set(KINDS)
    names = [subject.name for subject in subjects()]
    assert len(names) == len(set(names))
    for subject in subjects():
        assert len(checks_for(subject)) >= (11 if subject.entry.slot in SLOTS else 1)
    assert {"mixer attention", "mixer attention(score=dot)", "head softmax(tied=False)"} <= set(names)
    assert "head softmax(tied=True)" not in names  # the default, once


def arch_of(*settings: Mapping[str, Any]) -> ArchSpec:
    """The architecture of dotted paths laid over each other: fields, sublayers' letters, options of components."""
    tree: dict[str, Any] = {}
    for path, value in (item for each in settings for item in each.items()):
        section, field, *inner = path.split(".")
        if section != "arch":
            continue
        if not inner:
            tree[field] = {**tree.get(field, {}), **value} if field == "sublayers" else value
        elif field == "sublayers":
            tree[field] = {**tree.get(field, {}), inner[0]: value}
        else:
            component = tree.get(field, getattr(ArchSpec(), field).name)
            tree[field] = {**({"name": component} if isinstance(component, str) else component), inner[0]: value}
    return parse(ArchSpec, tree)


def small(overlay: Overlay) -> dict[str, Any]:
    """Sizes for a small model of an overlay: what it sets itself stays, and it gets an encoder if it needs one."""
    told = overlay.settings
    sizes = {path: size for path, size in SIZES.items() if path == "arch.d_model" or path not in told}
    swap, stack, order = (told.get(f"arch.{name}", {}) for name in ("swap", "stack", "order"))
    if isinstance(swap, dict) and swap.get("every"):
        sizes["arch.depth"] = swap["every"]
    if isinstance(stack, dict) and "blocks" in stack:
        sizes["arch.depth"] = stack["blocks"]
    if isinstance(order, str) and order.startswith("sandwich"):
        sizes["arch.depth"] = int(order[9:-1]) + 1
    if (isinstance(swap, dict) and swap.get("tower")) or needs_encoder(overlay):
        sizes["arch.encoder"] = True
    return sizes


def needs_encoder(overlay: Overlay) -> bool:
    """Whether a part is for an encoder-decoder, or for its encoder alone."""
    try:
        refuse_misfits(arch_of({"arch.n_heads": 1}, overlay.settings), causal=True)
    except SpecError as error:
        return "needs an encoder" in str(error)
    except UserError as error:
        return not overlay.preset and ("encoder-decoder" in str(error) or "sees the future" in str(error))
    return False


def settings_of(sizes: Mapping[str, Any]) -> list[str]:
    texts = {True: "true", False: "false"}
    return [f"{path}={texts[size] if isinstance(size, bool) else size}" for path, size in sizes.items()]


READING = [each for each in overlays().values() if not (each.at and "image" in each.at)]  # tokens, not images


@pytest.mark.parametrize("overlay", READING, ids=lambda overlay: overlay.name)
def test_overlay(overlay: Overlay) -> None:
    """It parses, it is what it says, its parts all have an effect (`describe` probes), and a model of it computes."""
    sizes = small(overlay)
    told = [*settings_of(sizes), f"seq_len={LENGTH}", "vocab=11"]
    described = describe(overlay.name, told)
    arch = arch_of(overlay.settings, sizes)
    assert described["arch"] == to_tree(arch)
    assert described["paper"] == overlay.paper and overlay.paper
    assert (overlay.at is not None) == overlay.preset
    train = {path.split(".")[1]: value for path, value in overlay.settings.items() if path.startswith("train.")}
    assert parse(TrainSpec, train)
    assert {path.split(".")[0] for path in overlay.settings} <= {"arch", "train"}
    figure = figure_of(shown(overlay.name, told))
    assert figure.marked == any(not each.startswith(("data.", "train.")) for each in described["differs_in"])
    causal = form_of(arch) in ("tokens", "pair")
    model = build_model(arch, 11, LENGTH, causal=causal, classes=10).eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == described["params_total"]
    tokens = torch.arange(LENGTH)[None] % 11
    with torch.no_grad():
        log_probs = model.log_probs(*[tokens] * (len(model.example(1, LENGTH)) - 1))
    assert log_probs.shape == ((1, LENGTH, 11) if causal else (1, 10)) and log_probs.isfinite().all()


@pytest.mark.parametrize(
    "variant", [each for each in overlays().values() if not each.preset], ids=lambda each: each.name
)
def test_variants_of_a_preset(variant: Overlay) -> None:
    """A variant changes in a preset what it sets, and nothing else."""
    preset = overlays()["vaswani2017"]  # its position has an effect whatever the sublayers
    order = str(variant.settings.get("arch.order", ""))
    deep = {"arch.depth": int(order[9:-1]) + 1} if order.startswith("sandwich") else {}
    arch = arch_of(preset.settings, deep, variant.settings)
    before = to_tree(arch_of(preset.settings))
    assert arch.encoder
    for field, value in to_tree(arch).items():
        follows = {"encoder_depth": "depth", "encoder_order": "order", "d_ff": "d_model", "d_head": "d_model"}
        touched = {path.split(".")[1] for path in (*variant.settings, *deep) if path.startswith("arch")}
        if field not in touched and follows.get(field) not in touched and "order" not in touched:
            assert value == before[field] or field in ("sublayers", "d_head"), field


@pytest.mark.parametrize("preset", [each for each in overlays().values() if each.preset], ids=lambda each: each.name)
def test_a_preset_at_its_paper_s_size(preset: Overlay) -> None:
    described = describe(preset.name, [])
    assert described["arch"] == to_tree(arch_of(preset.settings))
    assert preset.at is not None
    assert (preset.at["vocab"], preset.at["seq_len"]) == (described["vocab"], described["seq_len"])
    assert described["differs_in"] == []


def test_ladders() -> None:
    """Every rung is an architecture, and grows."""
    assert ladders()
    for rungs in ladders().values():
        sizes = [describe("baseline", [f"{path}={value}" for path, value in rung.items()]) for rung in rungs.values()]
        params = [size["params_non_embedding"] for size in sizes]
        assert len(params) > 1 and params == sorted(set(params))
