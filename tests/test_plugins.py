"""Components of a user's own file: listed, checked, counted, planned, and known by their code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Cli
from own_plugins import own_plugins
from runs import new_results, with_database

from ablate import registry
from ablate.cli import main
from ablate.errors import UserError
from ablate.grid import load_grid
from ablate.plan import make_plan
from ablate.rows import Plan

EXAMPLE = ROOT / "docs" / "examples" / "my_variants.py"
GRID = """\
base:
  arch: {d_model: 16, n_heads: 2, depth: 2, position: none}
  data: {corpus: kjv, tokenizer: bytes, seq_len: 16}
  train: {tokens: 6400, batch_tokens: 256}
variants:
  attention: {}
  average: {arch.sublayers.s: average}
  narrow: {arch.sublayers.s: {name: average, width: 4}}
match: none
plugins: [my_variants.py]
"""


@pytest.fixture(autouse=True)
def _own_plugins() -> Iterator[None]:
    with own_plugins():
        yield


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A copy of the example that a test may change, beside its grid."""
    (tmp_path / "grid.yaml").write_text(GRID)
    return Path(shutil.copy(EXAMPLE, tmp_path))


@pytest.fixture
def plan(mine: Path, token_cache: Path) -> Callable[[], Plan]:
    return lambda: make_plan(load_grid(mine.parent / "grid.yaml"), token_cache)


def printed(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    code = main([*map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err + out
    return json.loads(out)


def test_the_example_is_short() -> None:
    """The promise is one class in one file of about 20 lines; nothing else is written for a component."""
    code = EXAMPLE.read_text().split('"""')[2].splitlines() + EXAMPLE.read_text().split('"""')[4].splitlines()
    assert 10 <= len([line for line in code if line.strip()]) <= 22


def test_listed(capsys: pytest.CaptureFixture[str], mine: Path) -> None:
    entries = printed(capsys, "list", "mixer", "--plugin", mine)
    (entry,) = [each for each in entries if each["name"] == "average"]
    assert entry["slot"] == "mixer" and entry["causal"] is True and entry["options"] == {"width": None}
    assert "arXiv:1805.00631" in entry["paper"] and entry["summary"].startswith("y_t = W_O (1/t) sum")
    assert main(["list", "mixer", "--plugin", str(mine)]) == 0
    assert "  average\n" in capsys.readouterr().out


def test_not_listed_without_the_option(cli: Cli) -> None:
    done = cli("list", "mixer")
    assert done.returncode == 0 and "attention" in done.stdout and "average" not in done.stdout


def test_checked(capsys: pytest.CaptureFixture[str], mine: Path) -> None:
    """It passes what every built-in mixer must pass: causality, decoding step by step, gradients, and the rest."""
    (result,) = printed(capsys, "check", "average", "--plugin", mine)
    assert result["failed"] == {} and {"causal", "cache", "gradient", "mixes", "documented"} <= set(result["passed"])


def test_a_broken_one_is_found(capsys: pytest.CaptureFixture[str], mine: Path) -> None:
    """An average over the whole sequence sees the future."""
    mine.write_text(mine.read_text().replace(".cumsum(1)", ".mean(1, keepdim=True).expand_as(x_BTD)"))
    assert main(["check", "average", "--plugin", str(mine), "--json"]) == 1
    (result,) = json.loads(capsys.readouterr().out)
    assert "causal" in result["failed"] and "cache" in result["failed"]


def test_counted_and_planned(plan: Callable[[], Plan]) -> None:
    """By hand, d = 16: attention has 4 times d d + d, the average 2; a narrow one 2 of 4 d with biases d + 4."""
    attention, average, narrow = plan().rows
    assert attention.cost.params_total - average.cost.params_total == 2 * 2 * (16 * 16 + 16)
    assert average.cost.params_total - narrow.cost.params_total == 2 * (2 * 16 * 16 + 2 * 16 - 2 * 4 * 16 - 16 - 4)
    assert average.cost.params_by_slot["mixer"] == 2 * 2 * (16 * 16 + 16)
    assert attention.cost.flops_forward - average.cost.flops_forward == 2 * (2 * 2 * 16 * 16 + 2 * 2 * 16 * 16)
    assert average.cost.cache_bytes == average.cost.state_bytes == 2 * 16 * 4  # one sum a layer, however long
    assert average.differs_in == narrow.differs_in == ("mixer",)


def test_matched(mine: Path, token_cache: Path) -> None:
    row = make_plan(load_grid(mine.parent / "grid.yaml", ["match=params"]), token_cache).rows[1]
    assert row.solved.keys() == {"arch.d_ff"} and abs(row.residuals["params"]) <= 0.01


# what is changed: from, to, and whether it is another component then
CHANGES = {
    "a comment": ("        width = width", "        # of the average\n        width = width", False),
    "a docstring": ("Keeps one sum", "It keeps one sum", False),
    "the layout": (
        "(ctx.positions_T[:, None] + 1)",
        "(\n            ctx.positions_T[:, None]\n            + 1\n        )",
        False,
    ),
    "empty lines": ("\n    def ", "\n\n    def ", False),
    "the code": ("positions_T[:, None] + 1", "positions_T[:, None] + 2", True),
    "an option's default": ("int | None = None", "int | None = 16", True),
    "a helper in the file": ("\n\n@register", "\n\nUNUSED = 3\n\n\n@register", True),
}


@pytest.mark.parametrize("name", CHANGES)
def test_ids_follow_the_code(mine: Path, plan: Callable[[], Plan], name: str) -> None:
    """Of the trials that use it. Those that do not keep theirs, as do all when only words change."""
    old, new, other = CHANGES[name]
    before = {row.variant: row.spec.trial_id for row in plan().rows}
    code = mine.read_text()
    mine.write_text(code.replace(old, new))
    assert mine.read_text() != code
    after = {row.variant: row.spec.trial_id for row in plan().rows}
    assert after["attention"] == before["attention"]
    assert (after["average"] != before["average"]) == other == (after["narrow"] != before["narrow"])


def test_a_copy_elsewhere_is_the_same_component(mine: Path, plan: Callable[[], Plan], token_cache: Path) -> None:
    """Ids rest on the code, not on where it lies."""
    with own_plugins():
        before = [trial.id for trial in plan().trials]
    elsewhere = mine.parent / "elsewhere"
    elsewhere.mkdir()
    shutil.move(mine, elsewhere / "renamed.py")
    (elsewhere / "grid.yaml").write_text(GRID.replace("my_variants.py", "renamed.py"))
    assert [trial.id for trial in make_plan(load_grid(elsewhere / "grid.yaml"), token_cache).trials] == before


@pytest.mark.slow
def test_run(cli: Cli, mine: Path, capsys: pytest.CaptureFixture[str], token_cache: Path) -> None:
    """In a process of its own, whose workers must load the plugin too."""
    grid, results = mine.parent / "grid.yaml", with_database(new_results(mine.parent / "results", token_cache)).root
    arguments = ("--set", "train.tokens=512", "--set", "train.eval_points=1", "--results", results)
    done = cli("run", grid, "--workers", 2, *arguments)
    assert done.returncode == 0, done.stderr
    assert "3 finished" in done.stdout
    tree = printed(capsys, "plan", grid, *arguments)
    assert (tree["trials"], tree["done"]) == (3, 3)


NAMED = """\
from typing import Literal

from ablate.components.mixers.attention import Score
from ablate.contracts import Channel, Site
from ablate.registry import register

Shape = Literal["round", "square"]


@register("channel", "shaped", paper="none")
class Shaped(Channel):
    def __init__(self, site: Site, *, shape: Shape = "round", score: Score = "dot", other: Unknown = None):
        super().__init__(site)
"""


def test_an_options_type_may_have_a_name(tmp_path: Path) -> None:
    """Given in the file itself, or imported from the package; another is refused by name."""
    file = tmp_path / "shaped.py"
    file.write_text(NAMED)
    with pytest.raises(UserError, match=r"option .other.: options of type Unknown"):
        registry.add_plugin(file)
    file.write_text(NAMED.replace(", other: Unknown = None", ""))
    (entry,) = registry.add_plugin(file)
    assert [option.type for option in entry.options] == [
        "Literal['round', 'square']",
        "Literal['scaled_dot', 'dot', 'mup']",
    ]
