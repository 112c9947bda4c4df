"""The catalogue: a page for each kind of component with every entry of the registry, and one of the variants."""

from __future__ import annotations

import ast
import json
from html import escape
from pathlib import Path
from typing import Any

from markup import code, prose, table, type_of, value

from ablate import registry
from ablate.overlays import Overlay, overlays
from ablate.registry import Entry

ROOT = Path(__file__).resolve().parents[2]
PAGES = {  # kind -> its page's title, and where in a grid one is named
    "mixer": ("Mixers", "arch.sublayers.s"),
    "channel": ("Channels", "arch.sublayers.f"),
    "position": ("Positions", "arch.position"),
    "norm": ("Norms", "arch.norm"),
    "residual": ("Residuals", "arch.residual"),
    "embedding": ("Embeddings", "arch.embedding"),
    "head": ("Heads", "arch.head"),
    "stack": ("Stacks", "arch.stack"),
    "sharing": ("Sharing", "arch.sharing"),
    "init": ("Initialisations", "arch.init"),
    "model": ("Whole models", "arch.model"),
    "task": ("Tasks", "data.task"),
    "tokenizer": ("Tokenizers", "data.tokenizer"),
    "optimizer": ("Optimizers", "train.optimizer"),
    "schedule": ("Schedules", "train.schedule"),
}
BASES = {  # whose docstring says what a kind is
    **dict.fromkeys(registry.SLOTS, "contracts.py"),
    "model": "contracts.py",
    "task": "tasks/base.py",
    "tokenizer": "data/tokenizers.py",
    "schedule": "train/schedules.py",
}
NOT_DRAWN = ("init",)  # changes nothing in a picture
VARIANTS = "catalogue/variants.md"


def nav() -> list[dict[str, str]]:
    """The catalogue's part of the navigation."""
    return [{title: f"catalogue/{kind}.md"} for kind, (title, _) in PAGES.items()] + [{"Named variants": VARIANTS}]


def files() -> dict[str, str]:
    """Every page and diagram of the catalogue, by its place on the site."""
    made = {f"catalogue/{kind}.md": page(kind) for kind in PAGES}
    drawn = [entry for kind in registry.SLOTS if kind not in NOT_DRAWN for entry in registry.catalogue(kind)]
    made |= {f"catalogue/{_picture(entry)}": diagram(entry) for entry in drawn}
    return made | {VARIANTS: variants_page()}


def page(kind: str) -> str:
    """One kind's page: what it is, its entries side by side, each with its definition."""
    title, place = PAGES[kind]
    entries, costs = registry.catalogue(kind), measured()
    header, rows = ["name", "what it computes"], []
    if any((kind, entry.name) in costs for entry in entries):
        header += ["step time", "FLOPs"]
    for entry in entries:
        row = [f'<a href="#{entry.name}"><code>{entry.name}</code></a>', code(_first_line(entry))]
        rows.append(row + _cells(costs.get((kind, entry.name)), len(header) - 2))
    named = next((entry for entry in entries if entry.options), entries[0])
    option = f", {named.options[0].name}: ..." if named.options else ""
    example = f"`{place}: {named.name}`, or with options `{place}: {{name: {named.name}{option}}}`"
    parts = [f"# {title}", prose(_contract(kind)), f"In a grid: {example}.", table(header, rows)]
    if len(header) > 2:
        parts.append(_how_measured(kind))
    return "\n\n".join((*parts, *(section(entry, costs.get((kind, entry.name))) for entry in entries))) + "\n"


def section(entry: Entry, cost: list[str] | None) -> str:
    """One component: its definition, source, options, what it costs, where it stands."""
    facts = [f"<b>Source</b> {escape(entry.paper)}"]
    if entry.slot in registry.SLOTS and entry.slot not in ("init", "sharing"):
        facts.append("causal or not" if entry.causal else "<b>not causal</b>: sees later tokens")
    if entry.form != registry.FORMS[0]:
        facts.append(f"for models of the form <code>{entry.form}</code>")
    if cost:
        facts.append(f"a training step takes {cost[0]} times the default's")
    parts = [f"## {entry.name} {{ #{entry.name} }}", prose(entry.doc), f"<p class=facts>{' · '.join(facts)}</p>"]
    if entry.options:
        rows = [[f"<code>{each.name}</code>", type_of(each.type), value(each.default)] for each in entry.options]
        parts.append(table(("option", "type", "default"), rows))
    if entry.slot in registry.SLOTS and entry.slot not in NOT_DRAWN:
        picture = f'<img src="{_picture(entry)}" alt="A small model with {entry.slot} {entry.name}" loading="lazy">'
        parts.append(f"<details><summary>A small model with it</summary>{picture}</details>")
    return "\n\n".join(parts)


def diagram(entry: Entry) -> str:
    """The drawing of a small model with this component in its place."""
    from ablate.draw import svg
    from ablate.draw.anatomy import Given, figure
    from ablate.subject import VOCAB, T, subjects

    subject = next(each for each in subjects() if each.entry == entry)
    given = Given(subject.arch, VOCAB, T, entry.causal, subject.shape)
    return svg.draw(figure(entry.name, given))


def measured() -> dict[tuple[str, str], list[str]]:
    """Step time and FLOPs over the default's, by kind and name, as `python -m benchmarks components` left them."""
    _, *rows = json.loads((ROOT / "benchmarks" / "results.json").read_text())["components"]["rows"]
    return {(slot, name.split(" ")[0]): [time, flops] for slot, name, time, flops, _ in rows if flops}


def variants_page() -> str:
    """The named overlays, by paper, and the presets."""
    groups: dict[str, list[Overlay]] = {}
    for overlay in overlays().values():
        groups.setdefault("Presets" if overlay.preset else overlay.paper, []).append(overlay)
    parts = ["# Named variants", "Names that a grid's `variants` may use, alone or combined: `rmsnorm+swiglu+rope`."]
    for title, each in sorted(groups.items(), key=lambda group: group[0] != "Presets"):
        rows = [[f'<code id="{one.name}">{one.name}</code>', _settings(one)] for one in each]
        parts += [f"## {title}", table(("name", "sets"), rows)]
    return "\n\n".join(parts) + "\n"


def _settings(overlay: Overlay) -> str:
    lines = [f"<code>{escape(path)}: {escape(_yaml(each))}</code>" for path, each in overlay.settings.items()]
    return (f"{escape(overlay.paper)}<br>" if overlay.preset else "") + "<br>".join(lines)


def _yaml(given: Any) -> str:
    if isinstance(given, dict):
        return "{" + ", ".join(f"{key}: {_yaml(each)}" for key, each in given.items()) + "}"
    return str(given).lower() if isinstance(given, bool) else "null" if given is None else str(given)


def _picture(entry: Entry) -> str:
    return f"diagrams/{entry.slot}-{entry.name}.svg"


def _first_line(entry: Entry) -> str:
    return " ".join(entry.doc.split("\n\n")[0].split())


def _cells(cost: list[str] | None, count: int) -> list[str]:
    return [cost[0].split(" ")[0], cost[1]] if cost and count else [""] * count


def _how_measured(kind: str) -> str:
    found = json.loads((ROOT / "benchmarks" / "results.json").read_text())["components"]
    return (
        f"Step time and FLOPs are those of a training step over those of the default {kind}, at width 128, 2 layers "
        f"and 256 tokens ({found['machine']}; {found['date']}). The default has 1."
    )


def _contract(kind: str) -> str:
    """The docstring of the kind's base class, read from the source."""
    if kind not in BASES:
        return ""
    tree = ast.parse((registry.PACKAGE / BASES[kind]).read_text())
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    return ast.get_docstring(classes[kind.title()]) or ""
