"""Classification of texts: what a batch holds, that padding counts nothing, what is measured and refused."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import new_results, plan_of, train

from ablate import registry
from ablate.data.labelled import Example
from ablate.errors import SpecError, UserError
from ablate.metrics_labels import class_metrics, value_metrics
from ablate.run.ledger import Ledger
from ablate.spec import ArchSpec, DataSpec, TrainSpec, TrialSpec, parse
from ablate.tasks.classify import LabelMeter, kept_lengths, label_of
from ablate.tasks.regress import number_of
from ablate.words_baselines import bags_of_words, majority, ridge

WORDS = "lorem ipsum dolor sit amet consectetur adipiscing elit sed do".split()


def row_of(n: int) -> tuple[str, str]:
    """Rows of 1 to 9 words; those with an odd number of them are `odd`."""
    words = [WORDS[(n * 7 + k) % len(WORDS)] for k in range(1 + n % 9)]
    return f"{' '.join(words)} {n}", "odd" if len(words) % 2 else "even"


def table(folder: Path, rows: list[tuple[Any, ...]], columns: str = "text,label") -> Path:
    file = folder / "rows.csv"
    file.write_text("\n".join([columns, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return file


def opened(file: Path, cache: Path, task: Any = "classify", **data: Any) -> Any:
    tree = {"path": str(file), "task": task, "tokenizer": "words", "seq_len": 12, "valid": 0.2, "test": 0.2, **data}
    made = registry.make("task", parse(DataSpec, tree).task)
    made.open(type(made).resolve(parse(DataSpec, tree), Path()), cache)
    return made


def trial_of(file: Path, task: str, arch: dict[str, Any]) -> TrialSpec:
    """60 steps of 16 rows."""
    data = {"task": task, "path": str(file), "tokenizer": "characters", "seq_len": 64, "valid": 0.2, "test": 0.2}
    train = {"batch_tokens": 1024, "tokens": 61440, "lr": 3e-3, "precision": "fp32", "eval_points": 3}
    train |= {"diverge_above": 100.0}  # the rows of the first batch may be the easy ones
    sizes = {"d_model": 16, "n_heads": 2, "depth": 1, **arch}
    made = parse(TrialSpec, {"arch": sizes, "data": data, "train": {**train, "eval_tokens": 6400}})
    return replace(made, data=registry.load(registry.find("task", task)).resolve(made.data, Path()))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return table(tmp_path, [row_of(n) for n in range(100)])


def model_of(task: Any, **arch: Any) -> Any:
    head = {} if "model" in arch else {"head": "classify"}
    made = parse(ArchSpec, {"d_model": 16, "n_heads": 2, "depth": 1, **head, **arch})
    return task.build(made, 0, 0.0).double().eval()


# ---- batches


def test_a_row_is_a_start_the_text_and_a_separator(rows: Path, token_cache: Path) -> None:
    task = opened(rows, token_cache, {"name": "classify", "end_last": True}, tokenizer="characters", seq_len=99)
    tokenizer = registry.make("tokenizer", task.data.tokenizer)
    tokenizer.restore(json.loads((token_cache / "tokens" / task.vocabulary / "tokenizer.json").read_text()))
    texts = dict(map(row_of, range(100)))
    seen = set()
    for split in ("train", "valid", "test"):
        for row in range(len(task.labels[split])):
            first, *ids, last = task.packed(split, row).tolist()
            assert (first, last) == (task.specials.start, task.specials.separator)
            text = next(text for text in texts if tokenizer.encode(text).tolist() == ids)
            assert task.kept.meta["classes"][task.labels[split][row]] == texts[text]
            seen.add(text)
    assert len(seen) == 100


def test_a_pair_has_a_separator_between_and_loses_of_its_longer_text(tmp_path: Path, token_cache: Path) -> None:
    pairs = [(f"{'ABC'[n % 3]} " * (n % 10) + f"{n}", f"{'xyz'[n % 3]} " * 3, n % 2) for n in range(60)]
    task = opened(
        table(tmp_path, pairs, "first,second,label"),
        token_cache,
        {"name": "classify", "text": "first", "pair": "second"},
        seq_len=9,
        tokenizer={"name": "words", "vocab": 80},
    )
    separator, start = task.specials.separator, task.specials.start
    shapes = set()
    for row in range(len(task.labels["train"])):
        first, *ids = task.packed("train", row).tolist()
        at = ids.index(separator)
        assert first == start
        assert len(set(ids[at + 1 :])) == 1 and not set(ids[:at]) & set(ids[at + 1 :])
        shapes.add((at, len(ids) - at - 1))
    assert shapes == {(n, 3) for n in range(1, 5)}  # room for 7: of up to 10 and 3 tokens, 4 and 3 are left
    assert task.facts()["train_rows_truncated"] == sum(task._whole_lengths("train") > 7) > 0


def test_the_longer_text_is_cut_a_token_at_a_time() -> None:
    def by_hand(a: int, b: int, room: int) -> list[int]:
        while a + b > room:
            a, b = (a - 1, b) if a > b else (a, b - 1)
        return [a, b]

    for room in range(2, 9):
        for a in range(9):
            for b in range(9):
                assert kept_lengths([a, b], room) == by_hand(a, b, room), (a, b, room)
    assert kept_lengths([9], 4) == [4] and kept_lengths([3], 4) == [3]


def test_every_row_comes_once_an_epoch_beside_others_of_its_length(rows: Path, token_cache: Path) -> None:
    task = opened(rows, token_cache)
    assert task.train_tokens == 60 * 12
    batches = task.batches(TrainSpec(batch_tokens=10 * 12), 0)
    epoch = [batches[step] for step in range(6)]
    drawn = sorted(tuple(row[row != task.specials.pad].tolist()) for batch in epoch for row in batch.inputs[0])
    assert drawn == sorted(tuple(task.packed("train", row).tolist()) for row in range(60))
    share = sum(int(batch.marks["valid_BT"].sum()) for batch in epoch) / sum(b.inputs[0].numel() for b in epoch)
    assert share > 0.85, "rows of one length are not together"


def test_a_batch_depends_on_data_seed_and_step_alone(rows: Path, token_cache: Path) -> None:
    recipe = TrainSpec(batch_tokens=48)
    one, same = (opened(rows, token_cache).batches(recipe, 3) for _ in range(2))
    other = opened(rows, token_cache).batches(recipe, 4)
    same[7]
    assert torch.equal(one[40].inputs[0], same[40].inputs[0])
    assert not torch.equal(one[40].inputs[0], other[40].inputs[0])


MODELS: dict[str, dict[str, Any]] = {
    **{
        f"pool {pool}": {"head": {"name": "classify", "pool": pool}} for pool in ("mean", "max", "first", "attention")
    },
    "bert": {"embedding": "bert", "residual": "post"},
    "bag": {"order": "f", "position": "none"},
    "kim_cnn": {"model": "kim_cnn"},
}


@pytest.mark.parametrize("arch", MODELS.values(), ids=MODELS)
def test_a_padded_batch_is_its_single_rows(arch: dict[str, Any], rows: Path, token_cache: Path) -> None:
    _same_alone(opened(rows, token_cache), arch)


def test_a_padded_batch_of_a_causal_model_is_its_single_rows(rows: Path, token_cache: Path) -> None:
    task = opened(rows, token_cache, {"name": "classify", "causal": True, "end_last": True})
    assert task.shape["causal"]
    _same_alone(task, {"head": {"name": "classify", "pool": "last"}})


def _same_alone(task: Any, arch: dict[str, Any]) -> None:
    model = model_of(task, **arch)
    together = task.batch("train", range(20))
    assert not together.marks["valid_BT"].all()
    alone = torch.cat([task.batch("train", [row]).nll(model) for row in range(20)])
    assert torch.allclose(together.nll(model), alone, rtol=0, atol=1e-9)


def test_an_empty_text_is_a_row_like_others(tmp_path: Path, token_cache: Path) -> None:
    made = [row_of(n) for n in range(60)] + [('""', "odd"), ('" "', "even")]
    for begin in (True, False):
        task = opened(table(tmp_path, made), token_cache, {"name": "classify", "begin_first": begin})
        assert task.facts()["empty_rows"] == 2
        for split in ("train", "valid", "test"):
            batch = task.batch(split, range(len(task.labels[split])))
            assert batch.nll(model_of(task)).isfinite().all()


# ---- training, stages


def test_a_trial_learns_and_its_record_has_the_metrics(rows: Path, ledger: Ledger) -> None:
    trial = trial_of(rows, "classify", {"head": "classify"})
    record = train(ledger, trial).record()
    assert record is not None and record["status"] == "finished", record
    assert record["metric"]["name"] == "accuracy"
    for prefix in ("", "train_", "test_"):
        assert {f"{prefix}{name}" for name in ("loss", "accuracy", "f1_macro", "matthews")} <= record[
            "metrics"
        ].keys()
    assert record["metrics"]["train_accuracy"] > 0.7
    assert {row["metric"] for row in record["data"]["baselines"]} == {"accuracy"}


STAGES = """\
study: stages
base:
  arch: {d_model: 16, n_heads: 2, depth: 1, position: learned}
  data: {seq_len: 16, tokenizer: characters}
  train: {tokens: 512, batch_tokens: 128, eval_points: 1, eval_tokens: 128, final_eval_tokens: 128}
stages:
  pretrain: {data.corpus: kjv}
  classes:
    data.task: {name: classify, causal: true}
    data.path: rows.csv
    data.valid: 0.2
    arch.head: {name: classify, pool: last}
"""


def test_a_stage_has_the_tokenizer_of_the_one_before(rows: Path, tmp_path: Path, token_cache: Path) -> None:
    ledger = new_results(tmp_path / "results", token_cache)
    first, second = plan_of(STAGES, tmp_path, token_cache).trials
    assert second.spec.data.vocabulary
    files = []
    for planned in (first, second):
        record = train(ledger, planned.spec).record()
        assert record is not None and record["status"] == "finished", record
        files.append(token_cache / "tokens" / record["data"]["fingerprint"] / "tokenizer.json")
    assert files[0].read_text() == files[1].read_text() and files[0] != files[1]
    assert record["begun"]["taken"] > 5 and record["begun"]["fresh"] == ["head.project.weight", "head.project.bias"]


# ---- what is measured


def test_class_metrics_by_hand() -> None:
    """Of classes 0, 1, 2: precision 1, 1/2, 1/3, recall 1/2, 1/2, 1; correlation (6*3 - 12) / sqrt(22 * 22)."""
    labels, told = np.array([0, 0, 1, 1, 2, 2][:5]), np.array([0, 2, 1, 2, 2])
    found = class_metrics(labels, told)
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["f1_macro"] == pytest.approx((2 / 3 + 2 / 3 + 1 / 2) / 3)
    # Gorodkin: (c s - sum p t) / sqrt((s^2 - sum p^2)(s^2 - sum t^2)), s = 5 rows, c = 3 right
    assert found["matthews"] == pytest.approx((3 * 5 - (2 + 2 + 3)) / math.sqrt((25 - 11) * (25 - 9)))
    assert class_metrics(np.array([0, 1]), np.array([1, 1])) == {
        "accuracy": 0.5,
        "f1_macro": pytest.approx(1 / 3),
        "matthews": 0.0,
    }


def test_value_metrics_by_hand() -> None:
    found = value_metrics(np.array([0.0, 1.0, 2.0]), np.array([0.0, 4.0, 2.0]))
    assert found == {
        "rmse": pytest.approx(math.sqrt(3)),
        "pearson": pytest.approx(2 / math.sqrt(2 * 8)),
        "spearman": pytest.approx(0.5),
    }
    assert value_metrics(np.array([0.0, 1.0]), np.array([1.0, 1.0]))["pearson"] == 0


def test_the_meter_puts_batches_together() -> None:
    class Model:
        def log_probs(self, p_BC: torch.Tensor) -> torch.Tensor:
            return p_BC.log()

    from ablate.tasks.base import Batch

    meter = LabelMeter()
    meter.add(Model(), Batch((torch.tensor([[0.5, 0.5 - 1e-9], [0.2, 0.8]]),), torch.tensor([0, 0])))
    meter.add(Model(), Batch((torch.tensor([[0.25, 0.75]]),), torch.tensor([1])))
    found = meter.result()
    assert found["loss"] == pytest.approx(-(math.log(0.5) + math.log(0.2) + math.log(0.75)) / 3)
    assert found["accuracy"] == pytest.approx(2 / 3)


def test_baselines_by_hand() -> None:
    labels = {"train": np.array([1, 1, 0]), "valid": np.array([1, 0, 0, 0]), "test": np.array([1, 1])}
    told = [(row["name"], row["split"], row["value"]) for row in majority(labels)]
    assert told == [("majority class", "valid", 0.25), ("majority class", "test", 1.0)]
    texts = {
        "train": [("good one",), ("bad one",)] * 4,
        "valid": [("so good",), ("so bad",)],
        "test": [("good",), ("good",)],
    }
    labels = {"train": np.array([1, 0] * 4), "valid": np.array([1, 0]), "test": np.array([1, 0])}
    assert [row["value"] for row in bags_of_words(texts, labels)] == [1.0, 0.5, 1.0, 0.5]
    values = {"train": np.array([3.0, 1.0] * 4), "valid": np.array([3.0, 1.0]), "test": np.array([3.0, 3.0])}
    found = {(row["name"], row["metric"]): row["value"] for row in ridge(texts, values) if row["split"] == "valid"}
    assert found["mean of the training split", "rmse"] == pytest.approx(1)
    assert found["bag of words (tf-idf, ridge regression)", "pearson"] == pytest.approx(1)


# ---- real numbers


def test_regression_reports_the_numbers_own_unit(tmp_path: Path, token_cache: Path) -> None:
    made = [(row_of(n)[0], 10 + 4 * (n % 9)) for n in range(100)]
    task = opened(table(tmp_path, made), token_cache, "regress")
    model = model_of(task)
    mean, deviation = task.kept.meta["mean"], task.kept.meta["deviation"]
    own = task.labels["train"] * deviation + mean
    assert set(own.round(6)) <= {10.0 + 4 * n for n in range(9)} and own.std() == pytest.approx(deviation)
    batch = task.batch("train", range(20))
    told_B = model.head.logits(*model(*batch.inputs, **batch.marks))[:, 0]
    error = (told_B.detach().numpy() - task.labels["train"][:20]) ** 2
    loss, plain = task.objective(model, batch, TrainSpec())
    assert loss.item() == pytest.approx(error.mean()) == plain.item()
    meter = task.meter("train", True)
    for part in batch.split(7):
        meter.add(model, part)
    found = meter.result()
    assert found["loss"] == pytest.approx(error.mean())
    assert found["rmse"] == pytest.approx(math.sqrt(error.mean()) * deviation)
    assert task.facts()["baselines"][0]["metric"] == "rmse"


@pytest.mark.parametrize("arch", [{"head": "classify"}, {"model": "kim_cnn"}], ids=["tower", "kim_cnn"])
def test_a_regression_trial_learns(tmp_path: Path, ledger: Ledger, arch: dict[str, Any]) -> None:
    file = table(tmp_path, [(row_of(n)[0], n % 9) for n in range(100)])
    record = train(ledger, trial_of(file, "regress", arch)).record()
    assert record is not None and record["status"] == "finished", record
    assert record["metrics"]["train_pearson"] > 0.8 and record["metric"]["name"] == "pearson"


# ---- mistakes


def test_a_class_that_training_has_not_is_named_with_its_row(tmp_path: Path, token_cache: Path) -> None:
    for split, rows in (("train", "a,x\nb,y\n"), ("valid", "a,x\n"), ("test", "a,x\nb,z\n")):
        (tmp_path / f"{split}.csv").write_text("text,label\n" + rows)
    with pytest.raises(UserError, match=r"test\.csv:3: class 'z' is in the test split.*whose 2 classes are x, y"):
        opened(tmp_path, token_cache)


WRONG = {
    "one class": ([("a b", "x")] * 40, "the training split has one class, 'x'"),
    "no label": ([("a b", "x"), ("a c", "")] * 30, r"rows\.csv:3: the label is '', must be text or an integer"),
}


@pytest.mark.parametrize(("made", "problem"), WRONG.values(), ids=WRONG)
def test_rows_that_cannot_be_classified(made: Any, problem: str, tmp_path: Path, token_cache: Path) -> None:
    with pytest.raises(UserError, match=problem):
        opened(table(tmp_path, made), token_cache)


def test_labels_are_text_or_integers_and_numbers_are_numbers() -> None:
    def of(label: Any) -> Example:
        return Example("train", "f.csv:3", ("text",), label)

    assert label_of(of(" yes ")) == "yes" and label_of(of(4)) == 4
    assert number_of(of("-2.5")) == -2.5 and number_of(of(3)) == 3
    for label in (None, 0.5, [1]):
        with pytest.raises(UserError, match=r"f\.csv:3: the label is .* must be text or an integer"):
            label_of(of(label))
    for label in (None, "warm", "nan", "inf", True):
        with pytest.raises(UserError, match=r"f\.csv:3: the label is .* must be a number"):
            number_of(of(label))


def test_settings_without_effect_or_room(rows: Path, token_cache: Path) -> None:
    with pytest.raises(SpecError, match=r"column: has no effect: set the option `text`"):
        opened(rows, token_cache, column="body")
    with pytest.raises(SpecError, match=r"seq_len: 1 leaves no room for a text: it must be at least 2"):
        opened(rows, token_cache, seq_len=1)
    with pytest.raises(SpecError, match="is missing: task 'classify' has no data of its own"):
        opened(rows, token_cache, path=None)
    task = opened(rows, token_cache, {"name": "classify", "begin_first": False})
    with pytest.raises(SpecError, match="'first' reads the first token: set begin_first"):
        model_of(task, head={"name": "classify", "pool": "first"})
    with pytest.raises(SpecError, match=r"does not fit the text: .* unknown"):
        opened(rows, token_cache, tokenizer={"name": "words", "vocab": 5})
