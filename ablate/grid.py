"""grid.yaml -> Grid: what is compared, at which sizes and budgets, with how many seeds.

study: name                     # the name of its results; the file's unless given
base: {preset: gpt2, arch: {}, data: {}, train: {}, resources: {}}  # what all trials share
variants: {name: {dotted.path: value}, name: rmsnorm+rope}  # the rows of the comparison, or a list of registered
                                # names; the first is the baseline
axes: {dotted.path: [values]}   # crossed with everything
sizes: {dotted.path: [values]}  # lists taken in parallel; or {name: {dotted.path: value}}; or a named ladder
budgets: {tokens_per_param: [5, 20]}        # lengths of training, of one kind: per parameter of the baseline, tokens
                                # in all, or training FLOPs
match: params                   # what every variant has as much of as the baseline; its sizes are solved for it
tolerance: 0.01                 # how far a matched variant may be off, as a fraction
seeds: 3                        # a count, or a list
stages: {name: {from: name, seeds: 3, axes: {}, dotted.path: value}}   # trained, and then further: see `stages.py`
rungs: {at: [0.3], keep: 0.5}   # of the seeds of a row, the best go on after this share of training: see `rungs.py`
predict: {flops: 1e18, within: 0.02}        # only what tells the loss there is trained: see `prediction.py`
tune: {train.lr: {low: 1e-3, high: 1e-2}}   # a sweep for every variant alike: see `tuning.py`
hypothesis: {variant: rope, expect: better, smallest: 0.01}     # said before it runs: see `hypothesis.py`
design: {factors: {rope: rope, gate: swiglu}, kind: both}       # variants made of factors: see `designs.py`
published: narang_table1        # a published table to be shown beside the study's: `analysis.published`
race: {first: 3, most: 12}      # seeds are added where a verdict still needs them: see `races.py`
smallest: 0.01                  # effect of interest, in the metric's units; by metric: {loss: 0.01, accuracy: 0.005}
promote: {wanted: not worse, sure: 0.5}     # at the largest scale only what the smaller speak for: `promoting.py`
profiles: {one_gpu: {seeds: 5, train.lr: 1e-3}}   # laid over all of this by `--as one_gpu`: see `profiles.py`
plugins: [my_variants.py]       # Python files with components of one's own
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablate import registry
from ablate.choices import Choice, axes, mapping, seeds, show, values_of
from ablate.designs import Designed, designed
from ablate.draft import Draft, Origin, sections_with
from ablate.errors import UserError, unknown
from ablate.hypothesis import hypothesis, smallest
from ablate.match import TARGETS
from ablate.names import wrong_with
from ablate.overlays import compose, ladders
from ablate.prediction import Prediction, prediction
from ablate.profiles import lay_profile, profiles
from ablate.promoting import Promote, promotion
from ablate.races import Race, race
from ablate.rungs import Rungs, rungs
from ablate.spec import SECTIONS
from ablate.stages import Stage, stages
from ablate.tuning import Tune, tuning
from ablate.variants import Variant, variants_of
from ablate.yamlfile import Document, document_of, parse_scalar, parse_yaml, read_yaml

SMALLEST = "the smallest comparison is `variants: [baseline, rope]`"
KEYS = (
    "study",
    "base",
    "variants",
    "axes",
    "sizes",
    "budgets",
    "match",
    "tolerance",
    "seeds",
    "stages",
    "rungs",
    "predict",
    "tune",
    "design",
    "hypothesis",
    "published",
    "race",
    "smallest",
    "promote",
    "profiles",
    "plugins",
)
MODELINE = "# yaml-language-server:"  # begins the comment that tells editors where the schema is
BUDGETS = ("tokens_per_param", "tokens", "flops")


@dataclass(frozen=True)
class Budget:
    """A length of training: tokens, tokens per parameter of the baseline, or training FLOPs."""

    kind: str
    value: float
    origin: Origin

    @property
    def label(self) -> str:
        return "" if self.kind == "base" else f"{self.kind}={self.value:g}"


@dataclass(frozen=True)
class Grid:
    """A parsed grid file; nothing of it has been built yet."""

    name: str
    document: Document
    question: str
    base: Draft
    variants: tuple[Variant | Designed, ...]
    axes: tuple[Choice, ...]
    sizes: tuple[Choice, ...]
    budgets: tuple[Budget, ...]
    match: str
    tolerance: float
    seeds: tuple[int, ...]
    stages: tuple[Stage, ...]
    rungs: Rungs | None
    predict: Prediction | None
    tune: Tune | None
    hypothesis: Mapping[str, Any] | None
    published: str | None
    race: Race | None
    smallest: float | Mapping[str, float] | None
    promote: Promote | None
    plugins: tuple[Path, ...]
    profiles: tuple[str, ...]
    profile: str | None  # the one that was laid over the file
    overrides: tuple[str, ...]  # `path=value`, as they were laid over both

    @property
    def folder(self) -> Path:
        return self.document.file.resolve().parent


def load_grid(
    file: Path,
    overrides: Sequence[str] = (),
    instead: str | Mapping[str, Any] | None = None,
    profile: str | None = None,
) -> Grid:
    """Read and check a grid file. `overrides` are `path=value`, a path of the grid or of a trial's settings, laid
    over those of `profile`, one of the grid's. `instead` is read and not the file, as text or as a tree: what it
    names is still looked for beside the file.

    Raises `UserError` with the file, the line, the value and what would have been legal.
    """
    document = _document(file, instead)
    if not isinstance(document.value, Mapping):
        raise document.error((), f"a grid is a mapping with the keys {', '.join(KEYS)}; {SMALLEST}")
    tree = document.value
    for key in tree:
        if key not in KEYS:
            raise document.error((key,), unknown("key", key, KEYS))
    named = tuple(profiles(document))
    if profile is not None:
        lay_profile(document, profile)
    for override in overrides:
        _override(document, override)
    plugins = _plugins(document)  # first: what follows may name their components
    variants = designed(document) or variants_of(document)
    expected = hypothesis(document, [variant.name for variant in variants])
    return Grid(
        name=_name(document, profile),
        document=document,
        question=_header(document.text),
        base=_base(document),
        variants=variants,
        axes=axes(document),
        sizes=_sizes(document),
        budgets=_budgets(document),
        match=_match(document),
        tolerance=_tolerance(document),
        seeds=seeds(document),
        stages=stages(document),
        rungs=rungs(document),
        predict=prediction(document),
        tune=tuning(document),
        published=_published(document),
        race=race(document),
        smallest=smallest(document, expected),
        hypothesis=expected,
        promote=promotion(document),
        plugins=plugins,
        profiles=named,
        profile=profile,
        overrides=tuple(overrides),
    )


def _document(file: Path, instead: str | Mapping[str, Any] | None) -> Document:
    if instead is None:
        return read_yaml(file)
    return parse_yaml(instead, file) if isinstance(instead, str) else document_of(instead, file)


def _override(document: Document, text: str) -> None:
    path, sign, value = text.partition("=")
    if not sign or not path:
        raise UserError(f"--set {text!r}: write path=value, as --set train.lr=1e-3")
    keys = path.split(".")
    if keys[0] == "base":
        keys = keys[1:]
    if keys == ["preset"] or (keys and keys[0] in SECTIONS):
        place: tuple[str, ...] = ("base", ".".join(keys))
    elif keys and keys[0] in KEYS and keys[0] != "profiles":
        place = (keys[0], ".".join(keys[1:])) if len(keys) > 1 else (keys[0],)
    else:
        known = (keys and sections_with(keys[0])) or (
            *SECTIONS,
            *(key for key in KEYS if key not in ("base", "profiles")),
        )
        raise UserError(f"--set {path}: {unknown('path', path, known)}")
    tree = document.value
    if len(place) == 2:
        inner = tree.get(place[0])
        if inner is not None and not isinstance(inner, Mapping):
            raise UserError(f"--set {path}: {place[0]} is not a mapping in {document.file}: set all of {place[0]}")
        if place[0] == "variants" and len(keys) > 2 and place[1] not in (inner or {}):
            raise UserError(f"--set {path}: set the whole variant, as --set variants.{keys[1]}={{train.lr: 1e-3}}")
        tree[place[0]] = inner = dict(inner or {})
        tree = inner
    tree.pop(place[-1], None)  # last in order: it is laid over the rest
    tree[place[-1]] = parse_scalar(value)
    document.overridden.add(place)


def _name(document: Document, profile: str | None) -> str:
    name = document.value.get("study", document.file.stem)
    if isinstance(name, str) and profile:
        name = f"{name}_{profile}"
    if wrong := wrong_with(name):
        raise document.error(("study",), f"{str(name)[:150]!r} {wrong}")
    return str(name)


def _header(text: str) -> str:
    """The comment that opens the file: the question it asks."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    return "\n".join(line.lstrip("#").strip() for line in lines if not line.startswith(MODELINE)).strip()


def _plugins(document: Document) -> tuple[Path, ...]:
    files = document.value.get("plugins") or []
    files = [files] if isinstance(files, str) else files
    if not isinstance(files, list):
        raise document.error(("plugins",), f"{files!r} must be a list of Python files")
    found = []
    for index, file in enumerate(files):
        place = ("plugins", str(index))
        if not isinstance(file, str):
            raise document.error(place, f"{file!r} must be the path of a Python file")
        try:
            path = (document.file.resolve().parent / Path(file).expanduser()).resolve()
            registry.add_plugin(path)
        except UserError as error:
            raise document.error(place, str(error)) from None
        except (RuntimeError, ValueError) as error:  # no such home, a null character
            raise document.error(place, f"{file!r} is no path: {error}") from None
        found.append(path)
    return tuple(found)


def _base(document: Document) -> Draft:
    tree = mapping(document, ("base",))
    draft = Draft()
    for key in tree:
        if "." not in key and key not in (known := ("preset", *SECTIONS)):
            raise document.error(("base", key), unknown("key", key, sections_with(key) or known))
    if (preset := tree.get("preset")) is not None:
        origin = Origin(document, ("base", "preset"))
        if not isinstance(preset, str):
            raise origin.error(f"{preset!r} must be the name of a preset")
        try:
            parts = compose(preset)
        except UserError as error:
            raise origin.error(str(error)) from None
        for overlay in parts:
            draft.lay_overlay(overlay, origin)
    draft.lay({key: value for key, value in tree.items() if key != "preset"}, Origin(document, ("base",)))
    return draft


def _sizes(document: Document) -> tuple[Choice, ...]:
    tree = document.value.get("sizes")
    origin = Origin(document, ("sizes",))
    if tree is None:
        return (Choice("base", {}, origin),)
    if isinstance(tree, str):
        if tree not in ladders():
            raise origin.error(unknown("ladder", tree, ladders()))
        return tuple(Choice(name, dict(rung), origin) for name, rung in ladders()[tree].items())
    if not isinstance(tree, Mapping) or not tree:
        raise origin.error(f"{tree!r} must be dotted paths with lists, named sizes, or the name of a ladder")
    if all("." not in name for name in tree):
        sizes = []
        for name, settings in tree.items():
            if not isinstance(settings, Mapping):
                raise origin.error(f"{settings!r} must be a mapping of dotted paths", (name,))
            sizes.append(Choice(name, settings, Origin(document, ("sizes", name))))
        return tuple(sizes)
    lists = {path: values_of(document, ("sizes", path), values) for path, values in tree.items()}
    lengths = {len(values) for values in lists.values()}
    if len(lengths) > 1:
        counts = ", ".join(f"{path} has {len(values)}" for path, values in lists.items())
        raise origin.error(f"sizes are taken in parallel, so all lists must be of one length: {counts}")
    cells = []
    for row in zip(*lists.values(), strict=True):
        settings = dict(zip(lists, row, strict=True))
        label = ", ".join(f"{path.split('.')[-1]}={show(value)}" for path, value in settings.items())
        cells.append(Choice(label, settings, origin))
    return tuple(cells)


def _budgets(document: Document) -> tuple[Budget, ...]:
    tree = mapping(document, ("budgets",))
    if not tree:
        return (Budget("base", 0, Origin(document, ("base",))),)
    if len(tree) > 1:
        raise document.error(("budgets",), f"{' and '.join(tree)} are given: choose one of {', '.join(BUDGETS)}")
    (kind, values), *_ = tree.items()
    if kind not in BUDGETS:
        raise document.error(("budgets", kind), unknown("budget", kind, BUDGETS))
    budgets = []
    for value in values_of(document, ("budgets", kind), values):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
            raise document.error(("budgets", kind), f"{value!r} must be a positive number")
        budgets.append(Budget(kind, value, Origin(document, ("budgets", kind))))
    return tuple(budgets)


def _published(document: Document) -> str | None:
    """The published table that the report shows beside the study's."""
    if document.value.get("published") is None:
        return None
    from analysis.published import SOURCES  # pandas, which a grid without it need not wait for

    name = document.value.get("published")
    if name not in SOURCES:
        raise document.error(("published",), unknown("table", name, SOURCES))
    return name


def _match(document: Document) -> str:
    target = document.value.get("match", "params")
    if not isinstance(target, str) or target not in TARGETS:
        raise document.error(("match",), unknown("match", target, TARGETS))
    return target


def _tolerance(document: Document) -> float:
    value = document.value.get("tolerance", 0.01)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise document.error(("tolerance",), f"{value!r} must be a fraction between 0 and 1")
    return float(value)
