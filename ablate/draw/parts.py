"""What a drawing is made of: boxes, ways that fork and join, frames around several of them. Data flows upwards."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Box:
    """One thing that is computed. `op` boxes are operations that have no weights; `end` ones enter or leave."""

    text: str
    note: str = ""  # smaller, below: shapes, parameters
    about: str = ""  # what is said where the pointer rests
    kind: str = "part"  # part, op, end
    changed: bool = False  # it differs from the baseline
    reads: bool = False  # the encoder's memory


@dataclass(frozen=True)
class Fork:
    """Ways that leave the stream and meet again in `sign`; an empty way is the stream itself."""

    ways: tuple[Chain, ...]
    sign: str
    changed: bool = False


@dataclass(frozen=True)
class Frame:
    """Several parts that belong together: a component with what is inside of it, or layers (`repeat`). Where they are
    not `linked` only their order is known."""

    body: Chain
    text: str
    note: str = ""
    about: str = ""
    repeat: bool = False
    linked: bool = True
    changed: bool = False
    reads: bool = False


Part = Box | Fork | Frame
Chain = tuple[Part, ...]  # from the bottom upwards


@dataclass(frozen=True)
class Tower:
    """One column of a drawing."""

    name: str
    chain: Chain


@dataclass(frozen=True)
class Figure:
    """A drawing: its columns, what explains parts of them, and what is said below.

    `memory` says that the first column feeds the second, `against` what marked parts differ from."""

    title: str
    towers: tuple[Tower, ...]
    beside: tuple[Tower, ...] = ()
    notes: tuple[str, ...] = ()
    memory: bool = False
    against: str = "the baseline"

    @property
    def marked(self) -> bool:
        """Whether something in it differs from the baseline."""
        return any(part.changed for tower in (*self.towers, *self.beside) for part in every(tower.chain))

    def in_words(self) -> str:
        """The same as sentences, for those who cannot see it."""
        return " ".join(f"{tower.name.capitalize()}: {said(tower.chain)}." for tower in (*self.towers, *self.beside))


def every(chain: Chain) -> Iterator[Part]:
    """All parts, also those inside of others."""
    for part in chain:
        yield part
        for inner in part.ways if isinstance(part, Fork) else (part.body,) if isinstance(part, Frame) else ():
            yield from every(inner)


def said(chain: Chain) -> str:
    """`embedding table; × 2 [layernorm; attention, and + the stream]`."""
    return "; ".join(_said(part) for part in chain)


def _said(part: Part) -> str:
    mark = " (differs)" if part.changed else ""
    if isinstance(part, Fork):
        ways = " and ".join(said(way) or "the stream itself" for way in part.ways)
        return f"({ways}, joined by {part.sign}){mark}"
    note = f", {part.note}" if part.note else ""
    inside = f" [{said(part.body)}]" if isinstance(part, Frame) else ""
    return f"{part.text}{note}{mark}{inside}"


def is_bare(way: Chain) -> bool:
    """Whether a way is the stream itself, at most scaled: it is drawn as a line."""
    return all(isinstance(part, Box) and part.kind == "op" for part in way)


def main_way(fork: Fork) -> int | None:
    """The way that is drawn straight upwards, where the only other one is a line beside it."""
    if len(fork.ways) != 2:
        return None
    if is_bare(fork.ways[1]):
        return 0 if not is_bare(fork.ways[0]) or len(fork.ways[0]) >= len(fork.ways[1]) else 1
    return 1 if is_bare(fork.ways[0]) else None


def words(part: Mapping[str, Any]) -> str:
    """A component's name with its options."""
    given = {key: value for key, value in part.items() if key != "name" and value is not None}
    options = ", ".join(f"{key}={_value(value)}" for key, value in given.items())
    return f"{part['name']}({options})" if options else str(part["name"])


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def short(number: float) -> str:
    """`1.2M`."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{unit}"
    return f"{number:.0f}"


def joined(parts: Iterable[str]) -> str:
    return " · ".join(part for part in parts if part)


def counted(parameters: int) -> str:
    """`1.2M params`; nothing where there are none."""
    return f"{short(parameters)} param{'s' * (parameters != 1)}" if parameters else ""
