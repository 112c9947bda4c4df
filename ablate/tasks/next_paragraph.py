"""Whether two paragraphs follow each other: a task on pairs, derived from running text."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from ablate.data.corpora import SPLITS, corpus_of
from ablate.data.labelled import Example
from ablate.errors import UserError, within
from ablate.registry import register
from ablate.spec import DataSpec
from ablate.tasks.classify import ClassifiedTexts

KJV_REFERENCE = re.compile(r"^\d?[A-Za-z]+\d+:\d+ ", re.MULTILINE)  # it would tell what follows
BREAK = re.compile(r"\n\s*\n")
CLASSES = ("random", "follows")


@register("task", "next_paragraph", paper="Devlin et al. 2019, arXiv:1810.04805, section 3.1 (NSP)", form="classify")
class NextParagraph(ClassifiedTexts):
    """Is the second paragraph the one that follows the first? A derived task: no one labelled it.

    Every two neighbours of a document are a pair; in half of the pairs of a split, rounded down, the second is
    replaced by one drawn from another document of the split, or, where there is one document, from another place.
    `unit` says what a paragraph is: `lines`, or `blocks` between blank lines; of the King James text, whose documents
    are chapters, a line is a verse, and its reference is taken off. Documents are split as in `lm`; the draws belong
    to the data, not to the seed. `fewest` words make a paragraph; shorter ones are skipped.
    Differs from the paper: paragraphs for segments of many sentences, no masked words, negatives that stay the same
    in every epoch.
    """

    corpora: ClassVar[tuple[str, ...]] = ("kjv",)
    pairs = True

    def __init__(
        self,
        *,
        unit: Literal["lines", "blocks"] = "lines",
        fewest: int = 3,
        causal: bool = False,
        begin_first: bool = True,
        end_last: bool = False,
    ):
        within("task 'next_paragraph': fewest", fewest, 1)
        self.unit, self.fewest = unit, fewest
        self.causal, self.begin_first, self.end_last = causal, begin_first, end_last

    def reading(self) -> list[Any]:
        return [self.unit, self.fewest]

    def examples(self, data: DataSpec) -> list[Example]:
        documents: dict[str, list[list[str]]] = {split: [] for split in SPLITS}
        for split, text in corpus_of(data).documents():
            found = paragraphs(KJV_REFERENCE.sub("", text) if data.corpus == "kjv" else text, self.unit, self.fewest)
            if len(found) > 1:
                documents[split].append(found)
        where = str(data.path or data.hub or data.corpus)
        return [each for split in SPLITS for each in pairs_of(documents[split], split, where, data.content)]

    def facts(self) -> dict[str, Any]:
        facts = super().facts()
        return {"derived": f"pairs of neighbouring {self.unit} of running text, half of them replaced", **facts}


def paragraphs(text: str, unit: str, fewest: int) -> list[str]:
    """The paragraphs of a document that have so many words."""
    parts = BREAK.split(text) if unit == "blocks" else text.split("\n")
    return [" ".join(words) for part in parts if len(words := part.split()) >= fewest]


def pairs_of(documents: Sequence[Sequence[str]], split: str, where: str, key: str) -> Iterable[Example]:
    """The pairs of a split's documents. Raises `UserError` where there is nothing to draw from."""
    places = [(d, p) for d, document in enumerate(documents) for p in range(len(document) - 1)]
    if len(places) < 2:
        raise UserError(
            f"{where}: the {split} split has {len(places)} pairs of paragraphs: there must be two at least"
        )
    seed = int.from_bytes(hashlib.blake2b(f"{key}/{split}".encode(), digest_size=8).digest(), "little")
    draw = np.random.default_rng(seed)
    replaced = set(draw.permutation(len(places))[: len(places) // 2].tolist())
    every = [(d, p) for d, document in enumerate(documents) for p in range(len(document))]
    for number, (d, p) in enumerate(places):
        second, label = documents[d][p + 1], CLASSES[1]
        if number in replaced:
            second, label = _other(documents, every, d, p, draw), CLASSES[0]
        yield Example(split, f"{where}: document {d + 1}, paragraph {p + 1}", (documents[d][p], second), label)


def _other(
    documents: Sequence[Sequence[str]], every: Sequence[tuple[int, int]], d: int, p: int, draw: np.random.Generator
) -> str:
    """A paragraph that does not follow this one: of another document, where there is one."""
    for _ in range(100):
        other, q = every[int(draw.integers(len(every)))]
        if (other != d or len(documents) == 1) and documents[other][q] not in documents[d][p : p + 2]:
            return documents[other][q]
    raise UserError(f"the text repeats itself: no paragraph can be told from {documents[d][p + 1]!r:.60}")
