"""`profiles:` and `--as NAME`: the same study at another scale, under a name of its own; no trial's id changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from runs import new_results, with_database

import ablate
from ablate.cli import main
from ablate.errors import UserError
from ablate.grid import Grid, load_grid
from ablate.plan import make_plan

GRID = """\
study: little
base:
  arch: {d_model: 16, n_heads: 2, depth: 1}
  data: {corpus: kjv, tokenizer: bytes, seq_len: 16}
  train: {tokens: 512, batch_tokens: 256, eval_points: 1, eval_tokens: 256, final_eval_tokens: 256}
variants:
  plain: {}
  deep: {arch.depth: 2}
match: none
seeds: 1
profiles:
  large:
    train.tokens: 1_024
    arch.d_model: 32
    variants.plain: {arch.position: rope}
    variants.deep: {arch.depth: 3}
    sizes: {arch.d_ff: [64, 128]}
    seeds: 2
    resources.cpus: 2
  wrong:
    seeds: 2
    train.lr: fast
"""


def grid(folder: Path, text: str = GRID, **given: object) -> Grid:
    file = folder / "little.yaml"
    file.write_text(text)
    return load_grid(file, **given)  # type: ignore[arg-type]


def test_a_profile_is_laid_over_its_grid(tmp_path: Path, token_cache: Path) -> None:
    plan = make_plan(grid(tmp_path, profile="large"), token_cache)
    assert plan.grid.name == "little_large" and plan.baseline == "plain" and len(plan.trials) == 2 * 2 * 2
    assert {row.spec.arch.depth for row in plan.rows if row.variant == "deep"} == {3}
    assert {(row.spec.arch.d_model, row.spec.train.tokens, row.spec.resources.cpus) for row in plan.rows} == {
        (32, 1024, 2)
    }
    assert {row.spec.arch.position.name for row in plan.rows if row.variant == "plain"} == {"rope"}
    assert {row.spec.arch.d_ff for row in plan.rows} == {64, 128}


def test_without_being_asked_for_it_changes_nothing(tmp_path: Path, token_cache: Path) -> None:
    bare = GRID[: GRID.index("profiles:")]
    ids = [[trial.id for trial in make_plan(grid(tmp_path, text), token_cache).trials] for text in (GRID, bare)]
    assert ids[0] == ids[1] and grid(tmp_path).name == "little"


def test_what_is_set_on_the_command_line_comes_last(tmp_path: Path, token_cache: Path) -> None:
    made = grid(tmp_path, overrides=["train.tokens=2048", "seeds=3"], profile="large")
    plan = make_plan(made, token_cache)
    assert {row.spec.train.tokens for row in plan.rows} == {2048} and len(made.seeds) == 3


@pytest.mark.parametrize(
    ("line", "place", "words"),
    [
        ("  large: 3", 12, "profiles.large: 3 must be a mapping of settings"),
        ("  la/rge: {seeds: 2}", 12, "must be letters, digits"),
        ("  large: {seed: 2}", 12, "unknown path 'seed'; did you mean 'seeds'?"),
        ("  large: {tokens: 2}", 12, "unknown path 'tokens'; did you mean 'train.tokens'?"),
        ("  large: {study: other}", 12, "unknown path 'study'"),
        ("  large: {variants.depe: {}}", 12, "unknown variant 'depe'; did you mean 'deep'?"),
    ],
)
def test_what_a_profile_cannot_hold_is_said_at_once(tmp_path: Path, line: str, place: int, words: str) -> None:
    text = GRID[: GRID.index("  large:")] + line + "\n"
    with pytest.raises(UserError) as error:
        grid(tmp_path, text)
    assert f"little.yaml:{place}: " in str(error.value) and words in str(error.value)


def test_a_wrong_value_is_named_by_its_line_in_the_profile(tmp_path: Path, token_cache: Path) -> None:
    line = GRID.splitlines().index("    train.lr: fast") + 1
    with pytest.raises(UserError, match=rf"little\.yaml:{line}: base\.train\.lr: 'fast'"):
        make_plan(grid(tmp_path, profile="wrong"), token_cache)


def test_an_unknown_profile_is_answered_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"--as larg: unknown profile 'larg'; did you mean 'large'\? known: large, wrong"
    ):
        grid(tmp_path, profile="larg")
    with pytest.raises(UserError, match=r"--as large: .*little\.yaml has no profiles"):
        grid(tmp_path, GRID[: GRID.index("profiles:")], profile="large")


def test_a_study_run_so_is_resumed_so(tmp_path: Path, token_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid(tmp_path)
    ledger = with_database(new_results(tmp_path / "results", token_cache))
    small = ["--set", "sizes={arch.d_ff: [64]}", "--set", "seeds=1", "--set", "resources.cpus=1"]
    given = [str(tmp_path / "little.yaml"), "--as", "large", *small, "--results", str(ledger.root)]
    assert main(["run", *given, "--workers", "0"]) == 0
    assert main(["resume", "little_large", "--results", str(ledger.root)]) == 0
    assert "little_large: 2 trials, 2 already done" in capsys.readouterr().out
    assert main(["plan", *given, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["study"] == "little_large"


def test_from_python() -> None:
    chosen = ablate.load(GRID, profile="large")
    assert chosen.name == "little_large" and ablate.load(GRID).name == "little"
    with pytest.raises(UserError, match="unknown profile 'larg'; did you mean 'large'"):
        ablate.load(GRID, profile="larg")
