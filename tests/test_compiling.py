"""torch.compile where it pays: decided by what was measured, once; the numbers are those of the plain model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import events, spec, train

from ablate.run.ledger import Ledger
from ablate.train import compiling, training

CPU = torch.device("cpu")
LONG = {"train.tokens": 64 * 1000}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """On a CPU as on a GPU; what `_measured` would find."""
    found: dict[str, Any] = {"plain_s": 0.1, "compiled_s": 0.05, "compiling_s": 30.0, "error": None, "asked": 0}

    def measure(*_: Any) -> dict[str, Any]:
        found["asked"] += 1
        return {key: value for key, value in found.items() if key != "asked"}

    monkeypatch.setattr(compiling, "DEVICES", ("cpu",))
    monkeypatch.setattr(compiling, "_measured", measure)
    return found


def test_it_pays_where_the_steps_save_more_than_it_takes(measured: dict[str, Any], ledger: Ledger) -> None:
    assert compiling.pays(spec(LONG), CPU, ledger.cache)  # 50 s for 30
    assert compiling.pays(spec(LONG, seed=1), CPU, ledger.cache) and measured["asked"] == 1  # known for all seeds
    assert not compiling.pays(spec({"train.tokens": 64 * 500}), CPU, ledger.cache)
    measured |= {"compiled_s": None, "compiling_s": None}
    assert not compiling.pays(spec({"train.tokens": 64 * 1000, "arch.norm": "rmsnorm"}), CPU, ledger.cache)


def test_a_longer_trial_asks_again_after_a_short_one(measured: dict[str, Any], ledger: Ledger) -> None:
    """That compiling was not tried for the short one says nothing of the long one."""
    known, own = dict(measured), {"arch.d_ff": 48}  # the cache is that of all tests
    measured |= {"compiled_s": None, "compiling_s": None}
    assert not compiling.pays(spec(own | {"train.tokens": 64 * 100}), CPU, ledger.cache)
    measured |= known | {"asked": 1}
    assert not compiling.pays(spec(own | {"train.tokens": 64 * 500}), CPU, ledger.cache) and measured["asked"] == 1
    assert compiling.pays(spec(own | LONG), CPU, ledger.cache) and measured["asked"] == 2


def test_other_devices_are_not_asked(
    measured: dict[str, Any], ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "DEVICES", ("cuda",))
    assert not compiling.pays(spec(LONG), CPU, ledger.cache) and measured["asked"] == 0


def test_what_cannot_be_compiled_is_trained_as_it_is(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Any, *_: Any, **__: Any) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(compiling, "DEVICES", ("cpu",))
    monkeypatch.setattr(compiling, "LEAST_S", 0.0)
    monkeypatch.setattr(torch.nn.Module, "compile", fails)
    record = train(ledger, spec({"arch.d_model": 24})).record()
    assert record is not None and record["status"] == "finished" and record["compiled"] is False
    assert any("no compiler" in file.read_text() for file in (ledger.cache / "compile").glob("*.json"))


def compiler_works() -> bool:
    try:
        return bool(torch.compile(lambda x: x + 1)(torch.zeros(3)).sum() == 3)
    except Exception:  # no compiler, or no headers of Python
        return False


@pytest.mark.slow
def test_the_numbers_of_a_compiled_trial(
    ledger: Ledger, other_ledger: Ledger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Up to rounding; it is stopped and gone on with as any other, and its weights are those of the plain model."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    if not compiler_works():
        pytest.skip("torch.compile does not work here")
    asked = spec({"train.tokens": 64 * 40, "train.dropout": 0.1})
    expected = train(other_ledger, asked).record()
    monkeypatch.setattr(compiling, "DEVICES", ("cpu",))
    monkeypatch.setattr(compiling, "LEAST_S", 0.0)
    assert compiling._measured(asked, CPU, ledger.cache)["error"] is None
    monkeypatch.setattr(training, "pays", lambda *_: True)
    paused = train(ledger, asked, until=20)
    assert events(paused) == ["start", "pause"]
    record = train(ledger, asked).record()
    assert record is not None and expected is not None
    assert record["compiled"] is True and expected["compiled"] is False
    assert record["metrics"]["loss"] == pytest.approx(expected["metrics"]["loss"], rel=1e-4)
    ours, theirs = (
        torch.load(each.trial(asked.trial_id).weights, weights_only=True)["model"] for each in (ledger, other_ledger)
    )
    assert ours.keys() == theirs.keys()
