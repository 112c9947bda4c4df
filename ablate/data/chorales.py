"""Pieces of music as chords: MIDI pitches by time step, from JSON, and as tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ablate.data.corpora import FEWEST_DOCUMENTS, SPLIT_NAMES, SPLITS, hashes_of, split_by_hash
from ablate.errors import UserError
from ablate.spec import DataSpec

HIGHEST = 127  # MIDI pitches are 0..127, each its own token
END_OF_STEP, START = HIGHEST + 1, HIGHEST + 2
VOCAB = HIGHEST + 3
REST = -1  # a voice that is silent, in files that have a place for each voice

Chord = tuple[int, ...]  # the pitches that sound, each once, from the highest to the lowest


@dataclass(frozen=True)
class Piece:
    """A piece as tokens: the pitches of a time step from the highest to the lowest, and an end of the step."""

    tokens: np.ndarray
    ends: np.ndarray  # of the steps: step number s is tokens[ends[s] : ends[s + 1]], ends[0] being 0

    @property
    def steps(self) -> int:
        return len(self.ends) - 1

    def rows(self, size: int) -> Iterator[tuple[int, int]]:
        """The piece cut into rows of at most `size` tokens at ends of steps: the first step of each, and the step
        after its last."""
        first = 0
        while first < self.steps:
            stop = self.reach(first, size)
            yield first, stop
            first = stop

    def reach(self, first: int, size: int) -> int:
        """The step after the last one that a row of `size` tokens holds which begins with step `first`."""
        return int(np.searchsorted(self.ends, self.ends[first] + size, side="right")) - 1

    def last_start(self, size: int) -> int:
        """The earliest step from which a row of `size` tokens holds the rest of the piece."""
        return int(np.searchsorted(self.ends, self.ends[-1] - size))

    def read(self, first: int, stop: int, shift: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """What a model reads and what follows each token, of the steps `first` to `stop` - 1, transposed by `shift`
        semitones. Before the piece stands a start; before a row from its middle, the end of the step before."""
        targets = self.tokens[self.ends[first] : self.ends[stop]].astype(np.int64)
        if shift:
            targets = np.where(targets <= HIGHEST, targets + shift, targets)
        return np.append(START if first == 0 else END_OF_STEP, targets[:-1]), targets

    def shifts(self, at_most: int) -> tuple[int, int]:
        """The lowest and the highest transposition within `at_most` semitones that stays among the MIDI pitches."""
        pitches = self.tokens[self.tokens <= HIGHEST]
        if not len(pitches):
            return 0, 0
        return max(-at_most, -int(pitches.min())), min(at_most, HIGHEST - int(pitches.max()))


def piece_of(chords: Sequence[Chord]) -> Piece:
    tokens = [token for chord in chords for token in (*chord, END_OF_STEP)]
    ends = np.cumsum([0, *(len(chord) + 1 for chord in chords)])
    return Piece(np.array(tokens, dtype=np.uint8), ends)


def chords_of(ids: Iterable[int]) -> list[list[int]]:
    """The chords that tokens spell; a last one without its end is one too."""
    chords: list[list[int]] = [[]]
    for token in ids:
        if token == END_OF_STEP:
            chords.append([])
        elif 0 <= token <= HIGHEST:
            chords[-1].append(int(token))
    return chords if chords[-1] else chords[:-1]


def pieces_by_split(data: DataSpec) -> dict[str, list[Piece]]:
    """The pieces of a resolved specification.

    One file is an object of train, valid and test, or a list of pieces, which are split by a hash of what they are.
    Three files are a list each. Raises `UserError` with the file, the piece and the step.
    """
    if isinstance(data.path, tuple):
        found = {split: read_list(Path(file)) for split, file in data.path}
    else:
        assert data.path is not None
        found = read_splits(Path(data.path), data.valid, data.test)
    for split in SPLITS:
        if not found[split]:
            raise UserError(
                f"{dict(data.path)[split] if isinstance(data.path, tuple) else data.path}: no {split} pieces"
            )
    return {split: [piece_of(chords) for chords in found[split]] for split in SPLITS}


def read_splits(file: Path, valid: float, test: float) -> dict[str, list[list[Chord]]]:
    """The pieces of a file that has all splits."""
    tree = read_json_file(file)
    if isinstance(tree, dict):
        names = {SPLIT_NAMES.get(str(name).lower()): name for name in tree}
        for split in SPLITS:
            if split not in names:
                raise UserError(f"{file}: has no {split!r}, but {', '.join(map(repr, tree)) or 'nothing'}")
        return {split: list(pieces_in(tree[names[split]], f"{file}: {names[split]}")) for split in SPLITS}
    pieces = list(pieces_in(tree, str(file)))
    if len(pieces) < FEWEST_DOCUMENTS:
        raise UserError(
            f"{file}: {len(pieces)} pieces are too few to split: there must be {FEWEST_DOCUMENTS}, or an object of "
            "train, valid and test"
        )
    found: dict[str, list[list[Chord]]] = {split: [] for split in SPLITS}
    splits = split_by_hash(hashes_of(json.dumps(piece) for piece in pieces), valid, test)
    for split, piece in zip(splits, pieces, strict=True):
        found[split].append(piece)
    return found


def read_list(file: Path) -> list[list[Chord]]:
    """The pieces of a file that is one split."""
    return list(pieces_in(read_json_file(file), str(file)))


def read_json_file(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8: byte 0x{error.object[error.start]:02x}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{error.lineno}: not JSON: {error.msg}") from None
    except RecursionError:
        raise UserError(f"{file}: nested too deeply") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None


def pieces_in(tree: Any, place: str) -> Iterator[list[Chord]]:
    """The pieces of a list of lists of lists of pitches; voices at rest, -1, are left out."""
    for number, steps in enumerate(listed(tree, place, "a list of pieces"), 1):
        where = f"{place}: piece {number}"
        if not listed(steps, where, "a list of time steps"):
            raise UserError(f"{where}: has no time steps")
        yield [chord_of(step, f"{where}, step {at}") for at, step in enumerate(steps, 1)]


def chord_of(step: Any, place: str) -> Chord:
    for pitch in listed(step, place, "a list of pitches"):
        whole = type(pitch) is int or (type(pitch) is float and pitch.is_integer())  # some files say 67.0
        if not whole or not REST <= pitch <= HIGHEST:
            raise UserError(
                f"{place}: {pitch!r:.40} is no pitch: must be whole, from 0 to {HIGHEST}, or {REST} for a rest"
            )
    return tuple(sorted({int(pitch) for pitch in step if pitch != REST}, reverse=True))


def listed(tree: Any, place: str, what: str) -> list[Any]:
    if not isinstance(tree, list):
        raise UserError(f"{place}: {tree!r:.40} must be {what}")
    return tree
