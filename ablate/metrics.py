"""Metrics of generated text, by the libraries that published numbers come from: sacrebleu and jiwer.

`outputs` are what a model said, one for each row; `references` are for each row what would have been right, one or
several.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

References = Sequence[Sequence[str]]


def error_rate(outputs: Sequence[str], references: References) -> float:
    """(substitutions + deletions + insertions) / words of the references, over all rows together.

    Words are what white space sets apart: of phonemes it is the phoneme error rate. Of several references the one
    with the lowest rate of its own is taken. Above 1 where more is said than there is to say.
    """
    import jiwer

    def rate(output: str, reference: str) -> float:
        return float(jiwer.wer(reference, output))

    _check(outputs, references)
    nearest = [
        each[0] if len(each) == 1 else min(each, key=lambda reference: rate(output, reference))
        for output, each in zip(outputs, references, strict=True)
    ]
    return float(jiwer.wer(nearest, list(outputs)))


def bleu(outputs: Sequence[str], references: References) -> float:
    """BLEU of the corpus, 0 to 100: Papineni et al. 2002, as sacrebleu computes it by default (Post 2018).

    Four-grams, tokens by the rules "13a", exponential smoothing, case kept.
    """
    from sacrebleu.metrics import BLEU

    _check(outputs, references)
    return float(BLEU(force=True).corpus_score(list(outputs), _streams(references)).score)


def chrf(outputs: Sequence[str], references: References) -> float:
    """chrF2 of the corpus, 0 to 100: Popovic 2015, as sacrebleu computes it by default.

    Six-grams of characters without white space, recall counting twice as much as precision; of several references
    the one with the best score of its own.
    """
    from sacrebleu.metrics import CHRF

    _check(outputs, references)
    return float(CHRF().corpus_score(list(outputs), _streams(references)).score)


def exact_match(outputs: Sequence[Any], references: Sequence[Sequence[Any]]) -> float:
    """The share of rows whose output is one of the references. Outputs of any kind: text, lists of ids."""
    _check(outputs, references)
    return sum(output in each for output, each in zip(outputs, references, strict=True)) / len(outputs)


def _streams(references: References) -> Any:
    """sacrebleu's form: the first reference of every row, the second of every row, ...; None where there is none."""
    return [list(stream) for stream in zip_longest(*references)]


def _check(outputs: Sequence[Any], references: Sequence[Sequence[Any]]) -> None:
    if not outputs or len(outputs) != len(references) or not all(references):
        raise ValueError(f"{len(outputs)} outputs, and references for {sum(map(bool, references))} rows")
