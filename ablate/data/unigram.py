"""Learning the pieces of a unigram model. The `tokenizers` library has a trainer too, but it sums in the order of a
hash table: two trainings on one text do not give the same pieces."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

LONGEST = 16  # characters of a piece
CUT = 32  # characters of a word that are looked at together, so that no product of probabilities underflows
SEEDS = 8  # times the vocabulary that is asked for
MOST = 100_000  # words that are looked at: the most frequent ones
KEPT = 0.75  # of the pieces, in every round
ROUNDS = 2  # of EM between two cuts of the vocabulary

Pieces = dict[str, float]


def train_unigram(counts: Mapping[str, int], size: int) -> list[tuple[str, float]]:
    """`size` pieces with the logarithms of their probabilities, from words with their counts, in falling order.

    Kudo 2018, arXiv:1804.10959, section 3.2: from all frequent substrings of words, EM for p(piece), then the quarter
    goes whose loss lowers the likelihood least, and so on; single characters stay.

    Differs from the paper: of more than 100,000 words the most frequent are looked at. The seed is the substrings
    with the largest count x length, and the loss of a piece is that of writing it by the best other pieces wherever
    the best segmentation has it, as in the author's SentencePiece.
    """
    words = sorted(sorted(_parts(counts).items(), key=lambda each: (-each[1], each[0]))[:MOST])
    characters = sorted({character for word, _ in words for character in word})
    found: Counter[str] = Counter()
    for word, count in words:
        for start in range(len(word)):
            for stop in range(start + 1, min(len(word), start + LONGEST) + 1):
                found[word[start:stop]] += count
    ranked = sorted(
        (piece for piece in found if len(piece) > 1), key=lambda piece: (-found[piece] * len(piece), piece)
    )
    chosen = [*characters, *ranked[: SEEDS * size]]
    pieces = _normal({piece: float(found[piece]) for piece in chosen})
    while True:
        for _ in range(ROUNDS):
            pieces = _maximised(_expected(words, pieces), pieces)
        if len(pieces) <= size:
            break
        pieces = _pruned(words, pieces, max(size, int(KEPT * len(pieces)), len(characters)))
        if len(pieces) == len(characters):
            break
    ordered = sorted(pieces.items(), key=lambda each: (-each[1], each[0]))
    return [(piece, math.log(p)) for piece, p in ordered]


def _parts(counts: Mapping[str, int]) -> Counter[str]:
    parts: Counter[str] = Counter()
    for word, count in counts.items():
        for at in range(0, len(word), CUT):
            parts[word[at : at + CUT]] += count
    return parts


def _normal(pieces: Pieces) -> Pieces:
    total = math.fsum(pieces.values())
    return {piece: value / total for piece, value in pieces.items()}


def _expected(words: list[tuple[str, int]], pieces: Pieces) -> Pieces:
    """How often each piece is used, over all segmentations by their probability."""
    used = dict.fromkeys(pieces, 0.0)
    for word, count in words:
        n = len(word)
        arcs = [
            (start, stop, piece, pieces[piece])
            for start in range(n)
            for stop in range(start + 1, min(n, start + LONGEST) + 1)
            if (piece := word[start:stop]) in pieces
        ]
        before, behind = [1.0] + [0.0] * n, [0.0] * n + [1.0]
        for start, stop, _, p in arcs:
            before[stop] += before[start] * p
        for start, stop, _, p in reversed(arcs):
            behind[start] += behind[stop] * p
        share = count / before[n]
        for start, stop, piece, p in arcs:
            used[piece] += before[start] * p * behind[stop] * share
    return used


def _maximised(used: Pieces, before: Pieces) -> Pieces:
    """The probabilities that make these uses most likely; pieces that are hardly used go, characters stay."""
    return _normal({piece: max(used[piece], 1e-3) for piece in before if used[piece] >= 0.5 or len(piece) == 1})


def _pruned(words: list[tuple[str, int]], pieces: Pieces, keep: int) -> Pieces:
    """The pieces, without those whose loss is the least."""
    scores = {piece: math.log(p) for piece, p in pieces.items()}
    used: Counter[str] = Counter()
    for word, count in words:
        for piece in best(word, scores)[1]:
            used[piece] += count
    loss = {piece: used[piece] * (scores[piece] - best(piece, scores, whole=False)[0]) for piece in pieces}
    ranked = sorted((piece for piece in pieces if len(piece) > 1), key=lambda piece: (-loss[piece], piece))
    characters = [piece for piece in pieces if len(piece) == 1]
    return _normal({piece: pieces[piece] for piece in [*characters, *ranked[: keep - len(characters)]]})


def best(word: str, scores: Mapping[str, float], whole: bool = True) -> tuple[float, list[str]]:
    """The likeliest segmentation, and the logarithm of its probability; without the word as one piece on demand."""
    n = len(word)
    reached = [(0.0, 0)] + [(-math.inf, 0)] * n
    for stop in range(1, n + 1):
        for start in range(max(0, stop - LONGEST), stop):
            score = scores.get(word[start:stop])
            if score is None or (not whole and stop - start == n):
                continue
            if reached[start][0] + score > reached[stop][0]:
                reached[stop] = reached[start][0] + score, start
    pieces, at = [], n
    while at and reached[n][0] > -math.inf:
        pieces.append(word[reached[at][1] : at])
        at = reached[at][1]
    return reached[n][0], pieces[::-1]
