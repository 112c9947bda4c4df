"""Chorales: reading them, the likelihood of chords, rows, transposition, bad files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Cli, shared
from runs import SMALL, train
from torch import Tensor, nn

from ablate.build import build_model
from ablate.data.chorales import END_OF_STEP, START, VOCAB, chords_of, piece_of, pieces_by_split
from ablate.errors import SpecError, UserError
from ablate.run.ledger import Ledger
from ablate.spec import DataSpec, TrainSpec, TrialSpec, parse
from ablate.tasks.base import Batch
from ablate.tasks.music import Music, independent

PIECES = [[[60 + number, 64 + number], [], [55 + number % 7], [60 + number, 64, 67]] for number in range(30)]
SPLIT = {"train": PIECES[:20], "valid": PIECES[20:25], "test": PIECES[25:]}
Write = Callable[..., Path]


def task_of(file: Path, seq_len: int = 32, **options: Any) -> Music:
    data = Music.resolve(
        parse(DataSpec, {"task": {"name": "music", **options}, "path": str(file), "seq_len": seq_len}), Path()
    )
    task = Music(**options)
    task.open(data, Path())
    return task


@pytest.fixture
def chorales(write: Write) -> Path:
    return write(json.dumps(SPLIT), "pieces.json")


class Told(nn.Module):
    """A model that says what it is told: -log p of every target, (B, T)."""

    def __init__(self, nll_BT: Tensor):
        super().__init__()
        self.nll_BT = nll_BT

    def nll(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        return self.nll_BT


def tiny_model(size: int) -> Any:
    arch = parse(TrialSpec, {"arch": {"d_model": 16, "n_heads": 2, "depth": 1, "position": "learned"}}).arch
    return build_model(arch, VOCAB, size).double().eval()


# ---- tokens and likelihood


def test_a_piece_of_two_chords_by_hand(write: Write) -> None:
    """{67, 60} and silence: 67, 60, end, end; -log p is the sum over the four, by two steps."""
    assert piece_of([(67, 60), ()]).tokens.tolist() == [67, 60, END_OF_STEP, END_OF_STEP]
    inputs, targets = piece_of([(67, 60), ()]).read(0, 2)
    assert inputs.tolist() == [START, 67, 60, END_OF_STEP]
    assert targets.tolist() == [67, 60, END_OF_STEP, END_OF_STEP]
    task = task_of(write(json.dumps({**SPLIT, "valid": [[[60, 67, 60], []]]}), "two.json"))
    (batch,) = task.held_out("valid", 1000, 8)
    assert batch.inputs[0].tolist() == [inputs.tolist()] and batch.targets.tolist() == [targets.tolist()]
    meter = task.meter("valid", final=True)
    meter.add(Told(torch.tensor([[0.5, 0.25, 1.0, 2.0]])), batch)
    assert meter.result() == {"loss": 3.75 / 4, "nll_per_step": 3.75 / 2}


def test_the_likelihood_of_all_chords_adds_up_to_one() -> None:
    """Over every set of three pitches, one of them the only possible ordering: sum_S p(S) = 1 if tokens are so."""
    draw = np.random.default_rng(0)
    table = draw.dirichlet(np.ones(4), size=8)  # after a set of those before: end, or one of the pitches 0, 1, 2

    def chance(chord: tuple[int, ...]) -> float:
        found, state = 1.0, 0
        for token in piece_of([chord]).tokens.tolist():
            if token == END_OF_STEP:
                return found * float(ends(state)[3])
            found *= float(ends(state)[token])
            state |= 1 << token
        raise AssertionError

    def ends(state: int) -> np.ndarray:
        """Only pitches below all that are there, as a model that has learned the order says."""
        lowest = min((pitch for pitch in range(3) if state >> pitch & 1), default=3)
        legal = np.array([*(pitch < lowest for pitch in range(3)), True])
        return table[state] * legal / (table[state] * legal).sum()

    sets = [tuple(pitch for pitch in (2, 1, 0) if bits >> pitch & 1) for bits in range(8)]
    assert sum(map(chance, sets)) == pytest.approx(1.0, abs=1e-12)


def test_every_step_is_scored_once_and_rows_do_not_cross_pieces(chorales: Path) -> None:
    task = task_of(chorales, seq_len=5)
    seen: list[int] = []
    rows = [row for batch in task.held_out("valid", 10_000, 3) for row in batch.split(1)]
    for row in rows:
        assert row.counts is not None
        targets = row.targets[row.counts].tolist()
        inputs = row.inputs[0][row.counts].tolist()
        assert len(targets) <= 5 and targets[-1] == END_OF_STEP
        assert inputs[1:] == targets[:-1] and inputs[0] in (START, END_OF_STEP)
        if inputs[0] == START:
            seen.append(START)
        seen += targets
    whole = [token for piece in task.pieces["valid"] for token in (START, *piece.tokens.tolist())]
    assert seen == whole and len(rows) > 5
    meter = task.meter("valid", final=True)
    for batch in task.held_out("valid", 10_000, 3):
        meter.add(Told(torch.ones(batch.targets.shape)), batch)
    assert meter.result() == {"loss": 1.0, "nll_per_step": (len(whole) - 5) / 20}


def test_filling_changes_nothing(chorales: Path) -> None:
    task, model = task_of(chorales, seq_len=7), tiny_model(7)
    alone, together = task.meter("valid", True), task.meter("valid", True)
    with torch.no_grad():
        for batch in task.held_out("valid", 10_000, 100):
            together.add(model, batch)
            for row in batch.split(1):
                assert row.counts is not None
                stop = int(row.counts.sum())
                part = Batch((row.inputs[0][:, :stop],), row.targets[:, :stop], row.counts[:, :stop])
                alone.add(model, part)
    assert together.result() == pytest.approx(alone.result(), abs=1e-9)


def test_independent_pitches_by_hand() -> None:
    """In training 60 sounds in 2 of 2 steps, 64 in 1: p = 3/4, 2/4, and 1/4 for all 126 others."""
    train_piece, valid_piece = piece_of([(60,), (64, 60)]), piece_of([(60, 59)])
    want = -(math.log(3 / 4) + math.log(1 / 4) + math.log(2 / 4) + 125 * math.log(3 / 4))
    assert independent([train_piece], [valid_piece]) == pytest.approx(want, rel=1e-12)


# ---- batches


def test_batches_follow_from_seed_and_step_alone(chorales: Path) -> None:
    spec = TrainSpec(batch_tokens=40)
    one, two = (task_of(chorales, 5, transpose=3).batches(spec, 1) for _ in range(2))
    first = [one[step] for step in range(5)]
    for step in (4, 0, 3, 1, 2):
        assert torch.equal(two[step].inputs[0], first[step].inputs[0])
        assert torch.equal(two[step].targets, first[step].targets)
    other = task_of(chorales, 5, transpose=3).batches(spec, 2)[0]
    assert not torch.equal(other.inputs[0][:, :2], first[0].inputs[0][:, :2])


def test_training_reads_every_step_of_long_pieces(chorales: Path) -> None:
    task = task_of(chorales, seq_len=5)
    batches = task.batches(TrainSpec(batch_tokens=40), 0)
    assert task.train_tokens == 5 * sum(len(list(piece.rows(5))) for piece in task.pieces["train"])
    wanted = {tuple(piece.read(s, s + 1)[1]) for piece in task.pieces["train"] for s in range(piece.steps)}
    seen = set()
    for step in range(60):
        batch = batches[step]
        assert batch.targets.shape[1] <= 5 and batch.counts is not None
        for targets, counts in zip(batch.targets, batch.counts, strict=True):
            chords = chords_of(targets[counts].tolist())
            seen |= {(*chord, END_OF_STEP) for chord in chords}
    assert seen == wanted


def test_transposition_moves_whole_rows_within_the_pitches(write: Write) -> None:
    high = [[[127, 120], [125]]] * 3
    task = task_of(write(json.dumps({**SPLIT, "train": high}), "high.json"), transpose=4)
    batches = task.batches(TrainSpec(batch_tokens=32 * 8), 0)
    shifts = set()
    for step in range(20):
        for row in batches[step].targets.tolist():
            assert row[2] == row[4] == END_OF_STEP and row[0] - row[1] == 7 and row[0] - row[3] == 2
            shifts.add(row[0] - 127)
    assert shifts == {-4, -3, -2, -1, 0}
    assert piece_of([(3, 1)]).shifts(5) == (-1, 5) and piece_of([()]).shifts(5) == (0, 0)
    plain = task_of(write(json.dumps({**SPLIT, "train": high}), "high.json"))
    assert {row[0] for row in plain.batches(TrainSpec(batch_tokens=64), 0)[0].targets.tolist()} == {127}
    held = task.held_out("valid", 10_000, 100)
    assert [batch.targets.tolist() for batch in held] == [
        batch.targets.tolist() for batch in plain.held_out("valid", 10_000, 100)
    ]


# ---- files


def test_rests_unisons_and_whole_floats(write: Write) -> None:
    file = write(json.dumps({**SPLIT, "test": [[[60, -1, 60.0, 72], [-1, -1]]]}), "voices.json")
    (piece,) = pieces_by_split(task_of(file).data)["test"]
    assert piece.tokens.tolist() == [72, 60, END_OF_STEP, END_OF_STEP]


def test_a_list_is_split_by_what_the_pieces_are(write: Write) -> None:
    task, twice = (task_of(write(json.dumps(pieces), f"{len(pieces)}.json")) for pieces in (PIECES, PIECES * 2))
    parts = [{piece.tokens.tobytes() for piece in twice.pieces[split]} for split in task.splits]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 30  # equal pieces are never on two sides
    assert sum(map(len, task.pieces.values())) == 30


def test_three_files_are_the_splits(write: Write, chorales: Path) -> None:
    files = {split: str(write(json.dumps(pieces), f"{split}.json")) for split, pieces in SPLIT.items()}
    data = Music.resolve(parse(DataSpec, {"task": "music", "path": files}), Path())
    found, whole = pieces_by_split(data), task_of(chorales).pieces
    for split, pieces in found.items():
        assert [piece.tokens.tolist() for piece in pieces] == [piece.tokens.tolist() for piece in whole[split]]


BAD: dict[str, tuple[Any, str]] = {
    "pitch": (
        {**SPLIT, "valid": [[[60]], [[60], [61, 128]]]},
        r"valid: piece 2, step 2: 128 is no pitch: .* 0 to 127",
    ),
    "negative": ({**SPLIT, "train": [[[-2]]]}, "train: piece 1, step 1: -2 is no pitch"),
    "fraction": ({**SPLIT, "train": [[[60.5]]]}, "60.5 is no pitch: must be whole"),
    "word": ({**SPLIT, "train": [[["c4"]]]}, "'c4' is no pitch"),
    "true": ({**SPLIT, "train": [[[True]]]}, "True is no pitch"),
    "empty piece": ({**SPLIT, "test": [[[60]], []]}, "test: piece 2: has no time steps"),
    "flat": ({**SPLIT, "train": [[60, 62]]}, "train: piece 1, step 1: 60 must be a list of pitches"),
    "flatter": ({**SPLIT, "train": [60]}, "train: piece 1: 60 must be a list of time steps"),
    "object": ({**SPLIT, "train": {"a": []}}, "train: {'a': ..} must be a list of pieces"),
    "deep": ({**SPLIT, "train": [[[[60]]]]}, r"train: piece 1, step 1: \[60\] is no pitch"),
    "no test": ({"train": PIECES, "valid": PIECES}, "has no 'test', but 'train', 'valid'"),
    "empty split": ({**SPLIT, "test": []}, "no test pieces"),
    "few": (PIECES[:5], "5 pieces are too few to split: there must be 20"),
    "number": (7, "7 must be a list of pieces"),
}


@pytest.mark.parametrize(("tree", "words"), BAD.values(), ids=BAD)
def test_bad_files(tree: Any, words: str, write: Write) -> None:
    file = write(json.dumps(tree), "bad.json")
    with pytest.raises(UserError, match=words) as error:
        task_of(file)
    assert str(file) in str(error.value)


def test_files_that_are_not_json(write: Write, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"bad\.json:2: not JSON"):
        task_of(write('{"train":\n nothing}', "bad.json"))
    with pytest.raises(UserError, match=r"deep\.json: nested too deeply"):
        task_of(write("[" * 100_000, "deep.json"))
    (tmp_path / "latin.json").write_bytes(b'["\xe9"]')
    with pytest.raises(UserError, match=r"latin\.json: not UTF-8: byte 0xe9"):
        task_of(tmp_path / "latin.json")


@pytest.mark.parametrize(
    ("tree", "place", "words"),
    [
        ({}, ("path",), "task 'music' has no data of its own"),
        ({"hub": "some/data"}, ("hub",), "give data.path"),
        ({"path": "nowhere.json"}, ("path",), "does not exist"),
        ({"path": "."}, ("path",), "."),
        ({"path": "pieces.json", "tokenizer": "bpe"}, ("tokenizer",), "'bpe' has no effect"),
        ({"path": "pieces.json", "column": "notes"}, ("column",), "'notes' has no effect"),
        ({"path": "pieces.json", "task": {"name": "music", "transpose": -1}}, ("task", "transpose"), "-1 must be"),
    ],
)
def test_settings(tree: dict[str, Any], place: tuple[str, ...], words: str, chorales: Path) -> None:
    with pytest.raises(SpecError, match=words) as error:
        Music.resolve(parse(DataSpec, {"task": "music", **tree}), chorales.parent)
    assert error.value.path == place


def test_a_row_must_hold_a_step(chorales: Path) -> None:
    task_of(chorales, 4)
    with pytest.raises(UserError, match="seq_len 3 is less than the 4 tokens of the largest step"):
        task_of(chorales, 3)


# ---- the whole


def test_chords_are_told_as_json(chorales: Path) -> None:
    task = task_of(chorales)
    assert task.decode([START, 67, 60, END_OF_STEP, END_OF_STEP, 55]) == "[[67, 60], [], [55]]"
    for piece in task.pieces["train"]:
        assert len(json.loads(task.decode(piece.tokens.tolist()))) == piece.steps


def test_a_trial(chorales: Path, ledger: Ledger) -> None:
    tree: dict[str, Any] = {"data": {"task": "music"}}
    for path, value in SMALL.items():
        section, key = path.split(".")
        tree.setdefault(section, {})[key] = value
    tree["data"] |= {"corpus": None, "path": str(chorales)}
    made: TrialSpec = parse(TrialSpec, tree)
    record = train(ledger, replace(made, data=Music.resolve(made.data, Path()))).record()
    assert record is not None and record["status"] == "finished"
    assert record["metrics"]["nll_per_step"] > record["metrics"]["loss"] > 0
    assert record["data"]["train_steps"] == 80 and record["data"]["longest_piece"] == 10
    assert record["metric"]["name"] == "nll_per_step"


def test_the_bach_chorales() -> None:
    """The sizes of Boulanger-Lewandowski et al. 2012, and their random baseline, -61.00 nats per step."""
    facts = task_of(shared("data", "jsb", "jsb-chorales-quarter.json"), 1024).facts()
    assert [facts[f"{split}_pieces"] for split in ("train", "valid", "test")] == [229, 76, 77]
    assert facts["cut_pieces"] == 0 and facts["longest_piece"] == 787
    uniform, by_itself = facts["baselines"]
    assert uniform["value"] == pytest.approx(61.00, abs=0.005) and 8 < by_itself["value"] < 12


def test_the_command_line_refuses_by_place(cli: Cli, write: Write) -> None:
    write(json.dumps({**SPLIT, "valid": [[[300]]]}), "bad.json")
    grid = write(
        "study: s\nbase:\n  arch: {d_model: 16, n_heads: 2, depth: 1, position: none}\n"
        "  data: {task: music, path: bad.json, seq_len: 64}\nvariants: {a: {}}\n"
    )
    result = cli("plan", grid)
    assert result.returncode == 2 and "piece 1, step 1: 300 is no pitch" in result.stderr, result.stderr
