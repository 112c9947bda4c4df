"""Variants made from factors: each one alone, all but one, or crossed in a full or fractional factorial.

design:
  factors: {rope: rope, gate: swiglu, norm: {arch.norm: rmsnorm}}   # each as the body of a variant
  kind: fractional            # leave_one_out | add_one_in | both | factorial | fractional
  resolution: 4               # of a fractional one

Variants are named by the factors that are on: `rope+gate`; `baseline` has none of them, `full` all, and
`without_rope` all but one. The first is the baseline of the study: `full` for leave_one_out, `baseline` for the
others.

A fractional factorial of k factors and resolution R is the smallest regular design 2^(k-p) in which no effect of i
factors is confounded with one of fewer than R - i (Box and Hunter 1961, Technometrics 3): at 3 no two main effects,
at 4 no main effect and pair, at 5 no two pairs. Of several the one with the fewest short words in its defining
relation is taken (minimum aberration, Fries and Hunter 1980, Technometrics 22).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ablate.choices import at, block
from ablate.draft import Draft, Origin
from ablate.errors import UserError, unknown
from ablate.overlays import BASELINE, Overlay, compose
from ablate.spec import SECTIONS
from ablate.yamlfile import Document

FULL, WITHOUT = "full", "without_"
KEYS = ("factors", "kind", "resolution")
KINDS = ("leave_one_out", "add_one_in", "both", "factorial", "fractional")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
MOST_FACTORS = 10
LOWEST = 3  # resolution: below it main effects are confounded with each other
DEFAULT_RESOLUTION = 4
Run = tuple[bool, ...]  # which factors are on


@dataclass(frozen=True)
class Factor:
    """One change that is on or off. `use` names registered variants; `settings` come on top."""

    name: str
    use: str
    settings: Mapping[str, Any]
    origin: Origin

    def overlays(self) -> list[Overlay]:
        """The registered variants that it names."""
        try:
            return compose(self.use) if self.use else []
        except UserError as error:
            raise self.origin.error(str(error)) from None

    def values(self) -> dict[str, Any]:
        """What it sets, by dotted path."""
        laid = [overlay.settings for overlay in self.overlays()]
        return {path: value for settings in (*laid, self.settings) for path, value in _flat(settings)}


@dataclass(frozen=True)
class Designed:
    """One variant of a design, used as a `Variant` of a grid is. `on` says of every factor whether it is on."""

    name: str
    on: Mapping[str, bool]
    factors: tuple[Factor, ...]  # those that are on
    origin: Origin
    priority: float = 0.0

    @property
    def is_combination(self) -> bool:
        """Whether several changes were asked for as a combination."""
        return len(self.factors) > 1 or any("+" in factor.use for factor in self.factors)

    def lay_on(self, draft: Draft) -> Draft:
        """A draft with the factors that are on laid over it."""
        draft = draft.copy()
        for factor in self.factors:
            for overlay in factor.overlays():
                draft.lay_overlay(overlay, factor.origin)
            draft.lay(factor.settings, factor.origin)
        return draft

    def paths(self) -> set[str]:
        """The dotted paths that it sets."""
        return {path for factor in self.factors for path in factor.values()}


def designed(document: Document) -> tuple[Designed, ...] | None:
    """The variants of a grid's design, the baseline first; None where it has no design. Raises `UserError`."""
    tree = block(document, "design", KEYS, ", as {factors: {a: rope, b: swiglu}}")
    if tree is None:
        return None
    if document.value.get("variants"):
        raise document.error(("variants",), "variants and design do not go together: a design makes the variants")
    kind = tree.get("kind", "both")
    if kind not in KINDS:
        raise document.error(("design", "kind"), unknown("kind", kind, KINDS))
    factors = _factors(document)
    runs = _runs(document, kind, len(factors))
    _check_crossings(document, factors, runs)
    return tuple(_variant(document, factors, run) for run in runs)


def fractional(k: int, resolution: int) -> list[Run]:
    """The smallest regular two-level fraction of k factors that has this resolution or a higher one.

    The first q = k - p factors are crossed; each of the others is on where an odd number of the factors of its
    generator are, so that the run without any factor is in the fraction. Every main effect is balanced, and any two
    of them are orthogonal. Raises `UserError` where all 2^k are needed.
    """
    if not LOWEST <= resolution <= k:
        known = f"{k} factors have fractions of resolution {LOWEST} to {k}" if k >= LOWEST else "below 3 factors none"
        raise UserError(f"there is no fraction of resolution {resolution} of {k} factors: {known}")
    for q in range(1, k):
        if generators := _generators(q, k - q, resolution):
            basic = itertools.product((False, True), repeat=q)
            return [(*run, *(sum(map(run.__getitem__, word)) % 2 == 1 for word in generators)) for run in basic]
    raise AssertionError("the half fraction has resolution k")


def words(k: int, generators: Sequence[Sequence[int]]) -> list[frozenset[int]]:
    """The defining relation: every product of the generators' words, as sets of factors (numbers from 0)."""
    q = k - len(generators)
    relation = [frozenset[int]()]
    for number, word in enumerate(generators):
        whole = frozenset((*word, q + number))
        relation += [each ^ whole for each in relation]
    return relation[1:]


def _generators(q: int, p: int, resolution: int) -> tuple[tuple[int, ...], ...] | None:
    """The factors of which each of p more is the product, by minimum aberration; None where the resolution is lower.

    Two generators of the same factors would make two main effects one: their words' product has two letters.
    """
    candidates = [word for size in range(resolution - 1, q + 1) for word in itertools.combinations(range(q), size)]
    best, least = None, None
    for chosen in itertools.combinations(candidates, p):
        lengths = [len(word) for word in words(q + p, chosen)]
        if min(lengths) < resolution:
            continue
        pattern = tuple(lengths.count(length) for length in range(resolution, q + p + 1))
        if least is None or pattern < least:
            best, least = chosen, pattern
    return best


def _factors(document: Document) -> tuple[Factor, ...]:
    place = ("design", "factors")
    tree = at(document, place)
    if not isinstance(tree, Mapping) or not 2 <= len(tree) <= MOST_FACTORS:
        told = f"{tree!r} must be a mapping of 2 to {MOST_FACTORS} factors"
        raise document.error(place, f"{told}, as {{a: rope, b: {{arch.norm: rmsnorm}}}}")
    return tuple(_factor(document, str(name), body) for name, body in tree.items())


def _factor(document: Document, name: str, body: Any) -> Factor:
    origin = Origin(document, ("design", "factors", name))
    if not NAME.fullmatch(name):
        raise origin.error(f"{name!r} must be letters, digits, '_', '-' and '.'")
    if name in (BASELINE, FULL) or name.startswith(WITHOUT):
        raise origin.error(f"{name!r} is a name that the design's own variants have: give the factor another")
    if isinstance(body, str):
        body = {"use": body}
    if not isinstance(body, Mapping) or not body:
        raise origin.error(f"{body!r} must be the name of a registered variant, or a mapping of dotted paths")
    use = body.get("use", "")
    if not isinstance(use, str):
        raise origin.error(f"{use!r} must be the name of a registered variant", ("use",))
    factor = Factor(name, use, {key: value for key, value in body.items() if key != "use"}, origin)
    for overlay in factor.overlays():
        if overlay.preset:
            raise origin.error(f"preset {overlay.name!r} sets everything and is no factor: write it as base.preset")
    if not factor.values():
        raise origin.error(f"{use!r} sets nothing: a factor is a change")
    return factor


def _runs(document: Document, kind: str, k: int) -> list[Run]:
    """Which factors are on in every variant, the baseline first."""
    if kind != "fractional" and "resolution" in document.value["design"]:
        raise document.error(("design", "resolution"), f"a {kind} design has no resolution: kind: fractional has one")
    none, full = (False,) * k, (True,) * k
    single = [tuple(number == one for number in range(k)) for one in range(k)]
    without = [tuple(number != one for number in range(k)) for one in range(k)]
    if kind == "fractional":
        return _fraction(document, k)
    if kind == "factorial":
        return list(itertools.product((False, True), repeat=k))
    chosen = {
        "leave_one_out": [full, *without],
        "add_one_in": [none, *single],
        "both": [none, *single, *without, full],
    }
    return list(dict.fromkeys(chosen[kind]))


def _fraction(document: Document, k: int) -> list[Run]:
    place = ("design", "resolution")
    resolution = at(document, place, DEFAULT_RESOLUTION)
    if not isinstance(resolution, int) or isinstance(resolution, bool):
        raise document.error(place, f"{resolution!r} must be a whole number from {LOWEST}")
    try:
        return fractional(k, resolution)
    except UserError as error:
        legal = [f"resolution: {each} ({len(fractional(k, each))} variants)" for each in range(LOWEST, k + 1)]
        choices = ", ".join((*legal, f"kind: factorial ({2**k} variants)"))
        raise document.error(place, f"{error}; choose {choices}") from None


def _check_crossings(document: Document, factors: Sequence[Factor], runs: Sequence[Run]) -> None:
    """Refuse two factors that are on together and set one path to different values, or a component and its option."""
    for (i, first), (j, second) in itertools.combinations(enumerate(factors), 2):
        if not any(run[i] and run[j] for run in runs):
            continue
        for path, value, other, theirs in _clashes(first, second):
            where = (*second.origin.path, path)
            line = document.lines.get((*first.origin.path, other), document.lines.get(first.origin.path, 1))
            told = f"sets {path} to {value!r}, and factor {first.name!r} (line {line}) sets {other} to {theirs!r}"
            raise document.error(
                where if where in document.lines else second.origin.path,
                f"factor {second.name!r} {told}: they cannot be crossed; make them one factor, or kind: add_one_in",
            )


def _clashes(first: Factor, second: Factor) -> Iterator[tuple[str, Any, str, Any]]:
    for path, value in second.values().items():
        for other, theirs in first.values().items():
            if path == other and value == theirs:
                continue
            if path == other or path.startswith(f"{other}.") or other.startswith(f"{path}."):
                yield path, value, other, theirs


def _flat(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Dotted paths, where settings may be of sections, and sublayers of letters."""
    for key, value in settings.items():
        if (key in SECTIONS or key == "arch.sublayers") and isinstance(value, Mapping):
            yield from _flat({f"{key}.{name}": each for name, each in value.items()})
        else:
            yield key, value


def _variant(document: Document, factors: Sequence[Factor], run: Run) -> Designed:
    on = [factor for factor, is_on in zip(factors, run, strict=True) if is_on]
    names = [factor.name for factor in on]
    if not on:
        name, origin = BASELINE, Origin(document, ("design",))
    elif len(on) == 1:
        name, origin = names[0], on[0].origin
    elif len(on) == len(factors):
        name, origin = FULL, Origin(document, ("design",))
    elif len(on) == len(factors) - 1:
        (left,) = (factor for factor in factors if factor not in on)
        name, origin = f"{WITHOUT}{left.name}", left.origin
    else:
        name, origin = "+".join(names), Origin(document, ("design", "factors"))
    return Designed(name, {each.name: is_on for each, is_on in zip(factors, run, strict=True)}, tuple(on), origin)
