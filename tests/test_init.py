"""`ablate init`: whatever is asked for, what it writes plans; and it overwrites nothing."""

from __future__ import annotations

import builtins
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from conftest import ROOT

from ablate import newgrid, registry
from ablate.cli import main
from ablate.grid import Grid, load_grid
from ablate.plan import make_plan
from ablate.rows import Plan

PATHS = {"channel": "arch.sublayers.f"}


@pytest.fixture
def place(tmp_path: Path, token_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, with the shared cache."""
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "cache").symlink_to(token_cache)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(place: Path, *arguments: str, file: str = "grid.yaml") -> Grid:
    """What is written, which the command has planned before."""
    assert main(["init", file, *arguments]) == 0
    return load_grid(place / file)


def planned(place: Path, *arguments: str, file: str = "grid.yaml") -> Plan:
    """It plans once more, from the file."""
    return make_plan(made(place, *arguments, file=file), place / "results" / "cache")


@pytest.mark.parametrize("slot", [slot for slot in registry.SLOTS if slot != "mixer"])
def test_every_slot(slot: str, place: Path) -> None:
    grid = made(place, "--vary", slot, "--size", "d32", "--seeds", "2")
    _, *others = grid.variants
    assert others and grid.seeds == (0, 1)
    assert {path for each in others for path in each.paths()} == {PATHS.get(slot, f"arch.{slot}")}
    causal = {entry.name for entry in registry.catalogue(slot) if entry.causal and entry.form == "tokens"}
    told = (place / "grid.yaml").read_text()
    assert all(f"  {name}: " in told or f"  # {name}: left out: " in told for name in causal if len(name) > 1)


@pytest.mark.slow
def test_mixers(place: Path) -> None:
    assert len(made(place, "--vary", "mixer", "--size", "d32").variants) > 20


@pytest.mark.parametrize("size", newgrid.sizes())
def test_every_size(size: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large models are not counted here, which takes long: what is left to see is that the grid reads."""
    if size not in ("d32", "d48"):
        monkeypatch.setattr(newgrid, "checked", read)
    grid = made(place, "--variants", "rope", "--size", size)
    assert [each.label.replace("_", ".") for each in grid.sizes] == list(newgrid.sizes()[size])


def read(text: str, file: Path, cache: Path) -> Namespace:
    return Namespace(grid=load_grid(file, instead=text), trials=())


@pytest.mark.parametrize("preset", newgrid.presets())
def test_every_preset(preset: str, place: Path) -> None:
    plan = planned(place, "--from", preset, "--variants", "alibi", "--size", "d32")
    base, _ = plan.rows
    assert not base.spec.arch.encoder and base.spec.arch.d_model == 32 and base.spec.arch.d_head == 16
    preset_arch = newgrid._base(preset).section("arch")
    assert base.spec.arch.d_ff / 32 == pytest.approx(preset_arch.d_ff / preset_arch.d_model, abs=1 / 64)


def test_what_cannot_be_compared_is_left_out_with_the_reason(place: Path) -> None:
    grid = made(place, "--vary", "residual", "--size", "d32")
    assert "fixup" not in [variant.name for variant in grid.variants]
    (line,) = [line for line in (place / "grid.yaml").read_text().splitlines() if "# fixup" in line]
    assert "contradicts" in line


@pytest.mark.parametrize("name", newgrid.studies())
def test_every_study_is_a_grid_of_the_files_name(name: str, place: Path) -> None:
    """That they plan is tested with the studies themselves."""
    file = place / "mine.yaml"
    text = newgrid.copied(newgrid.studies()[name], file)
    assert load_grid(file, instead=text).name == "mine"
    assert text.replace("study: mine", f"study: {name}") == (ROOT / "experiments" / f"{name}.yaml").read_text()


def test_a_study(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(newgrid, "checked", read)
    assert len(made(place, "--from", "quickstart", "--hours", "2").variants) == 4
    assert "ablate run grid.yaml --max-hours 2" in capsys.readouterr().out


def test_studies_that_need_files_are_not_offered() -> None:
    offered = set(newgrid.studies())
    assert "quickstart" in offered and "transfer" not in offered
    assert all("data.path" not in study.text for study in newgrid.studies().values())


def test_own_text_beside_a_grid_in_another_folder(place: Path) -> None:
    (place / "my texts, 2").mkdir()
    (place / "my texts, 2" / "a.txt").write_text("In the beginning was the word.\n" * 4000)
    (place / "sub").mkdir()
    plan = planned(place, "--data", "my texts, 2", "--variants", "rope,swiglu", "--size", "d32", file="sub/g.yaml")
    assert plan.grid.name == "g" and [each.name for each in plan.grid.variants] == ["baseline", "rope", "swiglu"]


def test_with_a_schema(place: Path) -> None:
    from jsonschema import Draft7Validator

    from ablate.run.files import read_json
    from ablate.yamlfile import read_yaml

    made(place, "--vary", "norm", "--size", "d32", "--schema")
    first, second, *_ = (place / "grid.yaml").read_text().splitlines()
    assert first == "# yaml-language-server: $schema=grid.schema.json" and second.startswith("# Question: ")
    schema = read_json(place / newgrid.SCHEMA)
    assert not list(Draft7Validator(schema).iter_errors(read_yaml(place / "grid.yaml").value))


REFUSED = {
    "--vary positon": "did you mean 'position'?",
    "--variants ropee": "did you mean 'rope'?",
    "--variants gpt2": "give it as --from",
    "--variants rope,rope": "given twice",
    "--from gtp2": "did you mean 'gpt2'?",
    "--from quickstrat": "did you mean 'quickstart'?",
    "--from bert": "unknown preset or study",
    "--from quickstart --seeds 2": "--seeds: study 'quickstart' is taken as it is",
    "--size d33": "unknown size",
    "--seeds 0": "at least 1",
    "--hours -1": "--hours -1 must be",
    "--data nowhere.txt": "no such file",
    "no/folder.yaml": "no is no folder",
    "-.yaml": "to name a folder",
    "--from llama2 --variants rope": "no effect",
}


@pytest.mark.parametrize("words", REFUSED)
def test_mistakes_write_nothing(words: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = words.split()
    arguments = ["--", *arguments] if words == "-.yaml" else arguments
    assert main(["init", *arguments]) == 2
    assert REFUSED[words] in capsys.readouterr().err
    assert not list(place.glob("*.yaml"))


def test_nothing_is_overwritten_without_force(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "grid.yaml").write_text("mine")
    assert main(["init", "--variants", "rope"]) == 2
    assert "--force" in capsys.readouterr().err and (place / "grid.yaml").read_text() == "mine"
    assert main(["init", "--variants", "rope", "--schema"]) == 2
    (place / newgrid.SCHEMA).write_text("mine too")
    assert main(["init", "other.yaml", "--variants", "rope", "--schema"]) == 2
    assert (place / newgrid.SCHEMA).read_text() == "mine too" and not (place / "other.yaml").exists()
    made(place, "--variants", "rope", "--size", "d32", "--force")


def test_questions_on_a_terminal(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["norm", "", "d32", "2", "0.5"])
    monkeypatch.setattr(builtins, "input", lambda *_: next(answers))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    plan = planned(place)
    assert next(answers, None) is None
    assert plan.baseline == "layernorm" and len(plan.grid.seeds) == 2 and plan.rows[0].spec.arch.d_model == 32


def test_no_question_is_asked_where_nobody_answers(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("asked"))
    assert made(place, "--variants", "rope", "--size", "d32").seeds == (0, 1, 2)


def test_what_there_is_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--list"]) == 0
    out = capsys.readouterr().out
    for name in (*newgrid.presets(), *newgrid.studies(), *newgrid.sizes(), *registry.SLOTS):
        assert name in out
