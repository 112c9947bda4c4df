"""Every check on every component, and every named variant, preset and ladder: a new one is tested by existing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from ablate.build import build_model
from ablate.check import Subject, checks_for, subjects
from ablate.overlays import Overlay, ladders, overlays
from ablate.registry import KINDS, SLOTS, catalogue
from ablate.show import describe
from ablate.spec import ArchSpec, DataSpec, TrainSpec, parse, to_tree

CASES = [(subject, check) for subject in subjects() for check in checks_for(subject)]
SMALL = ["d_model=16", "n_heads=2", "d_head=8", "d_ff=24", "depth=2", "seq_len=8", "vocab=11"]
VARIANTS = [overlay for overlay in overlays().values() if not overlay.preset]
PRESETS = [overlay for overlay in overlays().values() if overlay.preset]


@pytest.mark.parametrize(
    ("subject", "check"),
    [
        pytest.param(subject, check, id=f"{subject.name}-{check.__name__.removeprefix('check_')}")
        for subject, check in CASES
    ],
)
def test_contract(subject: Subject, check: Callable[[Subject], None]) -> None:
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


def tree_of(settings: Mapping[str, Any], section: str) -> dict[str, Any]:
    """The fields of one section that dotted paths set."""
    return {path.split(".")[1]: value for path, value in settings.items() if path.split(".")[0] == section}


@pytest.mark.parametrize("overlay", [*VARIANTS, *PRESETS], ids=lambda overlay: overlay.name)
def test_overlay(overlay: Overlay) -> None:
    """It is what it says, its parts all have an effect (`describe` probes), and a model of it computes."""
    described = describe(overlay.name, SMALL)
    assert described["paper"] == overlay.paper and overlay.paper
    assert (overlay.at is not None) == overlay.preset
    for section, cls in (("arch", ArchSpec), ("data", DataSpec), ("train", TrainSpec)):
        settings = tree_of(overlay.settings, section)
        parsed = to_tree(parse(cls, settings))
        if section == "arch":
            sized = {"d_model", "n_heads", "d_head", "d_ff", "depth"}
            for key in settings.keys() - sized - {"sublayers"}:
                assert described["arch"][key] == parsed[key]
            for letter in settings.get("sublayers", {}):
                assert described["arch"]["sublayers"][letter] == parsed["sublayers"][letter]
    assert {path.split(".")[0] for path in overlay.settings} <= {"arch", "train"}
    arch = parse(ArchSpec, described["arch"])
    model = build_model(arch, 11, 8).eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == described["params_total"]
    with torch.no_grad():
        log_probs = model.log_probs(torch.arange(8)[None])
    assert log_probs.shape == (1, 8, 11) and log_probs.isfinite().all()


@pytest.mark.parametrize("preset", PRESETS, ids=lambda overlay: overlay.name)
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda overlay: overlay.name)
def test_every_variant_of_every_preset_builds(preset: Overlay, variant: Overlay) -> None:
    """A variant changes in a preset what it sets, and nothing else."""
    tree = tree_of({**preset.settings, **variant.settings}, "arch")
    tree["sublayers"] = {**preset.settings["arch.sublayers"]}
    for path, value in variant.settings.items():
        if path.startswith("arch.sublayers."):
            tree["sublayers"][path.removeprefix("arch.sublayers.")] = value
    expected = parse(ArchSpec, tree)
    small = replace(expected, d_model=16, n_heads=2, d_head=8, d_ff=24, depth=2)
    position_is_used = expected.position.name == "learned" or _has_attention(expected) or not _in_attention(expected)
    if not position_is_used:
        return  # refused by the probe: see test_bad_components
    assert describe(f"{preset.name}+{variant.name}", SMALL)["arch"] == to_tree(small)


def _has_attention(arch: ArchSpec) -> bool:
    return "attention" in {part.name for _, part in arch.sublayers}


def _in_attention(arch: ArchSpec) -> bool:
    return arch.position.name in ("rope", "t5", "alibi")


def test_ladders() -> None:
    """Every rung is an architecture, and grows."""
    assert ladders()
    for rungs in ladders().values():
        sizes = [describe("baseline", [f"{path}={value}" for path, value in rung.items()]) for rung in rungs.values()]
        params = [size["params_non_embedding"] for size in sizes]
        assert len(params) > 1 and params == sorted(set(params))
