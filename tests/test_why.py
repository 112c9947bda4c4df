"""`ablate why`: what differs from the nearest trial is named as what it is, in large ledgers too."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY
from runs import FAULTS, own_registry, plan_of, run_here, spec, train

from ablate import registry
from ablate.run.files import append_json, write_json
from ablate.run.ledger import Ledger
from ablate.run.nearest import index
from ablate.run.why import explain, explain_study
from ablate.spec import TrialSpec, canonical, digest, to_tree
from ablate.train.trial import plan_trial


def planned(ledger: Ledger, *specs: TrialSpec, at: float) -> list[str]:
    """Trials that a run of a study of its own planned and trained."""
    ids = [plan_trial(ledger, each).id for each in specs]
    folder = ledger.study_folder(f"at{at:g}")
    folder.mkdir(parents=True)
    labels = {"variant": "v", "size": "", "axes": "", "budget": "", "stage": "", "seed": 0}
    write_json(folder / "study.json", {"trials": [{"id": each, **labels} for each in ids]})
    append_json(folder / "log.jsonl", {"time": at, "ended": at, "trained": ids, "reused": []})
    return ids


def raise_version(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    real = registry.Entry.identity.fget  # type: ignore[attr-defined]
    changed = property(lambda entry: real(entry) | ({"version": 2} if entry.name == name else {}))
    monkeypatch.setattr(registry.Entry, "identity", changed)


def told(ledger: Ledger, trial_id: str) -> list[str]:
    code, said = run_here("why", trial_id, "--results", ledger.root)
    assert code == 0
    return [line.strip() for line in said.partition("which differs in\n")[2].splitlines()]


def test_what_is_kept_is_what_the_id_is_the_hash_of(ledger: Ledger) -> None:
    folder = plan_trial(ledger, spec())
    assert digest(json.loads(folder.identity.read_text())) == folder.id


def test_a_setting_is_named_with_both_values(ledger: Ledger) -> None:
    (old,) = planned(ledger, spec(), at=1)
    (new, _) = planned(ledger, spec({"train.lr": 1e-3}), spec({"train.lr": 1e-3}, seed=1), at=2)
    tree = explain(ledger, new)
    assert tree["nearest"] == old  # of the run before, not the other seed of its own
    assert tree["nearest_differs_in"] == {"train.lr": [0.003, 0.001]}
    assert told(ledger, new) == ["train.lr: 0.003 there, 0.001 here"]


def test_a_component_s_new_version_is_told_as_such(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    (old, _) = planned(ledger, spec(), spec(seed=1), at=1)
    raise_version(monkeypatch, "ffn")
    (new,) = planned(ledger, spec(), at=2)
    assert new != old and explain(ledger, new)["nearest"] == old
    assert told(ledger, new) == ["component arch.sublayers.f ffn version 1 there, 2 here: its meaning changed"]


def test_a_plugin_s_new_code_is_told_as_such(ledger: Ledger, tmp_path: Path) -> None:
    file = tmp_path / "faults.py"
    ids = []
    for at, text in enumerate((FAULTS, FAULTS.replace("return x", "return 2 * x"))):
        file.write_text(text)
        with own_registry():
            registry.add_plugin(file)
            ids += planned(ledger, spec({"arch.norm": "raises"}), at=at + 1)
    (line,) = told(ledger, ids[1])
    assert line.startswith("component arch.norm raises: the plugin's code changed (")


def test_another_component_is_not_said_to_have_another_version(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    raise_version(monkeypatch, "rope")
    planned(ledger, spec(), at=1)
    (new,) = planned(ledger, spec({"arch.position": "rope"}), at=2)
    assert told(ledger, new) == ["arch.position.name: learned there, rope here"]


def test_data_that_changed_are_told_as_such(ledger: Ledger) -> None:
    one = spec()
    planned(ledger, one, at=1)
    (new,) = planned(ledger, replace(one, data=replace(one.data, content="f" * 16)), at=2)
    (line,) = told(ledger, new)
    assert line == f"the data's content changed ({one.data.content} there, {'f' * 16} here)"


def test_a_trial_of_which_no_identity_was_kept_is_not_said_to_differ_in_versions(ledger: Ledger) -> None:
    (old,) = planned(ledger, spec(), at=1)
    ledger.trial(old).identity.unlink()
    (new,) = planned(ledger, spec(seed=1), at=2)
    assert told(ledger, new) == ["seed: 0 there, 1 here"]


def test_a_time_that_no_calendar_has(ledger: Ledger) -> None:
    folder = plan_trial(ledger, spec())
    for time in (1e300, 67_767_976_233_532_800, -1.0, 1.5):
        append_json(folder.attempts, {"event": "start", "time": time, "pid": 1, "host": "here"})
    assert [each["time"] for each in explain(ledger, folder.id)["attempts"]] == [1.5]
    assert run_here("why", folder.id, "--results", ledger.root)[0] == 0


def test_a_study_says_of_every_trial_whether_it_was_there(ledger: Ledger, tmp_path: Path) -> None:
    plan = plan_of(TINY + "match: none\n", tmp_path, ledger.cache.resolve())
    train(ledger, plan.trials[0].spec)
    file = tmp_path / "grid.yaml"
    assert run_here("run", file, "--results", ledger.root, "--workers", 0)[0] == 0
    code, said = run_here("why", "tiny", "--results", ledger.root)
    lines = said.splitlines()
    assert code == 0 and lines[0] == "tiny: 1 hit, 3 miss, 0 to come" and len(lines) == 5
    assert "plain (base" in lines[1] and "hit" in lines[1] and "its record was there" in lines[1]
    assert f"nearest {plan.trials[0].id}: seed: 0 there, 1 here" in lines[2]
    assert f"nearest {plan.trials[0].id}: arch.position.name: learned there, rope here" in lines[3]
    code, said = run_here("why", "tiny", "--results", ledger.root, "--json")
    assert code == 0 and [each["verdict"] for each in json.loads(said)["trials"]] == ["hit", "miss", "miss", "miss"]
    assert run_here("run", file, "--results", ledger.root, "--workers", 0, "--set", "seeds=3")[0] == 0
    assert explain_study(ledger, "tiny")["counts"] == {"hit": 1, "miss": 5, "to come": 0}


def test_the_nearest_of_many_is_that_of_a_plain_search(ledger: Ledger) -> None:
    base: dict[str, Any] = to_tree(spec())
    identity = canonical(spec())
    for k in range(300):
        tree = json.loads(json.dumps(base))
        tree["seed"], tree["train"]["lr"], tree["arch"]["depth"] = k % 7, 10.0 ** -(k % 5), 1 + k % 11
        folder = ledger.trial(f"{k:012x}")
        write_json(folder.spec, tree)
        write_json(folder.identity, identity)
    specs = index(ledger)

    def apart(a: int, b: int) -> int:
        return sum(a % n != b % n for n in (7, 5, 11))

    every = np.arange(300)
    for k in range(0, 300, 7):
        found = specs.nearest(k, every)
        assert found is not None and found != k
        assert apart(k, found) == min(apart(k, other) for other in range(300) if other != k)
        assert len(specs.differences(found, k)) == apart(k, found)
