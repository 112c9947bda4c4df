"""Training-step time of every mixer, channel, norm, residual and position, relative to the defaults, at one size.

One layer pattern `sf` with the component in its slot; the sides run in turn, one thread, CPU time.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch

from ablate.build import build_model
from ablate.cost import count
from ablate.errors import UserError
from ablate.registry import Entry, catalogue
from ablate.spec import ArchSpec, Component, parse, to_tree
from ablate.train.optim import decay_groups
from benchmarks.measure import interleaved, ratio

D, HEADS, DEPTH, T, ROWS, VOCAB = 128, 4, 2, 256, 4, 256
DEFAULTS = {"mixer": "attention", "channel": "ffn", "norm": "layernorm", "residual": "pre", "position": "learned"}
ROUNDS, TOGETHER = 7, 6  # sides that are measured in turn, besides the default


def arch_with(entry: Entry, base: ArchSpec) -> ArchSpec:
    """The default architecture with the component in its slot."""
    if entry.slot not in ("mixer", "channel"):
        changed: Any = {entry.slot: Component(entry.name)}
        return replace(base, **changed)
    letter = "c" if entry.form == "pair" else "s" if entry.slot == "mixer" else "f"
    parts = {**{key: to_tree(part) for key, part in base.sublayers}, letter: entry.name}
    return parse(ArchSpec, {**to_tree(base), "sublayers": parts, "encoder": entry.form == "pair",
                            "encoder_order": None, "encoder_depth": None})  # fmt: skip


def step_of(arch: ArchSpec, causal: bool) -> Any:
    """A training step of the model on random tokens."""
    model = build_model(arch, VOCAB, T, causal=causal).train()
    optimizer = torch.optim.AdamW(decay_groups(model, 0.1), lr=1e-3, fused=True)
    inputs = tuple(torch.randint(0, VOCAB, each.shape) for each in model.example(ROWS, T))

    def step() -> None:
        loss, _, aux = model.objective(*inputs, label_smoothing=0.0, z_loss=0.0)
        optimizer.zero_grad(set_to_none=True)
        (loss.mean() + sum(aux.values())).backward()
        optimizer.step()

    return step


def table() -> list[list[str]]:
    torch.set_num_threads(1)
    rows = [["slot", "component", "step / default's", "FLOPs / default's, executed", "algorithmic"]]
    base = ArchSpec(d_model=D, n_heads=HEADS, depth=DEPTH)
    for slot, default in DEFAULTS.items():
        entries = [entry for entry in catalogue(slot) if entry.name != default]
        for start in range(0, len(entries), TOGETHER):
            rows += _group(slot, default, entries[start : start + TOGETHER], base)
    return rows


def _group(slot: str, default: str, entries: list[Entry], base: ArchSpec) -> list[list[str]]:
    pair = replace(base, encoder=True)  # what cross-attention and its kin are compared with
    sides = {default: step_of(base, True)}
    archs: dict[str, ArchSpec] = {}
    rows = []
    for entry in entries:
        try:
            arch = arch_with(entry, base)
            sides[entry.name] = step_of(arch, entry.causal)
            archs[entry.name] = arch
        except UserError as error:
            rows.append([slot, entry.name, f"not in this place: {error}", "", ""])
    if any(entry.form == "pair" for entry in entries):
        sides["cross"] = step_of(pair, True)
    seconds = interleaved(sides, ROUNDS, 1, time.process_time)
    for entry in entries:
        if entry.name in archs:
            reference = "cross" if entry.form == "pair" else default
            cost = count(archs[entry.name], VOCAB, T, entry.causal)
            plain = count(pair if entry.form == "pair" else base, VOCAB, T, entry.causal)
            rows.append(
                [
                    slot,
                    entry.name + ("" if entry.causal else " (sees both sides)"),
                    ratio(seconds[entry.name], seconds[reference]),
                    f"{cost.flops_forward / plain.flops_forward:.2f}",
                    f"{cost.flops_algorithmic / plain.flops_algorithmic:.2f}",
                ]
            )
    return sorted(rows, key=lambda row: row[1])
