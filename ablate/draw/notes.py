"""What stands below a drawing: sizes, and what differs in words."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from ablate.arch import ArchSpec, Component, Swap
from ablate.draw.parts import joined, words
from ablate.spec import to_tree

NOTHING = "none"


def notes(arch: ArchSpec, baseline: ArchSpec) -> tuple[str, ...]:
    """The sizes of an architecture; then a line for each of its differences from a baseline."""
    return (sizes(arch), *(f"{what}: {was} → {now}" for what, was, now in changes(baseline, arch)))


def sizes(arch: ArchSpec) -> str:
    """`d_model 768 · 12 heads of 64 · d_ff 3,072 · order sf, 12 times`."""
    if arch.model is not None:
        return f"d_model {arch.d_model:,}"
    order = arch.order if len(arch.order) <= 40 else f"{arch.order[:40]}…"
    encoder = f"encoder {arch.encoder_order}, {arch.encoder_depth} times" if arch.encoder else ""
    decoder = f"{arch.decoder_order if arch.encoder else order}, {arch.depth} times"
    heads = f"{arch.n_heads} head{'s' * (arch.n_heads > 1)} of {arch.d_head}"
    depth = f"{'decoder' if arch.encoder else 'order'} {decoder}"
    return joined((f"d_model {arch.d_model:,}", heads, f"d_ff {arch.d_ff:,}", encoder, depth))


def changes(baseline: ArchSpec, arch: ArchSpec) -> list[tuple[str, str, str]]:
    """Each setting in which two architectures differ, what it was and what it is, in words."""
    found = []
    whole = (baseline.model is None) != (arch.model is None)
    for field in fields(ArchSpec):
        was, now = getattr(baseline, field.name), getattr(arch, field.name)
        if was == now or (whole and field.name != "model"):
            continue
        if field.name == "sublayers":
            before, after = dict(was), dict(now)
            for letter in sorted(before.keys() | after.keys()):
                if before.get(letter) != after.get(letter):
                    found.append((f"sublayer {letter}", _said(before.get(letter)), _said(after.get(letter))))
            continue
        found.append((field.name, _said(was), _said(now)))
    return found


def _said(value: Any) -> str:
    if value is None:
        return NOTHING
    if isinstance(value, Component):
        return words(to_tree(value))
    if isinstance(value, Swap):
        where = f"every {value.every} layers" if value.every else f"layer {value.layer}"
        return f"{words(to_tree(value.by))} in place of {value.sublayer}, {where}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
