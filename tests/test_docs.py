"""What the documents say is so: commands parse, grids plan, examples run, links lead on, lists are complete."""

from __future__ import annotations

import argparse
import doctest
import json
import re
import runpy
import shlex
from pathlib import Path

import fabricate
import numpy as np
import pytest
from conftest import ROOT, Cli

from ablate import check, registry
from ablate.cli import parser
from ablate.grid import BUDGETS, KEYS, load_grid
from ablate.match import TARGETS
from ablate.overlays import ladders, overlays
from ablate.plan import make_plan
from ablate.yamlfile import read_yaml
from analysis.command import options_of
from analysis.fit import ScalingLaw
from analysis.forms_user import UserLaw, function_of
from analysis.report import write_report
from analysis.report.bundles import MADE
from analysis.report.words import SIGNS

README, COMMAND_PAGE = ROOT / "README.md", ROOT / "docs" / "commands.md"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "results/README.md", "benchmarks/README.md")]
PAGES = sorted({page for page in (*PAGES, *(ROOT / "docs").rglob("*.md")) if page.exists()})
EXAMPLE = ROOT / "docs" / "examples" / "my_variants.py"
COMMANDS: dict[str, argparse.ArgumentParser] = next(
    action.choices for action in parser()._actions if isinstance(action, argparse._SubParsersAction)
)
FIGURES = ROOT / "docs" / "generate" / "figures.py"
FENCE = re.compile(r"^```(\w*)[^\n`]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_IN_CODE = re.compile(r"```.*?```|`[^`]*`", re.DOTALL)


def name_of(value: object) -> str:
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else str(value).splitlines()[0]


every_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def blocks(page: Path, *languages: str) -> list[str]:
    return [code for language, code in FENCE.findall(page.read_text()) if language in languages]


def spans(page: Path) -> list[str]:
    """Inline code."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", page.read_text()))


def shell_lines(page: Path) -> list[str]:
    """The commands of shell blocks, and of console blocks those after a prompt; of indented blocks those of make."""
    lines = [line for code in blocks(page, "sh") for line in code.splitlines()]
    lines += [line[2:] for code in blocks(page, "console") for line in code.splitlines() if line.startswith("$ ")]
    lines += re.findall(r"^    (make .*)$", page.read_text(), re.MULTILINE)
    return [line for line in lines if line.strip() and not line.startswith("#")]


def commands(page: Path) -> list[list[str]]:
    """Every `ablate ...`, in blocks and in the text, as a list of words; placeholders such as [SLOT] are words."""
    found = [line for line in (*shell_lines(page), *spans(page)) if re.match(r"ablate($| [^-])", line)]
    return [shlex.split(line.split("|")[0].replace("[", "").replace("]", ""), comments=True)[1:] for line in found]


def test_the_pages_that_a_reader_expects_are_there() -> None:
    assert {"README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/components.md"} <= set(map(name_of, PAGES))


@every_page
def test_code_is_fenced_as_something_known(page: Path) -> None:
    text = page.read_text()
    assert {language for language, _ in FENCE.findall(text)} <= {"", "sh", "console", "yaml", "python"}
    assert text.count("```") == 2 * len(FENCE.findall(text))


@every_page
def test_commands_are_as_the_parser_has_them(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in commands(page):
        if not words or (len(words) == 1 and words[0] in COMMANDS):
            continue  # named, not shown
        try:
            if words[0] == "fit":
                fit = argparse.ArgumentParser("ablate fit")
                options_of(fit)
                fit.parse_args(words[1:])
            else:
                parser().parse_args(words)
        except SystemExit as ended:
            assert ended.code == 0, f"ablate {shlex.join(words)}: {capsys.readouterr().err}"


@every_page
def test_other_commands_exist(page: Path) -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in (*shell_lines(page), *(span for span in spans(page) if span.startswith(("make ", "python ")))):
        words = shlex.split(line.replace("[", "").replace("]", ""), comments=True)
        assert words[0] in ("ablate", "make", "pip", "uv", "python", "git", "cd", "sed", "source"), line
        if words[0] == "make":
            assert set(words[1:]) <= targets, line
        if words[:2] == ["python", "-m"]:
            module = ROOT / words[2].replace(".", "/")
            ours = (module / "__main__.py").is_file() or module.with_suffix(".py").is_file()
            assert ours or words[2] in ("pytest", "pip", "venv"), line
        elif words[0] == "python":
            assert (ROOT / words[1]).is_file(), line


def test_the_page_of_commands_names_every_command() -> None:
    assert {words[0] for words in commands(COMMAND_PAGE) if words} == set(COMMANDS)


@pytest.mark.parametrize("page", [README, COMMAND_PAGE], ids=name_of)
def test_options_that_are_named_exist(page: Path) -> None:
    known = {option for command in COMMANDS.values() for option in command._option_string_actions}
    named = {span.split()[0].split("=")[0] for span in spans(page) if span.startswith("--")}
    assert named and named <= known


def test_the_page_of_commands_has_the_exit_codes_of_the_help() -> None:
    (said,) = re.findall(r"Exit codes: [^.]+\.", re.sub(r"\s+", " ", COMMAND_PAGE.read_text()))
    assert said in re.sub(r"\s+", " ", parser().epilog)


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", NOT_IN_CODE.sub("", page.read_text()))
    for link in links:
        if link.startswith(("https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists() and target.is_relative_to(ROOT), link
        if anchor:
            titles = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, link


@every_page
def test_files_that_are_named_exist(page: Path) -> None:
    """Python files, and paths that begin at a folder of the repository; `<id>` and the like stand for anything. A
    file that a page tells the reader to write is the title of a block."""
    text = page.read_text()
    files = [str(file.relative_to(ROOT)) for file in ROOT.rglob("*.py") if ".venv" not in file.parts]
    files += re.findall(r'^```\w+ title="([^"]+)"$', text, re.MULTILINE)
    for name in re.findall(r"(?<!No `)(?<![\w/.*])[\w/]+\.py\b", text):
        assert any(f"/{file}".endswith(f"/{name}") for file in files), name
    for name in re.findall(r"(?:ablate|analysis|docs|tests|experiments|benchmarks)/[\w./*-]+", " ".join(spans(page))):
        assert list(ROOT.glob(name)), name


def test_contributing_is_short() -> None:
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= 60


@every_page
def test_python_compiles_and_its_examples_run(page: Path) -> None:
    for index, code in enumerate(blocks(page, "python")):
        if ">>>" not in code:
            compile(code, f"{page.name}, block {index}", "exec")
            continue
        example = doctest.DocTestParser().get_doctest(code, {}, page.name, str(page), 0)
        assert doctest.DocTestRunner().run(example).failed == 0


def plugin(page: Path) -> str:
    """The file that a page's grids call my_variants.py: its own example, else the one that it links to."""
    own = [code for code in blocks(page, "python") if "@register(" in code]
    return "\n".join(own) if own else EXAMPLE.read_text()


@pytest.mark.parametrize(
    ("page", "text"), [(page, text) for page in PAGES for text in blocks(page, "yaml")], ids=name_of
)
def test_grids_plan(page: Path, text: str, write, cli: Cli, tmp_path: Path, token_cache: Path) -> None:
    grid = write(text)
    assert set(read_yaml(grid).value) <= set(KEYS)
    if "plugins:" not in text:
        assert make_plan(load_grid(grid), token_cache).trials
        return
    write(plugin(page), "my_variants.py")  # in a process of its own: a plugin stays registered
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "cache").symlink_to(token_cache)
    made = cli("plan", grid, "--json")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["trials"] > 0


def test_the_table_of_the_readme_is_that_of_its_study() -> None:
    """Its rows are in the order of the figure, its first and last are the ends; the figure is of the same records."""
    drawn = runpy.run_path(str(FIGURES))
    found = drawn["modifications"]()
    rows = [
        f"| `{row.variant}` | {row.diff:+.3f} | {row.lo:+.3f} to {row.hi:+.3f} | {SIGNS[row.verdict]} |"
        for row in found.itertuples()
    ]
    shown = re.findall(r"^\| `\w+` \| [-+]\d.*$", README.read_text(), re.MULTILINE)
    assert len(shown) == 6 and shown == [row for row in rows if row in shown]
    assert (shown[0], shown[-1]) == (rows[0], rows[-1])
    picture = (drawn["FOLDER"] / "modifications.svg").read_text()
    named = set(found["variant"])
    assert [each for each in re.findall(r">(\w+)<", picture) if each in named] == list(found["variant"])[::-1]


def test_the_readme_names_what_a_grid_may_hold() -> None:
    section = README.read_text().split("\n## The grid\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.MULTILINE)
    named = {key: set(re.findall(r"`([^`]+)`", text)) for key, text in rows}
    assert set(KEYS) == named.keys() | (named["match"] & {"tolerance"})
    assert set(TARGETS) <= named["match"] and set(BUDGETS) <= named["budgets"]
    presets = {overlay.name for overlay in overlays().values() if overlay.preset}
    assert {name.removeprefix("preset: ") for name in named["base"]} >= presets
    assert named["sizes"] == set(ladders())


def test_the_component_of_the_readme_passes_its_checks(write, cli: Cli) -> None:
    """The command of the README on its example, with the number of checks that it says."""
    write(plugin(README), "my_variants.py")
    (line,) = [line for line in shell_lines(README) if line.startswith("ablate check")]
    made = cli(*shlex.split(line, comments=True)[1:])
    assert made.returncode == 0, made.stderr
    (number,) = re.findall(r"# (\d+) contract checks", line)
    assert f"{number} passed" in made.stdout


@pytest.mark.parametrize("name", ["layer_scale", "ahead"])
def test_what_the_page_on_extending_adds_passes_its_checks(write, cli: Cli, name: str) -> None:
    page = ROOT / "docs" / "extending.md"
    write(plugin(page), "my_variants.py")
    (line,) = [line for line in shell_lines(page) if line.startswith(f"ablate check {name}")]
    made = cli(*shlex.split(line, comments=True)[1:])
    assert made.returncode == 0, made.stderr
    (number,) = re.findall(r"# (\d+) contract checks", line)
    assert f"{number} passed" in made.stdout


def test_the_laws_of_the_page_on_extending_are_fitted(tmp_path: Path) -> None:
    (code,) = [code for code in blocks(ROOT / "docs" / "extending.md", "python") if "def saturating" in code]
    (tmp_path / "my_laws.py").write_text(code)
    tokens = np.geomspace(1e4, 1e8, 12)
    for name, letter, loss in (
        ("saturating", "d", 1.6 + 30 * (tokens + 2e4) ** -0.35),
        ("logarithmic", "c", 7.0 - 0.2 * np.log(tokens)),
    ):
        law = ScalingLaw(UserLaw(function_of(f"{tmp_path / 'my_laws.py'}:{name}"))).fit({letter: tokens}, loss)
        assert np.abs(law.residuals_).max() < 1e-3, name


def test_the_page_of_components_has_all_slots_and_checks() -> None:
    text = (ROOT / "docs" / "components.md").read_text()
    slots, checks = (
        re.findall(r"^\| (\w+) \|", text.split(title)[1].split("\n## ")[0], re.MULTILINE)[1:]
        for title in ("## The slots", "## What is checked")
    )
    assert slots == [*registry.SLOTS, "model"]
    every = {each for name in registry.SLOTS for each in (*check.EVERYWHERE, *check.BY_SLOT.get(name, ()))}
    every |= {*check.FITTED, *check.IN_TIME, check.check_cache, check.check_padding}
    assert set(checks) == {each.__name__.removeprefix("check_") for each in every}


def test_the_page_of_results_names_the_files_of_a_report(tmp_path: Path) -> None:
    fabricate.study(tmp_path, lambda label: 2.0 + label["seed"] / 100)
    folder = write_report(tmp_path, "made").html.parent
    text = (ROOT / "results" / "README.md").read_text()
    top, below = text.split("tables/  ")
    named = {name for name in re.findall(r"[\w.-]+\.(?:html|md|csv|svg)\b", top) if name != "README.md"}
    here = [file for file in folder.iterdir() if file.is_file()]
    assert named == {file.name for file in here if file.suffix not in (".svg", ".json")}
    layouts = {each.stem for each in (folder / "tables").iterdir()} - {"tables"}
    assert layouts == {"narang"} and "tables.tex" in below


def test_every_layout_of_a_report_is_named() -> None:
    """In the order in which reports have them: in the page of results, and in that of the analysis."""
    listed = re.search(r"tables\.tex: ([\w,\s]+);", (ROOT / "results" / "README.md").read_text())[1]
    section = (ROOT / "docs" / "analysis.md").read_text().split("## Tables to cite")[1].split("\n## ")[0]
    rows = " ".join(re.findall(r"^\| (`.*?) \|", section, re.MULTILINE))
    assert re.split(r",\s+", listed) == re.findall(r"`(\w+)`", rows) == list(MADE)
