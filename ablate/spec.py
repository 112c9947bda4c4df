"""What a trial is: frozen specifications, their plain-tree form, and their identity.

A specification is made from a tree of plain values (what YAML and JSON hold) by `parse`, strictly: an unknown
key, a wrong type or an impossible value raises `SpecError` with its path. `canonical` is what identity rests
on: defaults dropped, keys sorted, each component with its version, data by content.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, TypeVar

from ablate import registry
from ablate.arch import SUBLAYER, ArchSpec, Component, Swap, positive, slot
from ablate.errors import SpecError, UserError, unknown
from ablate.recipe import TrainSpec
from ablate.resources import Resources
from ablate.signatures import accept

FORMAT = 1  # raised when the meaning of a field changes: old ids are then never reused

Tree = dict[str, Any]
S = TypeVar("S")


@dataclass(frozen=True)
class DataSpec:
    """Which text, how it is cut into tokens, and which part is held out.

    One of `corpus` (data that the task knows by name), `path` (a file or folder, or a mapping of split to file) and
    `hub` (a Hugging Face data set, with its `hub_config`) says where the data are, the task's first corpus unless
    given; `column` names the text where there are columns. `valid` and `test` are the shares that are held out of
    data that come without splits. A row is `seq_len` tokens long; an image counts as one token.
    Tables of the vocabulary have rows to the next multiple of `vocab_multiple`; those beyond it are never read.
    `content` is the fingerprint of the data, filled in when they are first looked at: identity rests on it, not on
    paths. `vocabulary`, filled in for a stage that begins from a trained model, names the tokens that made that
    model's tokenizer.
    """

    task: Component = slot("task", "lm")
    corpus: str | None = None
    path: str | tuple[tuple[str, str], ...] | None = field(default=None, metadata={"paths": True})
    hub: str | None = None
    hub_config: str | None = None
    column: str = "text"
    tokenizer: Component = slot("tokenizer", "bytes")
    seq_len: int = 128
    vocab_multiple: int = 1
    valid: float = 0.05
    test: float = 0.05
    content: str = ""
    vocabulary: str = ""

    def __post_init__(self) -> None:
        positive(self, "seq_len")
        positive(self, "vocab_multiple")
        if self.images and self.vocab_multiple > 1:
            raise SpecError(["vocab_multiple"], f"{self.vocab_multiple} has no effect: there is no vocabulary")
        if self.images and self.seq_len != DataSpec.seq_len:
            raise SpecError(["seq_len"], f"{self.seq_len} has no effect: task {self.task.name!r} reads images")
        given = [name for name in ("corpus", "path", "hub") if getattr(self, name) is not None]
        if len(given) > 1:
            raise SpecError([given[1]], f"the text comes from one place, but {' and '.join(given)} are given")
        for name in ("valid", "test"):
            if not 0 < getattr(self, name) < 0.5:
                raise SpecError([name], f"{getattr(self, name)} must be a fraction between 0 and 0.5")

    @property
    def images(self) -> bool:
        """Whether rows are images."""
        return registry.find("task", self.task.name).form in ("image", "denoise")

    @property
    def row_tokens(self) -> int:
        """How many tokens of a budget a row stands for."""
        return 1 if self.images else self.seq_len


@dataclass(frozen=True)
class TrialSpec:
    """One training run. Two specs with the same `trial_id` are the same experiment."""

    arch: ArchSpec = field(default_factory=ArchSpec)
    data: DataSpec = field(default_factory=DataSpec)
    train: TrainSpec = field(default_factory=TrainSpec)
    resources: Resources = field(default_factory=Resources)
    seed: int = 0
    parent: str | None = None  # id of the trial whose trained weights this one begins from

    def __post_init__(self) -> None:
        if self.train.tokens == 0 and self.parent is None:
            raise SpecError(
                ["train", "tokens"], "0 measures a trained model as it is: it needs a stage to begin from"
            )
        refuse_recipe(self)
        if self.train.batch_tokens % (self.data.row_tokens * self.train.accumulate):
            unit = self.data.row_tokens * self.train.accumulate
            below = max(1, self.train.batch_tokens // unit) * unit
            raise SpecError(
                ["train", "batch_tokens"],
                f"{self.train.batch_tokens} is not a multiple of seq_len {self.data.row_tokens}"
                + (f" x accumulate {self.train.accumulate}" if self.train.accumulate > 1 else "")
                + f": try {below} or {below + unit}",
            )
        if self.train.batch_ramp and self.train.batch_tokens % (self.data.row_tokens * self.train.ramp_parts):
            rows = self.train.batch_tokens // self.data.row_tokens
            problem = f"{self.train.ramp_parts} must divide the {rows} rows of a batch"
            raise SpecError(["train", "ramp_parts"], problem)

    @property
    def trial_id(self) -> str:
        return digest(canonical(self))

    @property
    def group_id(self) -> str:
        """The id without the seed: replicates share it. (Those of a parent's other seeds do not.)"""
        return digest({key: value for key, value in canonical(self).items() if key != "seed"})

    @property
    def row_id(self) -> str:
        """The id without the seed, the length of training and the parent's name: trials that share it have steps of
        the same cost, in time and in memory."""
        tree = canonical(self)
        tree["train"].pop("tokens", None)
        return digest({**tree, "seed": None, "parent": self.parent is not None})


def refuse_recipe(spec: TrialSpec) -> None:
    """Raise `SpecError` for what a trial's training asks of its data or its architecture and they do not have."""
    arch, data, train = spec.arch, spec.data, spec.train
    for name in ("reinit_layers", "decay_to", "mixout"):
        value = getattr(train, name)
        if spec.parent is None and value != getattr(TrainSpec, name):
            raise SpecError(["train", name], f"{value!r} is for a stage that begins from a trained model")
    for name in ("reinit_layers", "layer_decay"):
        if arch.model is not None and getattr(train, name) != getattr(TrainSpec, name):
            raise SpecError(["train", name], f"model {arch.model.name!r} is not made of layers that are known here")
    depth = min(arch.depth, arch.encoder_depth or arch.depth)
    if train.reinit_layers > depth:
        raise SpecError(["train", "reinit_layers"], f"{train.reinit_layers} is more than the tower's {depth} layers")
    if train.reinit_layers and arch.sharing.name != "none":
        raise SpecError(["train", "reinit_layers"], f"layers share weights, by sharing {arch.sharing.name!r}")
    if train.seq_warmup and (data.images or train.seq_start > data.seq_len):
        longest = "rows of images have no length" if data.images else f"rows have {data.seq_len} tokens"
        raise SpecError(["train", "seq_warmup"], f"seq_start {train.seq_start} does not fit: {longest}")
    if arch.init.name == "mup" and train.optimizer.name == "sgd":
        raise SpecError(["train", "optimizer"], "'sgd' contradicts init 'mup', whose rates are those for Adam")
    if data.vocab_multiple > 1 and arch.model is not None:
        raise SpecError(["data", "vocab_multiple"], f"model {arch.model.name!r} has no unused rows of a vocabulary")


SECTIONS: dict[str, type] = {
    "arch": ArchSpec,
    "data": DataSpec,
    "train": TrainSpec,
    "resources": Resources,
}
UNHASHED = {"data": {"corpus", "path", "hub", "hub_config", "column"}}  # `content` stands for them


def parse(cls: type[S], tree: Any, path: tuple[str, ...] = ()) -> S:
    """A specification of type `cls` from a plain tree. Raises `SpecError` at the first thing it cannot hold."""
    if not isinstance(tree, Mapping):
        raise SpecError(path, f"{tree!r} must be a mapping")
    known = {each.name: each for each in fields(cls)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in tree.items():
        if key not in known:
            raise SpecError((*path, str(key)), unknown("key", key, known))
        values[key] = _parse_field(known[key], value, (*path, key))
    try:
        return cls(**values)
    except SpecError as error:
        raise SpecError((*path, *error.path), error.problem) from None


def _parse_field(spec_field: Any, value: Any, path: tuple[str, ...]) -> Any:
    if value is None and spec_field.default is None:
        return None
    if parser := spec_field.metadata.get("parse"):
        return parser(value, path)
    if spec_field.name == "swap":
        return parse(Swap, value, path)
    if spec_field.name in SECTIONS and path == (spec_field.name,):
        return parse(SECTIONS[spec_field.name], value, path)
    if slots := spec_field.metadata.get("slot"):
        return parse_component(slots, value, path)
    if spec_field.name == "sublayers":
        return _parse_sublayers(value, path)
    if spec_field.metadata.get("paths") and isinstance(value, Mapping):
        return _parse_paths(value, path)
    try:
        accepted = accept(ast.parse(_type_of(spec_field), mode="eval").body, value)
    except ValueError as error:
        raise SpecError(path, str(error)) from None
    return tuple(accepted) if isinstance(accepted, list) else accepted


def _type_of(spec_field: Any) -> str:
    if spec_field.metadata.get("paths"):
        return "str | None"
    return "list[str]" if spec_field.type == "tuple[str, ...]" else str(spec_field.type)


def _parse_sublayers(value: Any, path: tuple[str, ...]) -> tuple[tuple[str, Component], ...]:
    if not isinstance(value, Mapping):
        raise SpecError(path, f"{value!r} must be a mapping of letters to sublayers, as {{s: attention, f: ffn}}")
    letters = dict(ArchSpec.sublayers)
    for letter, part in value.items():
        if not (isinstance(letter, str) and len(letter) == 1 and letter.isalpha()):
            raise SpecError((*path, str(letter)), f"{letter!r} must be a single letter")
        letters[letter] = parse_component(SUBLAYER, part, (*path, letter))
    return tuple(sorted(letters.items()))


def _parse_paths(value: Mapping[str, Any], path: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    for split, file in value.items():
        if split not in ("train", "valid", "test"):
            raise SpecError((*path, str(split)), unknown("split", split, ("train", "valid", "test")))
        if not isinstance(file, str):
            raise SpecError((*path, split), f"{file!r} must be a path")
    for split in ("train", "valid", "test"):
        if split not in value:
            raise SpecError(path, f"has no {split!r} file: give train, valid and test, or one path for all")
    return tuple(sorted(value.items()))


def parse_component(slots: str | tuple[str, ...], value: Any, path: tuple[str, ...]) -> Component:
    """A component from its name, or from `{name: ..., option: ...}`; options equal to their default are dropped."""
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        what = slots if isinstance(slots, str) else " or ".join(slots)
        raise SpecError(path, f"{value!r} must be the name of a {what}, or {{name: ..., option: ...}}")
    try:
        entry = registry.find(slots, value["name"])
    except UserError as error:
        raise SpecError(path, str(error)) from None
    options = {option.name: option for option in entry.options}
    given = []
    for key, each in value.items():
        if key == "name":
            continue
        if key not in options:
            problem = unknown(f"option of {entry.slot} {entry.name!r}:", key, options)
            raise SpecError((*path, str(key)), problem if options else f"{entry.name!r} takes no options")
        try:
            each = options[key].accept(each)
        except ValueError as error:
            raise SpecError((*path, key), str(error)) from None
        if each != options[key].default:
            given.append((key, tuple(each) if isinstance(each, list) else each))
    return Component(entry.name, tuple(sorted(given)))


def to_tree(spec: Any) -> Any:
    """The plain-tree form of a specification, every field written out; `parse` reads it back."""
    if isinstance(spec, Component):
        return {"name": spec.name, **{key: to_tree(value) for key, value in spec.options}}
    if is_dataclass(spec):
        tree = {each.name: to_tree(getattr(spec, each.name)) for each in fields(spec)}
        if isinstance(spec, ArchSpec):
            tree["sublayers"] = {letter: to_tree(part) for letter, part in spec.sublayers}
        if isinstance(spec, DataSpec) and isinstance(spec.path, tuple):
            tree["path"] = dict(spec.path)
        if isinstance(spec, Resources):
            tree["custom"] = dict(spec.custom)
        return tree
    return list(spec) if isinstance(spec, tuple) else spec


def canonical(spec: TrialSpec) -> Tree:
    """What identity rests on. Resources and the places where data lies are left out."""
    if not spec.data.content or spec.train.precision == "auto":
        raise ValueError("a trial has no identity before its data and precision are resolved")
    tree: Tree = {"format": FORMAT, "seed": spec.seed}
    if spec.parent is not None:
        tree["parent"] = spec.parent
    for name in ("arch", "data", "train"):
        section = getattr(spec, name)
        tree[name] = {
            each.name: _canonical_value(each, getattr(section, each.name))
            for each in fields(section)
            if each.name not in UNHASHED.get(name, ())
            and (
                getattr(section, each.name) != each.default
                or (each.metadata.get("slot") and each.default is not None)
            )
        }
    tree["arch"]["sublayers"] = {letter: canonical_component(SUBLAYER, part) for letter, part in spec.arch.sublayers}
    return tree


def canonical_arch(arch: ArchSpec) -> Tree:
    """The architecture's part of the identity."""
    data, train = DataSpec(content="-"), TrainSpec(precision="fp32")
    return dict(canonical(TrialSpec(arch, data, train))["arch"])


def _canonical_value(spec_field: Any, value: Any) -> Any:
    if isinstance(value, Swap):
        return {**to_tree(value), "by": canonical_component(SUBLAYER, value.by)}
    if slots := spec_field.metadata.get("slot"):
        return canonical_component(slots, value)
    return value


def canonical_component(slots: str | tuple[str, ...], component: Component) -> Tree:
    """An option called `path` says where something lies, not what it is: `content` stands for it."""
    options = {key: value for key, value in component.options if key != "path"}
    return {**registry.find(slots, component.name).identity, **options}


def digest(tree: Any) -> str:
    """Twelve hexadecimal digits that stand for a plain tree."""
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def flatten(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a plain tree with their dotted paths."""
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from flatten(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, tree
