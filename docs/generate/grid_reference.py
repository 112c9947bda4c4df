"""The reference of grid.yaml, read from the code that parses it: keys, types, defaults, legal values, meanings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields
from html import escape
from types import ModuleType
from typing import Any

from markup import code, prose, table, type_of, value

from ablate import arch, designs, grid, hypothesis, prediction, promoting, races, resources, rungs, stages, tuning
from ablate import variants as variants_
from ablate.errors import SpecError
from ablate.match import TARGETS
from ablate.overlays import ladders
from ablate.spec import SECTIONS
from analysis.published import SOURCES

PROBES: dict[str, tuple[Any, ...]] = {"int": (-1, 0), "float": (-1.0, 2.0, 0.0), "str": ("?",)}  # tried for refusals
ENTRY = re.compile(r"^(\w+): (.*?)(?:\s+# (.*))?$")
LINK = re.compile(r"(?:: |; )?see `\w+(?:\.py)?`|: `promoting\.py`|: `analysis\.published`")


@dataclass(frozen=True)
class Block:
    """A block of the grid: where it is described, the dataclass of what it holds, legal values by key."""

    module: ModuleType
    holds: type | None = None
    legal: dict[str, tuple[str, ...]] | None = None


BLOCKS = {
    "variants": Block(variants_),
    "stages": Block(stages),
    "rungs": Block(rungs, rungs.Rungs),
    "predict": Block(prediction, prediction.Prediction, {"form": prediction.FORMS}),
    "tune": Block(tuning),
    "design": Block(designs, None, {"kind": designs.KINDS}),
    "hypothesis": Block(hypothesis, None, {"expect": hypothesis.EXPECTATIONS}),
    "race": Block(races, races.Race, races.NAMES),
    "promote": Block(promoting, promoting.Promote, {"wanted": promoting.WANTED}),
}
LEGAL = {
    "match": tuple(TARGETS),
    "budgets": grid.BUDGETS,
    "published": tuple(SOURCES),
    "sizes": tuple(ladders()),
}
SECTION_TITLES = {
    "arch": "The architecture: sizes, the pattern of sublayers, one component for each slot",
    "data": "What is read",
    "train": "How a trial is trained",
    "resources": "What a trial occupies",
}


def page() -> str:
    """The page, as Markdown."""
    parts = [
        "# The grid",
        "Every key of a `grid.yaml`, read from the code that parses it. "
        "A dotted path such as `train.lr` is a key of one of the [sections](#base) below; `--set train.lr=1e-3` "
        "takes the same paths. A mistake is answered with its file, its line and what would have been legal.",
        "## Keys",
        table(("key", "for example", "meaning"), map(_key_row, grid.KEYS)),
        "## base",
        "What all trials share: `preset`, an [architecture to start from](catalogue/variants.md), and sections.",
    ]
    for name, cls in SECTIONS.items():
        parts += [f"### {name}", f"{SECTION_TITLES[name]}.", _fields_table(name, cls)]
    extra = {"arch.swap": arch.Swap, "resources.parallel": resources.Parallel}
    for name, cls in extra.items():
        parts += [f"### {name}", prose(inspect.getdoc(cls) or ""), _fields_table(name, cls)]
    for name, block in BLOCKS.items():
        parts += [f"## {name}", *_described(name, block)]
    return "\n\n".join(parts) + "\n"


def _key_row(key: str) -> list[str]:
    example, meaning = entries().get(key, ("", ""))
    linked = f'<a href="#{key}"><code>{key}</code></a>' if key in (*BLOCKS, "base") else f"<code>{key}</code>"
    known = f"<br>known: {_choices(LEGAL[key])}" if key in LEGAL else ""
    return [linked, f"<code>{escape(example)}</code>", code(meaning) + known]


def entries() -> dict[str, tuple[str, str]]:
    """Key -> an example and what it means, from the docstring of `ablate.grid`."""
    found: dict[str, tuple[str, str]] = {}
    text = re.sub(r"\n +# ", " ", grid.__doc__ or "")  # comments that go on in the next line
    for line in text.splitlines():
        if matched := ENTRY.match(line):
            found[matched[1]] = (matched[2], LINK.sub("", matched[3] or "").strip())
    return found


def _described(name: str, block: Block) -> Iterator[str]:
    """The docstring of a block's module, its example as YAML, and its keys."""
    for paragraph in re.split(r"\n\s*\n", inspect.getdoc(block.module) or ""):
        if paragraph.startswith(f"{name}:"):
            yield f"```yaml\n{paragraph}\n```"
        else:
            yield prose(paragraph)
    if block.holds:
        rows = []
        for each in fields(block.holds):
            legal = _choices(block.legal[each.name]) if block.legal and each.name in block.legal else ""
            kind = legal or type_of(str(each.type))
            rows.append([f"<code>{each.name}</code>", kind, _default(each)])
        yield table(("key", "type", "default"), rows)
    elif block.legal:
        yield "\n".join(f"<p><code>{key}</code>: {_choices(known)}</p>" for key, known in block.legal.items())


def _fields_table(section: str, cls: type) -> str:
    header = ("key", "type", "default", "meaning")
    return table(header, [_field_row(section, cls, each) for each in fields(cls)])


def _field_row(section: str, cls: type, each: Field[Any]) -> list[str]:
    about = " ".join(filter(None, (meaning(cls, each.name), _limits(cls, each))))
    return [f'<code id="{section}.{each.name}">{each.name}</code>', _kind(each), _default(each), code(about)]


def _kind(each: Field[Any]) -> str:
    if slots := each.metadata.get("slot"):
        names = (slots,) if isinstance(slots, str) else slots
        return " or ".join(f'<a href="catalogue/{slot}.html">{slot}</a>' for slot in names)
    named = {
        "sublayers": "mapping of letters to components",
        "swap": '<a href="#archswap">mapping</a>',
        "parallel": '<a href="#resourcesparallel">mapping</a>',
        "custom": "mapping of names to amounts",
        "memory": "bytes, or text with a unit",
        "path": "file or folder, or a mapping of splits to files",
    }
    return named.get(each.name) or type_of(str(each.type))


def _default(each: Field[Any]) -> str:
    given = each.default if each.default is not MISSING else None
    if isinstance(given, arch.Component):
        return f"<code>{given.name}</code>"
    if each.name == "sublayers":
        return f"<code>{{{', '.join(f'{letter}: {part.name}' for letter, part in given)}}}</code>"
    return "" if given == () or not isinstance(given, int | float | str | tuple) else value(given)


def meaning(cls: type, name: str) -> str:
    """The sentences of a class's docstring that speak of a field."""
    text = " ".join((inspect.getdoc(cls) or "").split())
    sentences = re.split(r"(?<=[.;:])\s+(?=[A-Z`])", text)
    return " ".join(each for each in sentences if re.search(rf"`{name}`", each))


def _limits(cls: type, each: Field[Any]) -> str:
    """What a field refuses, in the words of the refusal: "must be at least 1"."""
    kind = str(each.type).split(" ")[0]
    for probe in PROBES.get(kind, ()) if each.name != "tokens" else ():
        try:
            cls(**{each.name: probe})
        except SpecError as error:
            told = error.problem
            if known := re.search(r"known: (.*)", told):
                return f"One of {known[1]}."
            if found := re.match(r"-?[\d.]+ (must .*)", told):
                return f"It {found[1].split(': ')[0]}."
        except TypeError:
            return ""
    return ""


def _choices(names: tuple[str, ...]) -> str:
    return ", ".join(f"<code>{each}</code>" for each in names)
