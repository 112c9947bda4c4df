"""One named architecture: its slots, what it costs, how it differs from its baseline."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from torch import nn

from ablate.build import build_on_meta, form_of
from ablate.contracts import Norm, Position
from ablate.cost import count
from ablate.differences import differences
from ablate.draft import Draft, Origin
from ablate.draw.anatomy import Given, figure
from ablate.draw.notes import changes, notes, sizes
from ablate.draw.parts import Figure
from ablate.errors import UserError, unknown
from ablate.overlays import Overlay, compose
from ablate.probe import probe
from ablate.spec import ArchSpec, to_tree
from ablate.yamlfile import Document, parse_scalar

VOCAB = 256  # of a composition that starts from no preset: bytes


@dataclass(frozen=True)
class Shown:
    """What a name stands for: its architecture, the one that it is compared with, and what the data would tell it."""

    name: str
    paper: str
    arch: ArchSpec
    baseline: ArchSpec
    differs_in: tuple[str, ...]
    vocab: int
    seq_len: int
    causal: bool
    shape: Mapping[str, Any]


def shown(name: str, overrides: list[str]) -> Shown:
    """A preset, a variant or a composition at its paper's size, or at the sizes of `overrides`.

    It is compared with the preset that it starts from, else with the default architecture. Raises `UserError` for
    unknown names.
    """
    parts = compose(name)
    preset = parts[0] if parts and parts[0].preset else None
    vocab, settings = _settings(overrides, preset)
    baseline, variant = draft_of(name, parts[:1] if preset else [], settings), draft_of(name, parts, settings)
    arch: ArchSpec = variant.section("arch")
    return Shown(
        name=name,
        paper="; ".join(dict.fromkeys(part.paper for part in parts)),
        arch=arch,
        baseline=baseline.section("arch"),
        differs_in=differences(baseline.spec(), variant.spec()),
        vocab=vocab,
        seq_len=variant.section("data").seq_len,
        causal=form_of(arch) in ("tokens", "pair") and not (preset and preset.at and preset.at.get("encoder_only")),
        shape=_shape(arch, preset),
    )


def describe(name: str, overrides: list[str]) -> dict[str, Any]:
    """What `shown` finds, with what it costs. Raises `UserError` for an architecture in which something has no
    effect."""
    it = shown(name, overrides)
    arch, told = it.arch, (it.vocab, it.seq_len, it.causal)
    probe(arch, *told, **it.shape)
    cost = count(arch, *told, **it.shape)
    return {
        "name": name,
        "paper": it.paper,
        "params_total": cost.params_total,
        "params_non_embedding": cost.params_non_embedding,
        "params_active": cost.params_active,
        "params_by_slot": cost.params_by_slot,
        "params_matrices": matrices(build_on_meta(arch, *told, **it.shape)),
        "flops_per_token": cost.flops_forward,
        "flops_per_token_backward": cost.flops_backward,
        "flops_per_token_algorithmic": cost.flops_algorithmic,
        "flops_per_token_6n": cost.flops_6n,
        "cache_bytes": cost.cache_bytes,
        "state_bytes": cost.state_bytes,
        "vocab": it.vocab,
        "seq_len": it.seq_len,
        "arch": to_tree(arch),
        "differs_in": list(it.differs_in),
    }


def describe_both(name: str, other: str, overrides: list[str]) -> dict[str, Any]:
    """Two architectures, and the settings in which the second differs from the first: its name, and both values."""
    trees = [describe(each, overrides) for each in (name, other)]
    one, two = (shown(each, overrides).arch for each in (name, other))
    return {"shown": trees, "differs": [list(each) for each in changes(one, two)]}


def matrices(model: nn.Module) -> int:
    """Parameters of matrices alone: without norms, biases and other vectors, and without tables of positions.

    The number that formulas in papers give.
    """
    seen: dict[int, int] = {}
    left_out = {id(p) for each in model.modules() if isinstance(each, Position | Norm) for p in each.parameters()}
    for parameter in model.parameters():
        if parameter.ndim > 1 and id(parameter) not in left_out:
            seen[id(parameter)] = parameter.numel()
    return sum(seen.values())


def _shape(arch: ArchSpec, preset: Overlay | None) -> dict[str, Any]:
    """Classes and image, where the model has them: the paper's, else ten classes of small images."""
    at: Mapping[str, Any] = (preset.at if preset else None) or {}
    form = form_of(arch)
    shape: dict[str, Any] = {"classes": at.get("classes", 10)} if form in ("classify", "image", "denoise") else {}
    if form in ("image", "denoise"):
        shape["image"] = tuple(at.get("image", (1, 28, 28)))
    return shape


def figure_of(it: Shown, against: ArchSpec | None = None) -> Figure:
    """The drawing of what `shown` found, its differences from its baseline, or from another architecture, marked."""
    baseline = it.baseline if against is None else against
    given = Given(it.arch, it.vocab, it.seq_len, it.causal, it.shape, baseline)
    return figure(it.name, given, notes(it.arch, baseline))


def figures_of(name: str, other: str, overrides: list[str]) -> list[Figure]:
    """Two architectures, each with what differs from the other marked."""
    one, two = shown(name, overrides), shown(other, overrides)
    return [
        replace(figure_of(one, two.arch), notes=(sizes(one.arch),), against=two.name),
        replace(figure_of(two, one.arch), against=one.name),
    ]


def _settings(overrides: list[str], preset: Overlay | None) -> tuple[int, dict[str, Any]]:
    """Vocabulary and dotted settings: the paper's, then the user's. A bare name means a field of `arch`."""
    at: dict[str, Any] = dict(preset.at) if preset and preset.at else {"vocab": VOCAB}
    settings: dict[str, Any] = {}
    if "seq_len" in at:  # a batch is one sequence here: nothing is trained
        settings = {"data.seq_len": at["seq_len"], "train.batch_tokens": at["seq_len"]}
    vocab = at["vocab"]
    for override in overrides:
        path, sign, text = override.partition("=")
        if not sign:
            raise UserError(f"--set {override!r}: write PATH=VALUE, as --set d_model=256")
        value = parse_scalar(text)
        if path == "vocab":
            if type(value) is not int or value < 1:
                raise UserError(f"--set vocab: {value!r} must be a whole number from 1")
            vocab = value
        elif "." in path:
            settings[path] = value
        else:
            known = {"seq_len": "data.seq_len"} | {field: f"arch.{field}" for field in ArchSpec.__dataclass_fields__}
            if path not in known:
                raise UserError(f"--set {path}: {unknown('size', path, ['vocab', *known])}")
            settings[known[path]] = value
    return vocab, settings


def draft_of(name: str, parts: list[Overlay], settings: dict[str, Any]) -> Draft:
    """The settings of overlays laid over each other, then those given by path."""
    document = Document(Path(name), "", {}, {}, {(path,) for path in settings})
    origin = Origin(document, ())
    draft = Draft()
    for part in parts:
        draft.lay_overlay(part, origin)
    draft.lay(settings, origin)
    return draft


def print_description(tree: dict[str, Any], width: int) -> None:
    """For a person: costs, then the slots, those that differ marked. Lines of at most `width` characters."""

    def say(label: str, words: str, mark: str = " ") -> None:
        start = f"  {mark} {label:<16} " if width >= 60 else f"{mark} {label}: "
        for line in textwrap.wrap(words, width, initial_indent=start, subsequent_indent=" " * min(len(start), 21)):
            print(line)

    say("vocabulary", f"{tree['vocab']:,}, sequence length {tree['seq_len']:,}")
    by_slot = ", ".join(f"{slot} {number:,}" for slot, number in tree["params_by_slot"].items())
    say("parameters", f"{tree['params_total']:,} ({by_slot})")
    say("non-embedding", f"{tree['params_non_embedding']:,}")
    if tree["params_active"] != tree["params_total"]:
        say("used by a token", f"{tree['params_active']:,}")
    say("matrices alone", f"{tree['params_matrices']:,} (as papers count: no norms, biases, positions)")
    say("FLOPs per token", f"{tree['flops_per_token']:,.0f} forward as executed")
    say("algorithmic", f"{tree['flops_per_token_algorithmic']:,.0f} forward, masked scores not counted")
    say("backward", f"{tree['flops_per_token_backward']:,.0f}")
    say("6 N", f"{tree['flops_per_token_6n']:,.0f} forward and backward, the usual approximation")
    say("decoding state", f"{tree['cache_bytes']:,} bytes a sequence, {tree['state_bytes']:,} of fixed size")
    for key, value in tree["arch"].items():
        say(key, _words(value), "*" if key in tree["differs_in"] or _pattern(key, tree["differs_in"]) else " ")
    print(textwrap.fill(f"  differs from its baseline in: {', '.join(tree['differs_in']) or 'nothing'}", width))


def print_differences(tree: dict[str, Any], width: int) -> None:
    """What differs between two architectures, a line a setting, where there is room; then what they cost."""
    one, two = tree["shown"]
    rows = [tuple(each) for each in tree["differs"]]
    for what, key in (("parameters", "params_total"), ("non-embedding", "params_non_embedding")):
        rows.append((what, f"{one[key]:,}", f"{two[key]:,}"))
    rows.append(("FLOPs per token", *(f"{each['flops_per_token']:,.0f}" for each in (one, two))))
    label = max(len(what) for what, *_ in rows) + 2
    column = (width - label - 4) // 2
    if column < 16:
        for what, was, now in rows:
            print(textwrap.fill(f"{what}: {was}; {now}", width, subsequent_indent="  "))
        return
    for what, was, now in [("", one["name"], two["name"]), *rows]:
        cells = [textwrap.wrap(said, column) or [""] for said in (was, now)]
        for index, (left, right) in enumerate(zip_longest(*cells, fillvalue="")):
            print(f"  {what if not index else '':<{label}}{left:<{column + 2}}{right}".rstrip())


def _pattern(key: str, differs: list[str]) -> bool:
    return (key in ("order", "depth") and "pattern" in differs) or (
        key == "sublayers" and bool({"mixer", "channel"} & set(differs))
    )


def _words(value: Any) -> str:
    if isinstance(value, dict) and "name" in value:
        options = ", ".join(f"{key}={each}" for key, each in value.items() if key != "name")
        return f"{value['name']}({options})" if options else str(value["name"])
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_words(each)}" for key, each in value.items())
    return str(value)
