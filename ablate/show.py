"""One named architecture: its slots, what it costs, how it differs from its baseline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ablate.arch import registry_slot
from ablate.build import build_on_meta, form_of
from ablate.contracts import Norm, Position
from ablate.cost import count
from ablate.diagram import draw
from ablate.differences import differences
from ablate.draft import Draft, Origin
from ablate.errors import UserError, unknown
from ablate.overlays import Overlay, compose
from ablate.probe import probe
from ablate.registry import find, load
from ablate.spec import ArchSpec, parse, to_tree
from ablate.yamlfile import Document, parse_scalar

VOCAB = 256  # of a composition that starts from no preset: bytes


def describe(name: str, overrides: list[str]) -> dict[str, Any]:
    """A preset, a variant or a composition at its paper's size, or at the sizes of `overrides`.

    `differs_in` is against the preset that the composition starts from, else against the default architecture.
    Raises `UserError` for unknown names and for an architecture in which something has no effect.
    """
    parts = compose(name)
    preset = parts[0] if parts and parts[0].preset else None
    vocab, settings = _settings(overrides, preset)
    baseline, variant = draft_of(name, parts[:1] if preset else [], settings), draft_of(name, parts, settings)
    arch: ArchSpec = variant.section("arch")
    seq_len = variant.section("data").seq_len
    shape = _shape(arch, preset)
    causal = form_of(arch) in ("tokens", "pair") and not (preset and preset.at and preset.at.get("encoder_only"))
    probe(arch, vocab, seq_len, causal, **shape)
    cost = count(arch, vocab, seq_len, causal, **shape)
    model = build_on_meta(arch, vocab, seq_len, causal, **shape)
    return {
        "name": name,
        "paper": "; ".join(dict.fromkeys(part.paper for part in parts)),
        "params_total": cost.params_total,
        "params_non_embedding": cost.params_non_embedding,
        "params_active": cost.params_active,
        "params_by_slot": cost.params_by_slot,
        "params_matrices": matrices(model),
        "flops_per_token": cost.flops_forward,
        "flops_per_token_backward": cost.flops_backward,
        "flops_per_token_algorithmic": cost.flops_algorithmic,
        "flops_per_token_6n": cost.flops_6n,
        "cache_bytes": cost.cache_bytes,
        "state_bytes": cost.state_bytes,
        "vocab": vocab,
        "seq_len": seq_len,
        "arch": to_tree(arch),
        "differs_in": list(differences(baseline.spec(), variant.spec())),
    }


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


def drawing(tree: dict[str, Any]) -> str:
    """The SVG of what `describe` describes."""
    arch: ArchSpec = parse(ArchSpec, tree["arch"])
    final = load(find("residual", arch.residual.name)).needs_final_norm  # type: ignore[attr-defined]
    facts = {
        **tree["arch"],
        "decoder_order": arch.decoder_order,
        "final_norm": final and arch.norm.name != "none",
        "slots": {letter: registry_slot(part) for letter, part in arch.sublayers},
    }
    return draw(tree["name"], facts, tree["differs_in"])


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


def print_description(tree: dict[str, Any]) -> None:
    """For a person: costs, then the slots, those that differ marked."""
    print(f"{tree['name']}   {tree['paper']}")
    print(f"  at vocabulary {tree['vocab']:,}, sequence length {tree['seq_len']:,}")
    by_slot = ", ".join(f"{slot} {number:,}" for slot, number in tree["params_by_slot"].items())
    print(f"  parameters         {tree['params_total']:,}  ({by_slot})")
    print(f"    non-embedding    {tree['params_non_embedding']:,}")
    if tree["params_active"] != tree["params_total"]:
        print(f"    used by a token  {tree['params_active']:,}")
    print(f"    matrices alone   {tree['params_matrices']:,}  (as papers count: no norms, biases, positions)")
    print(f"  FLOPs per token    {tree['flops_per_token']:,.0f} forward as executed")
    print(f"    algorithmic      {tree['flops_per_token_algorithmic']:,.0f} forward, masked scores not counted")
    print(f"    backward         {tree['flops_per_token_backward']:,.0f}")
    print(f"    6 N              {tree['flops_per_token_6n']:,.0f} forward and backward, the usual approximation")
    print(f"  decoding state     {tree['cache_bytes']:,} bytes a sequence, {tree['state_bytes']:,} of fixed size")
    for key, value in tree["arch"].items():
        mark = "*" if key in tree["differs_in"] or _pattern(key, tree["differs_in"]) else " "
        print(f"  {mark} {key:<10} {_words(value)}")
    print(f"  differs from its baseline in: {', '.join(tree['differs_in']) or 'nothing'}")


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
