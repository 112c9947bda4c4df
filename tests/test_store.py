"""Files of trials that are away: they come home whole and in an order that can be cut anywhere, and the trial goes on
elsewhere to the same numbers."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from runs import curves, events, job, new_results, spec, train

from ablate.errors import UserError
from ablate.run import ray_home
from ablate.run.lease import Busy
from ablate.run.ledger import Ledger, TrialFolder
from ablate.run.ray_home import Home, HomeStore, Outdated
from ablate.run.store import Courier, FileStore, bring_home, fetch_folder, write_plugins
from ablate.train.trial import plan_trial, run_trial

LONGER = {"train.tokens": 64 * 40, "train.dropout": 0.1, "train.eval_points": 6}


class Direct:
    """A Ray actor's handle, without Ray: its methods are called at once."""

    def __init__(self, actor: Any):
        self.actor = actor

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self.actor, name))


@pytest.fixture
def home(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(ray_home.ray, "get", lambda value: value)
    monkeypatch.setattr(ray_home, "CHUNK", 1000)
    return Direct(Home.__ray_metadata__.modified_class(str(ledger.root)))  # type: ignore[attr-defined]


def part(courier: Courier, trial: Any, until: int | None, **settings: Any) -> TrialFolder:
    """Train a trial at the courier's place, up to a step."""
    folder = courier.fetch(trial.trial_id)
    asked = job(courier.ledger, trial, until=until, **settings)
    for _ in run_trial(asked):
        courier.bring(at_once=True)
    return folder


def nodes(tmp_path: Path, token_cache: Path) -> list[Ledger]:
    return [new_results(tmp_path / name, token_cache) for name in ("first", "second", "third")]


@pytest.mark.parametrize("kind", ["home", "file"])
def test_a_trial_moves_from_node_to_node(
    kind: str, home: Any, ledger: Ledger, other_ledger: Ledger, tmp_path: Path, token_cache: Path
) -> None:
    """What the first node had brought when it was lost is what the second goes on from."""
    trial = spec(LONGER)
    train(other_ledger, trial)
    plan_trial(ledger, trial)
    ours, couriers = ledger.trial(trial.trial_id), []
    for node in nodes(tmp_path, token_cache)[:2]:
        origin = HomeStore(home)
        origin.take(trial.trial_id)
        store = FileStore(f"file://{tmp_path / 'store'}") if kind == "file" else origin
        couriers.append(Courier(store, node.root, origin))
        lost = couriers[-1] is couriers[0]
        part(couriers[-1], trial, 15 if lost else None)
        if lost and kind == "home":
            assert ours.checkpoint.is_file() and ours.record() is None
    couriers[1].end()
    if kind == "file":
        assert ours.record() is None and not ours.metrics.exists()
        bring_home(couriers[1].store, ours)
    assert events(ours) == ["start", "pause", "resume", "end"]
    assert curves(ledger) == curves(other_ledger) and not ours.checkpoint.exists()
    assert ours.weights.read_bytes() == other_ledger.trial(trial.trial_id).weights.read_bytes()
    record, expected = ours.record(), other_ledger.trial(trial.trial_id).record()
    assert record is not None and expected is not None and record["metrics"] == expected["metrics"]
    assert not (couriers[1].ledger.trial(trial.trial_id)).folder.exists()


def test_whoever_had_the_trial_before_writes_no_more(
    home: Any, ledger: Ledger, tmp_path: Path, token_cache: Path
) -> None:
    """A node that was thought dead comes back: what it brings is refused."""
    trial = spec(LONGER)
    plan_trial(ledger, trial)
    first, second = HomeStore(home), HomeStore(home)
    before, after, _ = nodes(tmp_path, token_cache)
    first.take(trial.trial_id)
    courier = Courier(first, before.root)
    part(courier, trial, 15)
    second.take(trial.trial_id)
    part(Courier(second, after.root), trial, 8)
    kept = ledger.trial(trial.trial_id).metrics.read_bytes()
    with pytest.raises(Outdated):
        for _ in run_trial(replace(job(before, trial), until=30)):
            courier.bring(at_once=True)
    assert ledger.trial(trial.trial_id).metrics.read_bytes() == kept
    with pytest.raises(Outdated):
        first.remove(f"trials/{trial.trial_id}/checkpoint.pt")


def test_a_trial_that_is_away_is_held_at_home(home: Any, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """No other run trains it meanwhile; and one that another run trains does not go away."""
    monkeypatch.setattr("ablate.run.ledger.LOCK_PATIENCE_S", 0.0)
    trial = plan_trial(ledger, spec())
    store = HomeStore(home)
    store.take(trial.id)
    with pytest.raises(Busy), ledger.trial(trial.id).locked():
        pass
    store.take(trial.id)  # its lane has died: the next one gets it
    assert trial.running()
    store.release(trial.id)
    assert not trial.running()
    with ledger.trial(trial.id).locked(), pytest.raises(Busy, match=str(os.getpid())):
        store.take(trial.id)


def test_the_record_comes_last(home: Any, ledger: Ledger, tmp_path: Path, token_cache: Path) -> None:
    """Cut after any of the files, a trial has its record only when everything else is there."""
    trial = spec()
    plan_trial(ledger, trial)
    store = HomeStore(home)
    store.take(trial.trial_id)
    put, seen = store.put, []

    def watched(file: Path, path: str) -> None:
        seen.append(Path(path).name)
        put(file, path)

    store.put = watched  # type: ignore[method-assign]
    courier = Courier(store, nodes(tmp_path, token_cache)[0].root)
    part(courier, trial, None)
    courier.end()
    assert seen[-2:] == ["weights.pt", "record.json"] and "metrics.jsonl" in seen


def test_what_did_not_finish_is_tried_again(ledger: Ledger, tmp_path: Path, token_cache: Path) -> None:
    """A store's record of a failure does not stand in the way of a trial that is asked for again."""
    trial, store = spec(), FileStore(f"file://{tmp_path / 'store'}")
    origin = FileStore(f"file://{ledger.root}")
    node, *_ = nodes(tmp_path, token_cache)
    plan_trial(ledger, trial)
    ledger.trial(trial.trial_id).commit({"id": trial.trial_id, "status": "failed", "metrics": {}})
    store.put(ledger.trial(trial.trial_id).folder / "record.json", f"trials/{trial.trial_id}/record.json")
    courier = Courier(store, node.root, origin)
    part(courier, trial, None)
    courier.end()
    bring_home(store, ledger.trial(trial.trial_id))
    assert ledger.trial(trial.trial_id).status() == "finished"
    finished = courier.fetch(trial.trial_id).record()
    assert finished is not None and finished["status"] == "finished"


def test_a_trial_that_is_not_planned(home: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="trial 0123 is not where it was planned"):
        Courier(HomeStore(home), tmp_path).fetch("0123")


def test_tokens_are_fetched_once(ledger: Ledger, home: Any, tmp_path: Path) -> None:
    trial = spec()
    train(ledger, trial)
    (folder,) = home.cache_folders.remote(job(ledger, trial))
    store = HomeStore(home)
    fetch_folder(store, folder, tmp_path)
    ours = {each.name: each.read_bytes() for each in (tmp_path / folder).iterdir()}
    assert ours == {each.name: each.read_bytes() for each in (ledger.root / folder).iterdir()} and "train.bin" in ours
    store.fetch = lambda path, to: pytest.fail("fetched again")  # type: ignore[method-assign]
    fetch_folder(store, folder, tmp_path)
    fetch_folder(HomeStore(home), "cache/tokens/none", tmp_path)
    assert not (tmp_path / "cache" / "tokens" / "none").exists()


def test_plugins_are_written_where_they_are_not(tmp_path: Path) -> None:
    here, there = tmp_path / "here.py", tmp_path / "gone" / "there.py"
    here.write_text("a = 1\n")
    texts = {str(here): "a = 1\n", str(there): "b = 2\n"}
    found = write_plugins(texts, {str(here): "1", str(there): "2"}, tmp_path / "node")
    written = tmp_path / "node" / "plugins" / "2" / "there.py"
    assert found == {str(here): "1", str(written): "2"} and written.read_text() == "b = 2\n"
    here.write_text("a = 3\n")  # another file of that name: not the one that was planned with
    assert str(here) not in write_plugins(texts, {str(here): "1"}, tmp_path / "node")
