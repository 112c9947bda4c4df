"""The documentation site: it builds strictly, is whole, and asks nothing of other machines."""

from __future__ import annotations

import importlib.util
import posixpath
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest
from browser import CHROMIUM, Browser, Tab
from conftest import ROOT

from ablate import registry
from ablate.grid import KEYS
from ablate.overlays import overlays
from ablate.spec import SECTIONS

needs_mkdocs = pytest.mark.skipif(importlib.util.find_spec("material") is None, reason="no mkdocs-material")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
FETCHED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "video": "src"}
WIDTHS = {"desktop": (1280, 900, False), "phone": (390, 844, True)}


class Parsed(HTMLParser):
    """What a page links to, what it fetches, its anchors, its text."""

    def __init__(self, file: Path):
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.anchors: set[str] = set()
        self.text = file.read_text()
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in FETCHED and FETCHED[tag] in given and given.get("rel") not in ("canonical", "next", "prev"):
            self.fetched.append(given[FETCHED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, made.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Parsed]:
    return {
        str(file.relative_to(site)): Parsed(file) for file in sorted(site.rglob("*.html")) if file.name != "404.html"
    }


@needs_mkdocs
def test_every_document_is_a_page(pages: dict[str, Parsed]) -> None:
    written = {f"{file.stem}.html" for file in (ROOT / "docs").glob("*.md")}
    assert written | {"overview.html", "performance.html", "grid.html"} <= set(pages)


@needs_mkdocs
def test_links_and_their_anchors_lead_somewhere(site: Path, pages: dict[str, Parsed]) -> None:
    wrong = []
    for name, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme in ("https", "mailto"):
                continue
            target = (
                posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(parts.path)))
                if parts.path
                else name
            )
            target = f"{target}/index.html".removeprefix("./") if (site / target).is_dir() else target
            if parts.scheme or not (site / target).is_file():
                wrong.append(f"{name}: {link}")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].anchors:
                wrong.append(f"{name}: {link}")
    assert wrong == []


@needs_mkdocs
def test_nothing_is_fetched_from_elsewhere(site: Path, pages: dict[str, Parsed]) -> None:
    """Not by the pages, and not by their styles; what is fetched is there."""
    for name, page in pages.items():
        for address in page.fetched:
            assert not urlsplit(address).scheme and not address.startswith("//"), f"{name}: {address}"
            assert (site / posixpath.dirname(name) / urlsplit(address).path).is_file(), f"{name}: {address}"
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", style.read_text()), style.name


@needs_mkdocs
def test_every_component_and_variant_is_in_the_catalogue(site: Path, pages: dict[str, Parsed]) -> None:
    for entry in registry.catalogue():
        if entry.code:
            continue  # a plugin of another test
        page = pages[f"catalogue/{entry.slot}.html"]
        assert entry.name in page.anchors, f"{entry.slot} {entry.name}"
        assert all(f"<code>{option.name}</code>" in page.text for option in entry.options), entry.name
    assert set(overlays()) <= pages["catalogue/variants.html"].anchors


@needs_mkdocs
def test_every_key_of_a_grid_is_in_the_reference(pages: dict[str, Parsed]) -> None:
    page = pages["grid.html"]
    assert all(f"<code>{key}</code>" in page.text for key in KEYS)
    paths = {f"{name}.{each.name}" for name, section in SECTIONS.items() for each in fields(section)}
    assert paths <= page.anchors


def test_every_key_of_a_grid_has_a_meaning(reference: ModuleType) -> None:
    """In the docstrings: of the grid's own keys, and of the sections' but for the slots, which say themselves."""
    assert {key: said for key, (_, said) in reference.entries().items() if not said} == {}
    assert set(reference.entries()) == set(KEYS)
    silent = [
        f"{name}.{each.name}"
        for name, section in SECTIONS.items()
        for each in fields(section)
        if "slot" not in each.metadata and not reference.meaning(section, each.name)
    ]
    assert silent == []


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return _generator(monkeypatch, "grid_reference")


def test_what_a_key_may_be_is_what_the_code_refuses(reference: ModuleType) -> None:
    text = reference.page()
    assert "must be at least 0 and below 1" in _row(text, "train.dropout")
    assert "auto, bf16, fp32" in _row(text, "train.precision")


def _row(text: str, path: str) -> str:
    (row,) = [line for line in text.splitlines() if f'id="{path}"' in line]
    return row


def test_figures_are_those_that_their_script_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """In their words and numbers: the lines may differ by the version of matplotlib."""
    figures = _generator(monkeypatch, "figures")
    kept = {file.stem for file in figures.FOLDER.glob("*.svg")}
    assert set(figures.FIGURES) <= kept
    for name in figures.FIGURES:
        words = re.findall(r"<text[^>]*>(.*?)</text>", (figures.FOLDER / f"{name}.svg").read_text(), re.DOTALL)
        assert words and words == re.findall(r"<text[^>]*>(.*?)</text>", figures.drawn(name).decode(), re.DOTALL), (
            name
        )
    table = "\n".join(figures.modifications_table())
    assert table in (ROOT / "docs" / "index.md").read_text()


def _generator(monkeypatch: pytest.MonkeyPatch, name: str) -> ModuleType:
    """A module of docs/generate."""
    monkeypatch.syspath_prepend(ROOT / "docs" / "generate")
    return importlib.import_module(name)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser") / "profile") as made:
        yield made


@needs_mkdocs
@needs_chromium
@pytest.mark.parametrize("width", WIDTHS)
def test_pages_open_from_disk_without_complaint(
    browser: Browser, site: Path, pages: dict[str, Parsed], width: str
) -> None:
    """Nothing on the console, nothing asked of another machine, nothing beside the window."""
    tab = Tab(browser, *WIDTHS[width])
    for name in pages:
        tab.open(site / name)
        assert tab.run("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0, name
        assert tab.errors() == [] and all(url.startswith("file:") for url in tab.requests()), name
    tab.close()


@needs_mkdocs
@needs_chromium
def test_the_search_finds_a_component_without_a_server(browser: Browser, site: Path) -> None:
    tab = Tab(browser)
    tab.open(site / "index.html")
    tab.run("document.querySelector('.md-search__input').focus()")
    tab.type("bigbird")
    tab.press(" ", " ")  # the page looks when a key goes up
    found = tab.run(
        "new Promise(done => { const look = (left) => {"
        "const link = document.querySelector('.md-search-result__link');"
        "link || !left ? done(link && link.getAttribute('href')) : setTimeout(look, 100, left - 1) }; look(100) })"
    )
    tab.close()
    assert found and "bigbird" in found
