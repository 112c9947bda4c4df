"""The formal languages as a task: batches, metrics, settings."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Cli
from runs import SMALL, train
from torch import Tensor, nn

from ablate.build import build_model
from ablate.data.languages import LANGUAGES
from ablate.errors import SpecError
from ablate.run.ledger import Ledger
from ablate.spec import DataSpec, TrainSpec, TrialSpec, parse
from ablate.tasks.base import Batch
from ablate.tasks.formal import EPOCH, Formal

NONE = Path()


def data_of(language: str, seq_len: int = 40, **options: Any) -> DataSpec:
    tree = {"task": {"name": "formal", "language": language, **options}, "seq_len": seq_len}
    return Formal.resolve(parse(DataSpec, tree), NONE)


def task_of(language: str, seq_len: int = 40, **options: Any) -> Formal:
    data = data_of(language, seq_len, **options)
    task = Formal(**dict(data.task.options))
    task.open(data, NONE)
    return task


def same(one: Batch, two: Batch) -> bool:
    if one.inputs[0].shape != two.inputs[0].shape:
        return False
    assert one.counts is not None and two.counts is not None
    return all(
        torch.equal(*pair)
        for pair in ((one.inputs[0], two.inputs[0]), (one.targets, two.targets), (one.counts, two.counts))
    )


def seq_len_of(language: str) -> int:
    return 4 if language == "modular_addition" else 80


class Told(nn.Module):
    """A model that says what it is told: (B, T, V) probabilities."""

    def __init__(self, p_BTV: Tensor):
        super().__init__()
        self.p_BTV = p_BTV.double()

    def log_probs(self, tokens_BT: Tensor) -> Tensor:
        assert tokens_BT.shape == self.p_BTV.shape[:2]
        return self.p_BTV.log()


# ---- batches


@pytest.mark.parametrize("language", LANGUAGES)
def test_batches_follow_from_seed_and_step_alone(language: str) -> None:
    seq_len = seq_len_of(language)
    train_spec = TrainSpec(batch_tokens=8 * seq_len)
    one, two = (task_of(language, seq_len).batches(train_spec, 3) for _ in range(2))
    first = [one[step] for step in range(5)]
    assert all(same(two[step], first[step]) for step in (4, 0, 3, 1, 2))
    assert len(first[0]) == 8 and not same(first[0], first[1])
    assert not same(task_of(language, seq_len).batches(train_spec, 4)[0], first[0])


@pytest.mark.parametrize("language", LANGUAGES)
def test_held_out_strings_are_fixed_and_a_smaller_sample_is_of_the_same(language: str) -> None:
    seq_len = seq_len_of(language)
    task = task_of(language, seq_len)
    for split in task.splits:
        many = [row for batch in task.held_out(split, 20 * seq_len, 7) for row in batch.split(1)]
        again = [row for batch in task.held_out(split, 20 * seq_len, 20) for row in batch.split(1)]
        assert len(many) == len(again) == 20
        trimmed = [[words(row) for row in rows] for rows in (many, again)]
        assert trimmed[0] == trimmed[1]
        if language != "modular_addition":
            few = [words(row) for batch in task.held_out(split, 5 * seq_len, 2) for row in batch.split(1)]
            assert few == trimmed[0][:5]


def words(row: Batch) -> tuple[list[int], list[int]]:
    """What a row of one string scores, without what fills it up."""
    assert row.counts is not None
    stop = int(row.counts[0].nonzero().max()) + 1
    return row.inputs[0][0, :stop].tolist(), row.targets[0][row.counts[0]].tolist()


def test_test_strings_are_longer_than_all_others() -> None:
    task = task_of("parity", 30, train_length=10)
    longest = {}
    for split in task.splits:
        sizes = [len(words(row)[0]) for batch in task.held_out(split, 6000, 50) for row in batch.split(1)]
        longest[split] = min(sizes), max(sizes)
    assert longest == {"train": (1, 10), "valid": (1, 10), "test": (11, 30)}
    batches = task.batches(TrainSpec(batch_tokens=300), 0)
    assert max(batches[step].targets.shape[1] for step in range(20)) == 10


def test_an_epoch_of_sums_has_each_once() -> None:
    task = task_of("modular_addition", 4, modulus=11)
    pairs = task.language.pairs("train")  # type: ignore[attr-defined]
    assert task.train_tokens == 4 * len(pairs)
    rows = 8
    batches = task.batches(TrainSpec(batch_tokens=4 * rows), 0)
    seen = [tuple(row.tolist()) for step in range(len(pairs) // rows) for row in batches[step].inputs[0][:, ::2]]
    assert len(set(seen)) == len(seen) and set(seen) <= {tuple(pair) for pair in pairs.tolist()}
    held_out = {
        tuple(row.tolist())
        for split in ("valid", "test")
        for batch in task.held_out(split, 10_000, 16)
        for row in batch.inputs[0][:, ::2]
    }
    assert len(held_out) == 121 - len(pairs) and not held_out & set(seen)


# ---- metrics


def test_metrics_by_hand() -> None:
    """Parity: of one string of 2 bits all is right, of one of 3 bits one of three answers."""
    task = task_of("parity", 8, train_length=2)
    targets = torch.tensor([[0, 1, 0], [1, 1, 0]])
    counts = torch.tensor([[True, True, False], [True, True, True]])
    p_one = torch.tensor([[0.1, 0.8, 0.99], [0.3, 0.6, 0.9]], dtype=torch.float64)
    meter = task.meter("test", final=True)
    meter.add(Told(torch.stack((1 - p_one, p_one), -1)), Batch((targets,), targets, counts))
    found = meter.result()
    loss = -sum(map(math.log, (0.9, 0.8, 0.3, 0.6, 0.1))) / 5
    assert found["loss"] == pytest.approx(loss, rel=1e-12)
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["exact_match"] == 0.5
    assert {name: value for name, value in found.items() if "len" in name} == pytest.approx(
        {"accuracy_len_1_2": 1.0, "accuracy_len_3_4": 1 / 3}
    )
    assert not any("len" in name for name in task.meter("test", final=False).result())


def test_brackets_are_answered_among_closing_ones() -> None:
    """`(0 (1 1) 0)`: the openings and the end count for the loss, the likeliest closing bracket is the answer."""
    task = task_of("dyck", 8, train_length=2)
    opening0, opening1, closing0, closing1, start, end = range(6)
    inputs = torch.tensor([[start, opening0, opening1, closing1, closing0]])
    targets = torch.tensor([[opening0, opening1, closing1, closing0, end]])
    p_BTV = torch.full((1, 5, 6), 0.02)
    for at, (answer, chance) in enumerate(
        [(opening1, 0.9), (opening0, 0.9), (opening0, 0.88), (closing1, 0.9), (start, 0.9)]
    ):
        p_BTV[0, at, answer] = chance
    p_BTV[0, 2, closing1] = 0.04
    batch = Batch((inputs,), targets, torch.ones(1, 5, dtype=torch.bool))
    meter = task.meter("valid", final=True)
    meter.add(Told(p_BTV), batch)
    found = meter.result()
    assert found["accuracy"] == 0.5 and found["exact_match"] == 0.0  # the inner one right, the outer one wrong
    assert found["loss"] == pytest.approx(-(4 * math.log(0.02) + math.log(0.04)) / 5, rel=1e-6)
    assert found["accuracy_len_3_4"] == 0.5


def test_bins_of_lengths_end_where_rows_end() -> None:
    task = task_of("parity", 30, train_length=2)
    meter = task.meter("test", final=True)
    for batch in task.held_out("test", 30_000, 100):
        p_BTV = nn.functional.one_hot(batch.targets, 2) * 0.98 + 0.01
        meter.add(Told(p_BTV), batch)
    bins = [name for name in meter.result() if "len" in name]
    assert bins == [*(f"accuracy_len_{low}_{low + 1}" for low in range(3, 15, 2)), "accuracy_len_15_30"]
    assert meter.result()["exact_match"] == 1.0


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_model_that_knows_is_right_and_filling_is_not_scored(language: str) -> None:
    task = task_of(language, seq_len_of(language))
    for split in task.splits:
        meter = task.meter(split, final=True)
        for batch in task.held_out(split, 4000, 16):
            assert batch.counts is not None
            right = nn.functional.one_hot(batch.targets, task.vocab) + 1e-6
            wrong = torch.ones_like(right)
            meter.add(Told(torch.where(batch.counts[..., None], right, wrong)), batch)
        found = meter.result()
        assert found["accuracy"] == found["exact_match"] == 1.0 and abs(found["loss"]) < 1e-5


def test_filling_changes_nothing() -> None:
    task = task_of("copy", 16, train_length=4)
    model = build_model(parse(TrialSpec, {"arch": {"d_model": 16, "n_heads": 2, "depth": 1}}).arch, task.vocab, 16)
    model.double().eval()
    batch = task.batches(TrainSpec(batch_tokens=16 * 12), 0)[0]
    alone = task.meter("valid", final=True)
    together = task.meter("valid", final=True)
    with torch.no_grad():
        together.add(model, batch)
        for row in batch.split(1):
            assert row.counts is not None
            stop = int(row.counts[0].nonzero().max()) + 1
            alone.add(model, Batch((row.inputs[0][:, :stop],), row.targets[:, :stop], row.counts[:, :stop]))
    assert together.result() == pytest.approx(alone.result(), abs=1e-9)


# ---- facts and settings


@pytest.mark.parametrize(
    ("language", "chance"), [("parity", 1 / 2), ("dyck", 1 / 2), ("modular_addition", 1 / 97), ("anbn", 1 / 3)]
)
def test_facts_have_the_chance_accuracy(language: str, chance: float) -> None:
    facts = task_of(language, seq_len_of(language)).facts()
    assert facts["baselines"][0] == {"name": "chance", "metric": "accuracy", "value": pytest.approx(chance)}
    assert 0 < facts["baselines"][1]["value"] < 1


def test_the_baseline_of_blocks_repeats_the_last_letter() -> None:
    """Of n scored targets of a^n b^n all but the end are b: (n - 1) / n, weighted by n."""
    task = task_of("anbn", 80, train_length=4)
    _, simple = task.facts()["baselines"]
    assert simple["value"] == pytest.approx((0 + 1 + 2 + 3) / (1 + 2 + 3 + 4), abs=0.02)


def test_an_epoch_of_endless_strings() -> None:
    task = task_of("parity", 40)
    assert task.train_tokens == EPOCH * 40
    assert task.facts()["train_lengths"] == [1, 20] and task.facts()["test_lengths"] == [21, 40]


def test_defaults_spelled_out_are_the_same_task() -> None:
    plain, spelled = data_of("dyck"), data_of("dyck", brackets=2, train_length=20)
    assert plain == spelled and plain.content
    others = [
        data_of("dyck", brackets=3),
        data_of("dyck", depth=4),
        data_of("parity"),
        data_of("parity", every=False),
    ]
    assert len({each.content for each in [plain, *others]}) == 5


@pytest.mark.parametrize(
    ("tree", "place", "words"),
    [
        ({"tokenizer": "bpe"}, ("tokenizer",), "'bpe' has no effect"),
        ({"corpus": "kjv"}, ("corpus",), "'kjv' has no effect: task 'formal' draws its strings"),
        ({"path": "x.txt"}, ("path",), "has no effect"),
        ({"valid": 0.1}, ("valid",), "0.1 has no effect"),
        ({"seq_len": 20}, ("seq_len",), "20 holds strings up to length 20; .* they need 21 or more"),
        ({"task": {"name": "formal", "depth": 3}}, ("task", "depth"), "3 has no effect: language 'parity'"),
        ({"task": {"name": "formal", "language": "modular_addition"}}, ("seq_len",), "128 must be 4"),
    ],
)
def test_settings_without_effect_are_refused(tree: dict[str, Any], place: tuple[str, ...], words: str) -> None:
    with pytest.raises(SpecError, match=words) as error:
        Formal.resolve(parse(DataSpec, {"task": "formal", **tree}), NONE)
    assert error.value.path == place


def test_symbols_are_told() -> None:
    assert task_of("copy", 80).decode([1, 0, 8, 1, 0, 9]) == "1 0 | 1 0 <end>"
    assert task_of("dyck").decode([4, 0, 1, 3, 2, 5]) == "<start> (0 (1 1) 0) <end>"


@pytest.mark.parametrize("language", ["parity", "modular_addition"])
def test_a_trial(language: str, ledger: Ledger) -> None:
    short = {"train_length": 4} if language == "parity" else {"modulus": 11}
    tree: dict[str, Any] = {"data": {"task": {"name": "formal", "language": language, **short}}}
    for path, value in SMALL.items():
        section, key = path.split(".")
        tree.setdefault(section, {})[key] = value
    tree["data"] |= {"corpus": None, "seq_len": 8 if language == "parity" else 4}
    made: TrialSpec = parse(TrialSpec, tree)
    made = replace(made, data=Formal.resolve(made.data, NONE))
    record = train(ledger, made).record()
    assert record is not None and record["status"] == "finished"
    metrics = record["metrics"]
    assert {"loss", "accuracy", "exact_match", "test_accuracy", "train_loss"} <= set(metrics)
    assert ("test_accuracy_len_5_8" in metrics) == (language == "parity")
    assert record["metric"]["name"] == "accuracy"


def test_the_command_line_refuses_by_place(cli: Cli, tmp_path: Path) -> None:
    grid = tmp_path / "grid.yaml"
    grid.write_text(
        "study: s\nbase:\n  arch: {d_model: 16, n_heads: 2, depth: 1, position: none}\n"
        "  data: {task: {name: formal, language: copy, depth: 3}, seq_len: 64}\nvariants: {a: {}}\n"
    )
    result = cli("plan", grid)
    assert result.returncode == 2
    assert "data.task.depth" in result.stderr and "grid.yaml:4" in result.stderr, result.stderr
