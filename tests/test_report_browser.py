"""The report's page in a real browser: it sorts, filters, leads to trials, prints, by day and by night."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import fabricate
import pytest
from browser import CHROMIUM, Browser, Tab, pdf_pages, pdf_text

from analysis.report import write_report

SIZES = ("s", "m", "l")
SHIFTS = {"base": 0.0, "rope": -0.1, "gates": 0.0, "long<b>&": 0.2}
NOISE = {"gates": (0.004, -0.008, 0.005)}
STYLE = Path(__file__).parents[1] / "analysis" / "report" / "templates" / "style.css"
LEAST = 4.5  # contrast of text, WCAG 2.2, 1.4.3
PAPER = (1032, 700)  # what A4 across leaves between its margins, at 96 to the inch

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium")


def loss(label: dict) -> float | str:
    if (label["variant"], label["size"], label["seed"]) == ("rope", "m", 2):
        return "diverged"
    variant, seed = label["variant"], label["seed"]
    return (
        3.0 - SIZES.index(label["size"]) / 3 + SHIFTS[variant] + seed / 70 + NOISE.get(variant, (0, 1e-3, 2e-3))[seed]
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made")
    trials = fabricate.study(root, loss, tuple(SHIFTS), SIZES, differs={"long<b>&": ["norm", "position"]})
    for trial in trials:
        file = root / "trials" / trial["id"] / "record.json"
        record = json.loads(file.read_text())
        position = {"name": "rope", "base": 10_000} if trial["variant"] == "rope" else {"name": "learned"}
        record["spec"]["arch"] = {"depth": 4, "position": position}
        record["spec"]["seed"] = trial["seed"]
        file.write_text(json.dumps(record))
    return write_report(root, "made").html


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser") / "profile") as made:
        yield made


@pytest.fixture
def tab(browser: Browser, page: Path) -> Iterator[Tab]:
    """A fresh tab on the report; at its end nothing was complained of and nothing asked for but the page."""
    made = Tab(browser)
    made.media()
    made.open(page)
    yield made
    assert (made.errors(), made.requests()) == ([], [page.as_uri()])
    made.close()


def table(section: str) -> str:
    return f"document.querySelector('section[aria-labelledby={section}] table')"


def heading(section: str, name: str) -> str:
    return f"[...{table(section)}.tHead.rows[0].cells].find((e) => e.textContent === {name!r})"


def column(tab: Tab, section: str, name: str) -> list[str]:
    """The cells of a column that can be seen, from the top."""
    return tab.run(
        f"[...{table(section)}.tBodies[0].rows].filter((e) => e.offsetHeight)"
        f".map((e) => e.cells[{heading(section, name)}.cellIndex].textContent)"
    )


def sorted_as(tab: Tab, section: str, name: str) -> str | None:
    return tab.run(f"{heading(section, name)}.getAttribute('aria-sort')")


@needs_chromium
@pytest.mark.parametrize("how", ["mouse", "keyboard"])
def test_a_column_of_numbers_sorts_both_ways(tab: Tab, how: str) -> None:
    before = column(tab, "trials", "loss")
    values = sorted(float(each) for each in before if each)
    assert before.count("") == 1 and values != [float(each) for each in before if each]
    orders = []
    for _ in range(3):
        button = f"{heading('trials', 'loss')}.querySelector('button')"
        if how == "mouse":
            tab.click(button)
        else:
            tab.run(f"{button}.focus()")
            tab.press("Enter", "\r")
        orders.append((sorted_as(tab, "trials", "loss"), column(tab, "trials", "loss")))
    up, down = ([float(each) for each in shown[:-1]] for _, shown in orders[:2])
    assert [order for order, _ in orders] == ["ascending", "descending", None]
    assert up == values and down == values[::-1]
    assert [shown[-1] for _, shown in orders[:2]] == ["", ""] and orders[2][1] == before


@needs_chromium
def test_numbers_sort_as_numbers_and_text_as_text(tab: Tab) -> None:
    click = "{}.querySelector('button')".format
    tab.click(click(heading("comparison", "parameters")))
    shown = [int(each.replace(",", "")) for each in column(tab, "comparison", "parameters")]
    assert shown == sorted(shown) and shown[0] == 1_000 and shown[-1] == 16_000
    tab.click(click(heading("comparison", "difference, 95 %")))
    shown = [float(each.split()[0]) for each in column(tab, "comparison", "difference, 95 %") if each]
    assert shown == sorted(shown) and shown[0] < 0 < shown[-1]
    tab.click(click(heading("comparison", "variant")))
    shown = column(tab, "comparison", "variant")
    assert shown == sorted(shown) and len(shown) == 12
    assert [sorted_as(tab, "comparison", name) for name in ("parameters", "variant")] == [None, "ascending"]


@needs_chromium
def test_rows_are_filtered_by_words_and_by_noise(tab: Tab) -> None:
    controls = "document.querySelector('section[aria-labelledby=comparison] .controls')"
    tab.click(f"{controls}.querySelector('[type=checkbox]')")
    kinds = column(tab, "comparison", "verdict")
    assert set(kinds) == {"better", "worse", "baseline"}
    assert tab.run(f"{controls}.querySelector('output').textContent") == f"{len(kinds)} of 12 rows"
    tab.click(f"{controls}.querySelector('[type=checkbox]')")
    assert len(column(tab, "comparison", "verdict")) == 12
    tab.click(f"{controls}.querySelector('[type=search]')")
    tab.type("ROPE l,")
    assert column(tab, "comparison", "variant") == ["rope"]
    assert column(tab, "comparison", "cell") == ["l, tokens=100000"]


@needs_chromium
def test_a_number_leads_to_its_trial_configuration_and_commit(tab: Tab) -> None:
    """Also to a trial that a filter has hidden."""
    tab.click("document.querySelector('section[aria-labelledby=trials] [type=search]')")
    tab.type("nothing has this")
    assert column(tab, "trials", "trial") == []
    row = f"[...{table('comparison')}.tBodies[0].rows].find((e) => e.textContent.includes('rope'))"
    tab.click(f"{row}.querySelector('a.id')")
    trial = tab.run("location.hash.slice(1)")
    seen = "(() => { const r = {}.getBoundingClientRect(); return r.top >= 0 && r.bottom <= innerHeight; })()"
    here = "document.querySelector('tr:target')"
    look = f"const look = () => {here}.offsetHeight ? done(true) : setTimeout(look, 10)"
    assert tab.run(f"new Promise((done) => {{ {look}; look(); }})")  # the event comes after the click
    assert tab.run(f"{here}.id") == trial and tab.run(seen.replace("{}", here, 1))
    assert tab.run(f"{here}.textContent").startswith(f"{trial}rope") and "c0ffee" in tab.run(f"{here}.textContent")
    tab.click(f"{here}.querySelector('a[href^=\"#configuration\"]')")
    assert tab.run(f"[...{here}.querySelectorAll('.changes li')].map((e) => e.textContent)") == [
        "arch.position.name learned → rope",
        "arch.position.base not set → 10000",
    ]
    assert trial[:6] in tab.run(f"{here}.textContent") and tab.run(seen.replace("{}", here, 1))


@needs_chromium
def test_every_number_of_every_table_leads_to_trials(tab: Tab) -> None:
    """Each row has a link to trials, or to its variant, which has some; rows of the study as a whole have none."""
    without = tab.run(
        "[...document.querySelectorAll('tbody tr:not(.group)')]"
        ".filter((e) => !e.id && !e.querySelector('a[href^=\"#\"]'))"
        ".map((e) => e.closest('section').getAttribute('aria-labelledby'))"
    )
    assert set(without) <= {"environment", "optimal"}
    assert tab.run(
        "[...document.querySelectorAll('a[href^=\"#variant\"]')].every((e) => "
        "document.querySelector(e.getAttribute('href')).closest('tr').querySelector('a.id'))"
    )


@needs_chromium
def test_a_figure_is_enlarged_and_closed_by_keyboard(tab: Tab) -> None:
    tab.run("document.querySelector('figure button').focus()")
    tab.press("Enter", "\r")
    assert tab.run("document.querySelector('dialog').open && document.querySelector('dialog img').naturalWidth > 100")
    tab.press("Escape")
    assert not tab.run("document.querySelector('dialog').open")


@needs_chromium
def test_the_first_stop_of_the_keyboard_skips_to_the_report(tab: Tab) -> None:
    tab.press("Tab")
    assert tab.run("document.activeElement.textContent") == "Skip to the report"
    assert tab.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    tab.press("Enter", "\r")
    assert tab.run("location.hash") == "#main"


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_either_light(tab: Tab, scheme: str) -> None:
    """Of every piece of text as it is drawn: its colour against what lies behind it."""
    tab.media(scheme=scheme)
    worst = tab.run(
        """(() => {
        const visible = (e) => e.getClientRects().length && getComputedStyle(e).visibility === "visible";
        const behind = (e) => {
            for (let each = e; each; each = each.parentElement) {
                const colour = getComputedStyle(each).backgroundColor;
                if (colour !== "rgba(0, 0, 0, 0)") return colour;
            }
        };
        const found = new Set();
        const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
        while (walk.nextNode()) {
            const e = walk.currentNode.parentElement;
            if (walk.currentNode.data.trim() && visible(e)) found.add(getComputedStyle(e).color + behind(e));
        }
        return [...found];
        })()"""
    )
    pairs = [[int(each) for each in re.findall(r"\d+", colours)] for colours in worst]
    assert len(pairs) >= 5 and all(len(pair) == 6 for pair in pairs)
    assert min(contrast(pair[:3], pair[3:]) for pair in pairs) >= LEAST
    dark = [luminance(pair[3:]) < 0.1 for pair in pairs]
    assert all(dark) if scheme == "dark" else not any(dark)


@needs_chromium
def test_on_a_telephone_only_tables_scroll_sideways(tab: Tab) -> None:
    tab.resize(360, 740, mobile=True)
    assert tab.run("document.documentElement.scrollWidth") <= 360
    assert tab.run(f"{table('comparison')}.closest('.scroll').scrollWidth") > 360


@needs_chromium
def test_paper_has_everything_and_nothing_is_cut(tab: Tab) -> None:
    """Rows that are filtered away on the screen are printed; controls are not."""
    tab.click("document.querySelector('section[aria-labelledby=trials] [type=search]')")
    tab.type("nothing has this")
    pdf = tab.pdf()
    text = pdf_text(pdf)
    ids = tab.run(f"[...{table('trials')}.tBodies[0].rows].map((e) => e.id)")
    assert len(ids) == 36 and all(each in text for each in ids)
    for words in ("Question: does it help?", "rope is better than base", "arch.depth", "diverged"):
        assert words.replace(" ", "") in text
    for words in ("hide what is inside the noise", "Skip to the report", "Close", "36 rows"):
        assert words.replace(" ", "") not in text
    assert pdf_pages(pdf) >= 5
    tab.resize(*PAPER)
    tab.media("print", "dark")
    assert tab.run(
        "[...document.querySelectorAll('table')].every((e) => e.getBoundingClientRect().right <= innerWidth)"
    )
    assert tab.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


@needs_chromium
def test_without_scripts_all_is_there(browser: Browser, page: Path) -> None:
    still = Tab(browser)
    still.call("Emulation.setScriptExecutionDisabled", value=True)
    still.open(page)
    text = pdf_text(still.pdf())
    trials = json.loads((page.parents[1] / "study.json").read_text())["trials"]
    assert all(each["id"] in text for each in trials)
    assert "arch.depth" in text and "Filter" not in text and "↕" not in text


@needs_chromium
def test_what_people_wrote_does_nothing(browser: Browser, tmp_path: Path) -> None:
    bad = "<script>document.title = 'broken'</script><img src=x onerror=\"document.title = 'broken'\">"
    fabricate.study(tmp_path, lambda t: 2.0 + t["seed"] / 100, sizes=(bad,), question=f"Question: {bad}")
    made = Tab(browser)
    made.open(write_report(tmp_path, "made").html)
    assert made.run("document.title") == "made: report" and made.run("document.images.length") >= 1
    assert bad in made.run("document.querySelector('.question').textContent")
    assert made.run("[...document.images].every((e) => !e.src || e.src.startsWith('data:'))")
    made.run("document.head.append(Object.assign(document.createElement('script'), {text: 'document.title = 1'}))")
    assert made.run("document.title") == "made: report"  # the policy allows no script but the page's own


def test_colours_can_be_read_on_one_another() -> None:
    """Every colour of text on every colour that lies behind text, in each theme; no rule names a colour itself."""
    text = STYLE.read_text()
    themes = [
        dict(re.findall(r"--(\w+): (#\w{6})", each)) for each in re.findall(r":root \{(.*?)\}", text, re.DOTALL)
    ]
    inks = set(re.findall(r"(?<![-\w])color: var\(--(\w+)\)", text))
    grounds = set(re.findall(r"background: var\(--(\w+)\)", text)) - {"paper"}  # which lies behind pictures alone
    assert len(themes) == 3 and inks == {"ink", "muted", "link", "better", "worse"}
    assert grounds == {"page", "panel", "warn", "target"}
    for theme, ink, ground in product(themes, inks, grounds):
        assert contrast(rgb(theme[ink]), rgb(theme[ground])) >= LEAST, (ink, theme[ink], ground, theme[ground])
    rules = re.sub(r":root \{.*?\}", "", text, flags=re.DOTALL)
    assert not re.search(r"#[0-9a-fA-F]{3,8}\b|rgba?\(|hsla?\(|opacity", rules)


def rgb(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def luminance(colour: list[int]) -> float:
    """Relative luminance of WCAG 2.2."""
    parts = [each / 255 for each in colour]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: list[int], b: list[int]) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)
