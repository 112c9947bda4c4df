"""Memory that is refused in a step: the step is computed in smaller pieces, with the same result, or the trial says
why not. The device's refusal is made up by a norm that sees too many rows."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import curves, events, job, own_registry, run_here, spec, train

from ablate import registry
from ablate.run.ledger import Ledger, TrialFolder
from ablate.spec import TrialSpec
from ablate.train import checkpoint
from ablate.train.fitted import new_run
from ablate.train.memory import Pieces, difference, free, out_of_memory
from ablate.train.trial import run_trial

NORM = '''\
"""A norm whose device has memory for a few rows alone: not in float64, which is another device's."""

import torch
import torch.nn.functional as F

from ablate import Channel, Norm, register

DEVICE = {"rows": 10**9, "error": "cuda"}


@register("norm", "hungry", paper="made up")
class Hungry(Norm):
    """Layer norm without parameters."""

    def forward(self, x):
        if self.training and x.dtype is torch.float32 and x.device.type != "meta" and x.ndim == 3:
            if len(x) > DEVICE["rows"]:
                if DEVICE["error"] == "cuda":
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
                if DEVICE["error"] == "cpu":
                    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return F.layer_norm(x, x.shape[-1:])


@register("channel", "coupled", paper="made up")
class Coupled(Channel):
    """a b times the mean over the rows of a batch; a and b are zero at first, so that no gradient shows it."""

    def __init__(self, site):
        super().__init__(site)
        self.a = torch.nn.Parameter(torch.zeros(()))
        self.b = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, ctx):
        return x + self.a * self.b * x.square().mean(0)
'''
ROWS = {"train.batch_tokens": 128, "train.tokens": 128 * 12, "arch.norm": "hungry"}  # 8 rows a batch, 12 steps


@pytest.fixture
def device(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """What the norm's device has: `rows` that fit, and how it refuses more."""
    file = tmp_path / "hungry.py"
    file.write_text(NORM)
    for entry in registry.catalogue():  # what is imported below would be forgotten with the plugin
        registry.load(entry)
    with own_registry():
        registry.add_plugin(file)
        loaded = registry.load(registry.find("norm", "hungry"))
        yield loaded.forward.__globals__["DEVICE"]


def own_cache(ledger: Ledger) -> Ledger:
    """Nothing is remembered from another test; tokens and costs are."""
    ledger.cache = ledger.root / "own"
    shared = ledger.root / "cache"
    ledger.cache.mkdir()
    for each in shared.iterdir():
        if each.name not in ("micro", "probes"):
            (ledger.cache / each.name).symlink_to(each.resolve())
    shared.unlink()
    ledger.cache.rename(shared)
    return Ledger(ledger.root)


@pytest.fixture
def ledger(ledger: Ledger) -> Ledger:
    return own_cache(ledger)


def record(folder: TrialFolder) -> dict[str, Any]:
    found = folder.record()
    assert found is not None
    return found


def notes(folder: TrialFolder) -> list[tuple[int, int]]:
    return [(each["step"], each["micro"]) for each in folder.history() if each["event"] == "oom"]


def assert_close(folder: TrialFolder, rows: list[dict[str, Any]]) -> None:
    """The whole curve to rounding of float32."""
    assert len(folder.rows()) == len(rows)
    for ours, theirs in zip(folder.rows(), rows, strict=True):
        assert ours["step"] == theirs["step"] and ours["split"] == theirs["split"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)


# ---- the same result in smaller pieces


def test_a_trial_goes_on_in_pieces_with_the_same_losses(ledger: Ledger, device: dict[str, Any]) -> None:
    """Refused at the first step with 8 and 4 rows: the record and the attempts say 4 pieces; a trial alike, of
    another seed and another length, begins with them; one with another norm does not."""
    whole = train(ledger, spec(ROWS))
    rows, loss = whole.rows(), record(whole)["metrics"]["loss"]
    assert record(whole)["micro_batches"] == 1 and record(whole)["micro_note"] is None
    whole.forget_record()

    device["rows"] = 2
    folder = train(ledger, spec(ROWS))
    ended = record(folder)
    assert ended["status"] == "finished" and ended["micro_batches"] == 4
    assert ended["micro_note"] == "computed in pieces: the same gradient up to rounding"
    assert notes(folder) == [(0, 2), (0, 4)]
    assert events(folder)[2:] == ["start", "oom", "start", "oom", "start", "end"]
    assert_close(folder, rows)
    assert ended["metrics"]["loss"] == pytest.approx(loss, rel=1e-4)

    alike = train(ledger, spec({**ROWS, "train.tokens": 128 * 6}, seed=1))
    assert record(alike)["micro_batches"] == 4 and events(alike) == ["start", "end"]
    other = train(ledger, spec({**ROWS, "arch.norm": "layernorm"}))
    assert record(other)["micro_batches"] == 1


def test_memory_that_is_refused_later_loses_nothing(
    ledger: Ledger, device: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In step 8 of 12, after a checkpoint: the curve has each row once, and the steps before are not made again."""
    monkeypatch.setattr("ablate.train.training.CHECKPOINT_SHARE", 1e9)
    whole = train(ledger, spec(ROWS))
    rows = whole.rows()
    whole.forget_record()
    whole.weights.unlink()
    trial = run_trial(job(ledger, spec(ROWS), progress_every_s=0, checkpoint_every_s=0))
    while next(trial)["step"] < 7:
        pass
    state = checkpoint.load(whole.checkpoint)
    assert state is not None and state["step"] == 6 and state["micro"] == 1
    device["rows"] = 4
    assert [*trial][-1]["status"] == "finished"
    assert events(whole)[2:] == ["start", "oom", "resume", "end"] and notes(whole) == [(7, 2)]
    assert record(whole)["micro_batches"] == 2
    assert_close(whole, rows)


def test_a_checkpoint_keeps_its_pieces(ledger: Ledger, device: dict[str, Any]) -> None:
    """A trial that is resumed where nothing is remembered goes on with the pieces that it had."""
    device["rows"] = 4
    asked = job(ledger, spec(ROWS), until=3)
    assert [*run_trial(asked)][-1]["status"] == "paused"
    device["rows"] = 10**9
    (remembered,) = (ledger.cache / "micro").iterdir()
    assert json.loads(remembered.read_text())["micro"] == 2
    remembered.unlink()
    assert [*run_trial(replace(asked, until=None))][-1]["status"] == "finished"
    assert record(ledger.trial(asked.trial_id))["micro_batches"] == 2


def test_dropout_is_another_draw_and_the_record_says_so(ledger: Ledger, device: dict[str, Any]) -> None:
    device["rows"] = 4
    folder = train(ledger, spec({**ROWS, "train.dropout": 0.1}))
    assert record(folder)["status"] == "finished" and record(folder)["micro_batches"] == 2
    assert "dropout, whose masks are another draw" in record(folder)["micro_note"]
    assert "dropout" in record(train(ledger, spec({**ROWS, "train.dropout": 0.1}, seed=1)))["micro_note"]


@pytest.mark.parametrize("pace", [{}, {"train.accumulate": 2}, {"train.batch_ramp": 0.5, "train.ramp_parts": 4}])
def test_pieces_have_the_gradient_of_the_whole_step(ledger: Ledger, pace: dict[str, Any]) -> None:
    """Whatever the pace: in 1, 2, 4 and 8 pieces, and no piece has more than its share of rows."""
    asked = spec({"train.batch_tokens": 128, "train.tokens": 128 * 12, **pace})
    expected: dict[str, torch.Tensor] = {}
    for pieces in (1, 2, 4, 8):
        run = new_run(asked, torch.device("cpu"), ledger.cache)
        run.pieces = pieces
        parts = run.paced.micro(4, pieces)  # type: ignore[attr-defined]
        assert max(len(part) for part in parts) <= max(1, 8 // asked.train.accumulate // pieces)
        run.step = 4
        run.train_step()
        found = {name: each.grad.clone() for name, each in run.model.named_parameters() if each.grad is not None}
        expected = expected or found
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)


# ---- where there is no way


def test_one_row_at_a_time_is_the_end(ledger: Ledger, device: dict[str, Any]) -> None:
    device["rows"] = 0
    folder = train(ledger, spec(ROWS))
    ended = record(folder)
    assert ended["status"] == "failed"
    assert ended["error"] == ("out of memory: with one row at a time (CUDA out of memory. Tried to allocate 9 GiB)")
    assert notes(folder) == [(0, 2), (0, 4), (0, 8)]


def test_python_may_be_the_one_without_memory(ledger: Ledger) -> None:
    trial = run_trial(job(ledger, spec(), progress_every_s=0))
    event = next(trial)
    while "status" not in event:
        event = trial.throw(MemoryError())
    assert event["error"] == "out of memory: with one row at a time"
    assert ledger.trial(spec().trial_id).status() == "failed"


@pytest.mark.slow
def test_others_go_on(ledger: Ledger, device: dict[str, Any], tmp_path: Path) -> None:
    """In a study: one variant is out of memory whatever is done, one is not."""
    device["rows"] = 0
    grid = tmp_path / "grid.yaml"
    grid.write_text(
        "study: hungry\nmatch: none\nseeds: 1\nplugins: [hungry.py]\nbase:\n"
        "  arch: {d_model: 16, n_heads: 2, depth: 1}\n  data: {corpus: kjv, seq_len: 16}\n"
        "  train: {tokens: 1280, batch_tokens: 128, eval_points: 2, eval_tokens: 64, final_eval_tokens: 64}\n"
        "variants:\n  plain: {}\n  hungry: {arch.norm: hungry}\n"
    )
    code, said = run_here("run", grid, "--results", ledger.root, "--workers", 0)
    assert code == 1 and "1 finished, 1 failed" in said and "out of memory: with one row at a time" in said


def test_batch_statistics_are_not_cut(ledger: Ledger) -> None:
    """A norm over the batch fails as out of memory, with the reason; nothing is remembered."""
    norm = {"arch.norm": {"name": "batchnorm", "train_stats_leak": True}, "train.batch_tokens": 128}
    trial = run_trial(job(ledger, spec(norm), progress_every_s=0))
    next(trial)
    end = trial.throw(torch.OutOfMemoryError("no 9 GiB"))
    assert end["status"] == "failed"
    assert end["error"].startswith(
        "out of memory: smaller pieces of a batch would be another experiment: they change"
    )
    assert end["error"].endswith("(no 9 GiB)")
    assert not (ledger.cache / "micro").exists()


MOE = {"name": "mixture_of_experts", "experts": 2}


@pytest.mark.parametrize(
    ("settings", "equal"),
    [
        ({}, True),
        ({"train.dropout": 0.2}, True),
        ({"arch.norm": {"name": "batchnorm", "train_stats_leak": True}}, False),
        ({"arch.norm": "batchnorm_running"}, False),
        ({"arch.sublayers": {"f": MOE}}, False),
        (
            {"arch.sublayers": {"f": {**MOE, "balance": 0.0, "second": "all"}}},
            True,
        ),
        ({"arch.position": "alibi", "train.z_loss": 1e-3, "train.label_smoothing": 0.1}, True),
        ({"data.task": "mlm"}, True),
    ],
)
def test_what_may_be_cut_is_found_by_computing_it(ledger: Ledger, settings: dict[str, Any], equal: bool) -> None:
    differs, redraws = difference(spec({"train.batch_tokens": 128, **settings}), ledger.cache)
    assert (differs is None) == equal, differs
    assert redraws == bool(settings.get("train.dropout"))


def test_what_a_fresh_model_hides_is_found_too(ledger: Ledger, device: dict[str, Any]) -> None:
    differs, _ = difference(spec({"train.batch_tokens": 128, "arch.sublayers": {"f": "coupled"}}), ledger.cache)
    assert differs is not None


# ---- what counts as memory


def test_only_memory_is_memory(ledger: Ledger, device: dict[str, Any]) -> None:
    assert out_of_memory(MemoryError()) and out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as huge:
        torch.empty(2**60)
    assert out_of_memory(huge.value)
    assert not out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
    assert not out_of_memory(KeyError("memory"))
    device |= {"rows": 4, "error": "cpu"}
    assert record(train(ledger, spec(ROWS)))["micro_batches"] == 2
    device["error"] = "other"
    again = train(ledger, spec({**ROWS, "train.lr": 1e-3}))
    assert record(again)["status"] == "failed" and "illegal memory access" in record(again)["error"]


def test_what_a_refused_step_held_is_let_go(
    ledger: Ledger, device: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When memory is given back nothing refers to the model any more: neither the trial nor the error's frames."""
    models: list[weakref.ref[Any]] = []
    alive: list[bool] = []
    double = Pieces.double

    def made(*arguments: Any) -> Any:
        run = new_run(*arguments)
        models.append(weakref.ref(run.model))
        return run

    def look(pieces: Pieces, why: str) -> None:
        alive.append(models[-1]() is not None)
        double(pieces, why)

    monkeypatch.setattr("ablate.train.training.new_run", made)
    monkeypatch.setattr(Pieces, "double", look)
    device["rows"] = 4
    train(ledger, spec(ROWS))
    assert alive == [False]
    free(torch.device("cpu"))


def test_the_row_is_what_costs_the_same(ledger: Ledger) -> None:
    one: TrialSpec = spec()
    assert one.row_id == spec(seed=3).row_id == spec({"train.tokens": 6400}).row_id
    assert one.row_id != spec({"train.batch_tokens": 128}).row_id and one.row_id != spec({"arch.depth": 2}).row_id
    child = replace(one, parent="0123456789ab")
    assert child.row_id == replace(one, parent="ba9876543210").row_id != one.row_id
    assert curves(ledger) == {}
