"""Hooks of mkdocs: pages that are generated, pages that lie outside of docs/, and links between them all.

A link is written as it works in the repository; on the site it leads to the page that the file has become, or to a
copy of the file.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import catalogue
import grid_reference
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = {  # files of the repository that are pages of the site
    "README.md": "overview.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "experiments/LOG.md": "log.md",
    "results/README.md": "results.md",
    "benchmarks/README.md": "performance.md",
    "benchmarks/precision.md": "benchmarks/precision.md",
    "benchmarks/many_trials.md": "benchmarks/many_trials.md",
}
CATALOGUE = "catalogue/"  # what stands for its pages in the navigation
CODE = re.compile(r"(^```.*?^```$|`[^`\n]*`)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)")


def on_config(config: Any) -> Any:
    config.nav = _expanded(config.nav)
    return config


def on_files(files: Files, config: Any) -> Files:
    made = {uri: (ROOT / source).read_text() for source, uri in OUTSIDE.items()}
    made |= {"grid.md": grid_reference.page(), **catalogue.files()}
    for uri, text in made.items():
        files.append(File.generated(config, uri, content=text))
    for uri in sorted(set(_copied()) - set(files.src_uris)):
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / uri)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    uri = page.file.src_uri
    if uri == OUTSIDE["benchmarks/README.md"]:
        markdown = _summary_first(markdown)
    home = _source(uri)
    if not (ROOT / home).exists():
        return markdown  # generated: its links are the site's
    parts = CODE.split(markdown)
    for index in range(0, len(parts), 2):
        parts[index] = LINK.sub(lambda link: _link(link[1], home, uri), parts[index])
    return "".join(parts)


def _expanded(nav: Any) -> Any:
    """The navigation with the catalogue's pages in the place of its name."""
    if isinstance(nav, list):
        return [_expanded(each) for each in nav]
    if isinstance(nav, dict):
        return {title: _expanded(each) for title, each in nav.items()}
    return catalogue.nav() if nav == CATALOGUE else nav


def _source(uri: str) -> str:
    """The file of the repository that a page of the site is made of."""
    return {page: source for source, page in OUTSIDE.items()}.get(uri, f"docs/{uri}")


def _place(source: str) -> str:
    """Where a file of the repository stands on the site."""
    return OUTSIDE.get(source, source.removeprefix("docs/"))


def _link(link: str, home: str, uri: str) -> str:
    target = posixpath.normpath(posixpath.join(posixpath.dirname(home), link))
    return posixpath.relpath(_place(target), posixpath.dirname(uri) or ".")


def _copied() -> Iterator[str]:
    """Files outside of docs/ that pages lead to and that are no pages themselves."""
    for home in (*OUTSIDE, *(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))):
        for part in CODE.split((ROOT / home).read_text())[::2]:
            for link in LINK.findall(part):
                target = posixpath.normpath(posixpath.join(posixpath.dirname(home), link))
                if not target.startswith("docs/") and target not in OUTSIDE and os.path.isfile(ROOT / target):
                    yield target


def _summary_first(markdown: str) -> str:
    """What the figures of the benchmarks say, before the tables of them."""
    intro, *sections = re.split(r"^(?=## )", markdown, flags=re.MULTILINE)
    return "".join((intro, sections[-1].rstrip() + "\n\n", *sections[:-1]))
