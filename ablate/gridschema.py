"""The JSON Schema of grid.yaml, made from the code that reads grids: for editors, which complete and check by it.

It knows names and types: keys, dotted paths, components and their options, variants, presets, ladders. It does not
know which values go together, nor their ranges: `ablate plan` does. Draft 7, which editors read.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from functools import lru_cache
from typing import Any

from ablate import (
    designs,
    grid,
    hypothesis,
    prediction,
    profiles,
    promoting,
    races,
    registry,
    rungs,
    stages,
    tuning,
    variants,
)
from ablate.arch import SUBLAYER, ArchSpec, Swap
from ablate.choices import MOST_SEEDS
from ablate.match import TARGETS
from ablate.names import LONGEST, NAME
from ablate.overlays import BASELINE, ladders, overlays
from ablate.resources import Parallel, amounts_of, bytes_of, parallel_of
from ablate.spec import SECTIONS, to_tree
from ablate.yamlfile import FLOAT, INT

Tree = dict[str, Any]

DRAFT = "http://json-schema.org/draft-07/schema#"
FILLED_IN = ("content", "vocabulary")  # fields that the harness fills in, and no grid
DOCS = {  # the modules that read a key of their own, and say what it does
    "variants": variants,
    "stages": stages,
    "rungs": rungs,
    "predict": prediction,
    "tune": tuning,
    "design": designs,
    "hypothesis": hypothesis,
    "race": races,
    "promote": promoting,
}
NUMBERS: Tree = {  # 10_000 and 1_000.5 are numbers here, and text to editors
    "integer": {"type": ["integer", "string"], "pattern": f"^(?=.*_)(?:{INT.pattern})$"},
    "number": {"type": ["number", "string"], "pattern": f"^(?=.*_)(?:{FLOAT.pattern})$"},
}
INTEGER: Tree = {"$ref": "#/definitions/integer"}
NUMBER: Tree = {"$ref": "#/definitions/number"}
TEXT: Tree = {"type": "string"}
NULL: Tree = {"type": "null"}


def grid_schema() -> Tree:
    """The schema, with the components of the plugins that were added."""
    return {
        "$schema": DRAFT,
        "title": "grid.yaml of ablate",
        "description": (grid.__doc__ or "").split("\n")[0],
        **_object({key: {"description": _told(key), **_key(key)} for key in grid.KEYS}),
        "definitions": _definitions(),
    }


def _key(key: str) -> Tree:
    """What may stand at a key of the grid. Raises `KeyError` for a key that is not known here."""
    name = {"type": "string", "pattern": f"^{NAME.pattern}$", "maxLength": LONGEST}
    made: dict[str, Callable[[], Tree]] = {
        "study": lambda: name,
        "base": lambda: _or_null(_ref("base")),
        "variants": lambda: {"anyOf": [_named(_ref("variant")), _list(_ref("overlay")), NULL]},
        "axes": lambda: _or_null(_ref("lists")),
        "sizes": lambda: {
            "anyOf": [{"enum": list(ladders())}, _named(_ref("settings"), "^[^.]*$"), _ref("lists"), NULL]
        },
        "budgets": lambda: _or_null(
            _object(dict.fromkeys(grid.BUDGETS, _one_or_more(NUMBER))) | {"maxProperties": 1}
        ),
        "match": lambda: {"enum": list(TARGETS), "default": "params"},
        "tolerance": lambda: {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1, "default": 0.01},
        "seeds": lambda: _ref("seeds"),
        "stages": lambda: _or_null(_named(_or_null(_ref("stage")))),
        "rungs": lambda: _or_null(_block(rungs.Rungs, ("at", "keep"), {"at": _one_or_more(NUMBER)})),
        "predict": lambda: _or_null(
            _block(prediction.Prediction, prediction.KEYS, {"form": _enum(prediction.FORMS)})
        ),
        "tune": lambda: _or_null(_tune()),
        "design": lambda: _or_null(_design()),
        "hypothesis": lambda: _or_null(_hypothesis()),
        "published": lambda: {"enum": [*_published(), None]},
        "race": lambda: _or_null(
            _block(races.Race, races.KEYS, {key: _enum(names) for key, names in races.NAMES.items()})
        ),
        "smallest": lambda: {"anyOf": [NUMBER, _named(NUMBER), NULL]},
        "promote": lambda: _or_null(_block(promoting.Promote, promoting.KEYS, {"wanted": _enum(promoting.WANTED)})),
        "profiles": lambda: _or_null(_named(_profile())),
        "plugins": lambda: {"anyOf": [TEXT, _list(TEXT), NULL]},
    }
    return made[key]()


def _profile() -> Tree:
    """What is laid over a grid: whole keys of it or what they have inside, settings by their paths, variants."""
    settings, patterns = _settings()
    inside = {rf"^({'|'.join(profiles.WHOLE)})\..+$": {}, r"^variants\..+$": _ref("variant")}
    whole = {key: _key(key) for key in profiles.WHOLE}
    return _object(whole | {name: _ref(name) for name in settings}, patterns | inside)


def _definitions() -> Tree:
    settings, patterns = _settings()
    laid = {name: _ref(name) for name in (*SECTIONS, *settings)}
    lists = {path: _one_or_more(_ref(path)) for path in settings}
    own = {"use": _ref("overlay"), "priority": NUMBER}
    stage = {"from": {"type": ["string", "null"]}, "seeds": _ref("seeds"), "axes": _or_null(_ref("lists"))}
    return {
        "settings": _object(laid, patterns),
        "lists": _object(lists, {pattern: _one_or_more(value) for pattern, value in patterns.items()}),
        "base": _object({"preset": _ref("overlay"), **laid}, patterns),
        "variant": {"anyOf": [_ref("overlay"), _object({**own, **laid}, patterns), NULL]},
        "factor": {"anyOf": [_ref("overlay"), _object({"use": own["use"], **laid}, patterns)]},
        "stage": _object({**stage, **laid}, patterns),
        "seeds": {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": MOST_SEEDS},
                _list({"type": "integer", "minimum": 0}, uniqueItems=True),
            ]
        },
        "overlay": _overlay(),
        "swap": _object({each.name: _field(Swap, each) for each in fields(Swap)}),
        **{name: _section(name, cls) for name, cls in SECTIONS.items()},
        **{slot: _component(slot) for slot in registry.KINDS},
        _slot_name(SUBLAYER): {"anyOf": [_ref(slot) for slot in SUBLAYER]},
        **settings,
        **NUMBERS,
    }


def _settings() -> tuple[Tree, Tree]:
    """Every dotted path of a trial's settings with what may stand there, and those of free letters and names."""
    found: Tree = {}
    for section, cls in SECTIONS.items():
        for each in fields(cls):
            if each.name in FILLED_IN:
                continue
            path = f"{section}.{each.name}"
            found[path] = _field(cls, each)
            if slots := each.metadata.get("slot"):
                found |= {f"{path}.{name}": value for name, value in _options(slots).items()}
    found |= {f"arch.swap.{each.name}": _field(Swap, each) for each in fields(Swap)}
    found |= {f"resources.parallel.{each.name}": _field(Parallel, each) for each in fields(Parallel)}
    found |= {f"arch.sublayers.{letter}": _ref("sublayer") for letter, _ in ArchSpec.sublayers}
    patterns = {r"^arch\.sublayers\.[A-Za-z]$": _ref("sublayer"), r"^resources\.custom\..+$": NUMBER}
    patterns |= {rf"^arch\.sublayers\.[A-Za-z]\.{name}$": value for name, value in _options(SUBLAYER).items()}
    return found, patterns


def _section(name: str, cls: type) -> Tree:
    known = {each.name: _ref(f"{name}.{each.name}") for each in fields(cls) if each.name not in FILLED_IN}
    return {"description": _text(cls.__doc__), **_object(known)}


def _field(cls: type, field: Any) -> Tree:
    """A field of a specification: its type, its default, and what its class says of it."""
    kind = "list[str]" if field.type == "tuple[str, ...]" else str(field.type)
    parsed = {
        bytes_of: {"anyOf": [INTEGER, {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*[A-Za-z]+\s*$"}]},
        amounts_of: _named(NUMBER),
    }
    if field.metadata.get("parse") is parallel_of:
        value = _object({each.name: _field(Parallel, each) for each in fields(Parallel)})
    elif parser := field.metadata.get("parse"):
        value = parsed[parser]
    elif field.name == "swap":
        value = _ref("swap")
    elif slots := field.metadata.get("slot"):
        value = _ref(_slot_name(slots))
    elif field.name == "sublayers":
        value = _named(_ref("sublayer"), "^[A-Za-z]$")
    elif known := field.metadata.get("known"):
        value = {"type": "array", "items": _enum(known)} if kind.startswith("list") else _enum(known)
    elif field.metadata.get("paths"):
        value = {"anyOf": [TEXT, _object(dict.fromkeys(("train", "valid", "test"), TEXT))]}
    else:
        value = _type(kind)
    value = _or_null(value) if field.default is None else value
    told = _told_of(cls.__doc__, field.name)
    return {
        **value,
        **({"description": told} if told else {}),
        **_default_of(field),
    }  # beside a $ref: for readers alone


def _default_of(field: Any) -> Tree:
    """Plain ones: of a component its name."""
    tree = to_tree(field.default)
    if isinstance(tree, Mapping) and set(tree) == {"name"}:
        return {"default": tree["name"]}
    return {"default": tree} if isinstance(tree, str | int | float) and tree != "" else {}


def _component(slot: str) -> Tree:
    """A component by its name, or with options."""
    entries = registry.catalogue(slot)
    by_name = {"enum": [entry.name for entry in entries], "enumDescriptions": [_summary(entry) for entry in entries]}
    with_options = [
        {
            "title": entry.name,
            "description": _summary(entry),
            **_object({"name": {"const": entry.name}, **{each.name: _option(entry, each) for each in entry.options}}),
            "required": ["name"],
        }
        for entry in entries
    ]
    return {"anyOf": [by_name, *with_options]}


def _options(slots: str | tuple[str, ...]) -> Tree:
    """Every option that some component of the slots has, as it stands behind a dotted path."""
    found: dict[str, list[Tree]] = {}
    owners: dict[str, list[str]] = {}
    for entry in _entries(slots):
        for option in entry.options:
            kinds, value = found.setdefault(option.name, []), _type(option.type)
            owners.setdefault(option.name, []).append(entry.name)
            if value not in kinds:
                kinds.append(value)
    return {
        name: {"description": f"of {', '.join(owners[name])}", **(kinds[0] if len(kinds) == 1 else {"anyOf": kinds})}
        for name, kinds in found.items()
    }


def _option(entry: registry.Entry, option: Any) -> Tree:
    told = _told_of(entry.doc, option.name)
    value = {**_type(option.type), **({"description": told} if told else {})}
    return value | ({"default": option.default} if option.default is not None else {})


@lru_cache(maxsize=256)
def _parsed(kind: str) -> ast.expr:
    return ast.parse(kind, mode="eval").body


def _type(kind: str | ast.expr) -> Tree:
    """A type as it is written in the source: see `ablate.signatures.accept`."""
    match _parsed(kind) if isinstance(kind, str) else kind:
        case ast.BinOp(left=left, right=right):
            sides = [_type(left), _type(right)]
            return {"anyOf": [inner for side in sides for inner in side.get("anyOf", [side])]}
        case ast.Constant(value=None):
            return NULL
        case ast.Name(id="bool"):
            return {"type": "boolean"}
        case ast.Name(id="int"):
            return INTEGER
        case ast.Name(id="float"):
            return NUMBER
        case ast.Name(id="str"):
            return TEXT
        case ast.Subscript(value=ast.Name(id="Literal"), slice=words):
            known = ast.literal_eval(words)
            return _enum(known if isinstance(known, tuple) else (known,))
        case ast.Subscript(value=ast.Name(id="list"), slice=item):
            return {"type": "array", "items": _type(item)}
        case other:
            raise ValueError(f"a grid holds no value of type {ast.unparse(other)}")


def _overlay() -> Tree:
    """A registered variant or preset, or several combined."""
    known = {BASELINE: "the base as it stands", **{name: each.paper for name, each in overlays().items()}}
    one = "|".join(re.escape(name) for name in known)
    return {
        "anyOf": [
            {"enum": list(known), "enumDescriptions": list(known.values())},
            {"type": "string", "pattern": rf"^({one})(\s*\+\s*({one}))+$"},
        ]
    }


def _block(cls: type, keys: Iterable[str], others: Mapping[str, Tree]) -> Tree:
    """A key of the grid that a dataclass holds; `others` are the keys that their types do not tell."""
    kinds = {each.name: str(each.type) for each in fields(cls)}
    return _object({key: others.get(key) or _type(kinds[key]) for key in keys})


def _tune() -> Tree:
    swept = _object({"low": NUMBER, "high": NUMBER, "points": {"type": "integer", "minimum": 3}})
    settings, _ = _settings()
    paths = [path for path, value in settings.items() if path.startswith("train.") and _is_number(value)]
    values = {"anyOf": [swept, {"type": "array", "items": NUMBER, "minItems": 3}]}
    return _object(
        {"seeds": _ref("seeds"), "extend": {"type": "integer", "minimum": 0}, **dict.fromkeys(paths, values)}
    )


def _is_number(value: Tree) -> bool:
    refs = (INTEGER["$ref"], NUMBER["$ref"])
    return any(each.get("$ref") in refs for each in (value, *value.get("anyOf", ())))


def _design() -> Tree:
    known = {"factors": _named(_ref("factor")), "kind": _enum(designs.KINDS), "resolution": {"type": "integer"}}
    return _object({key: known[key] for key in designs.KEYS})


def _hypothesis() -> Tree:
    others = {"expect": _enum(hypothesis.EXPECTATIONS), "smallest": NUMBER}
    return _object({key: others.get(key, TEXT) for key in hypothesis.KEYS})


def _published() -> list[str]:
    from analysis.published import SOURCES  # pandas

    return list(SOURCES)


def _entries(slots: str | tuple[str, ...]) -> list[registry.Entry]:
    return [entry for slot in ((slots,) if isinstance(slots, str) else slots) for entry in registry.catalogue(slot)]


def _slot_name(slots: str | tuple[str, ...]) -> str:
    return slots if isinstance(slots, str) else "sublayer"


def _summary(entry: registry.Entry) -> str:
    """The first paragraph of its docstring, and its source."""
    return "\n".join(filter(None, (_text(entry.doc.split("\n\n")[0]), entry.paper)))


def _told(key: str) -> str:
    """What is said of a key of the grid: by the module that reads it, or by the list of all keys."""
    if key in DOCS:
        return (DOCS[key].__doc__ or "").strip()
    (line,) = re.findall(rf"^{key}: .*$", grid.__doc__ or "", re.MULTILINE)
    example, _, said = line.partition("#")
    return "\n".join(filter(None, (said.strip(), example.strip())))


def _told_of(doc: str | None, name: str) -> str:
    """The sentences of a docstring that name it."""
    sentences = re.split(r"(?<=[.;])\s+(?=[A-Z`])", _text(doc))
    return " ".join(each for each in sentences if f"`{name}`" in each)


def _text(doc: str | None) -> str:
    return " ".join((doc or "").split())


def _object(properties: Tree, patterns: Tree | None = None) -> Tree:
    more = {"patternProperties": patterns} if patterns else {}
    return {"type": "object", "properties": properties, **more, "additionalProperties": False}


def _named(value: Tree, pattern: str = "") -> Tree:
    """A mapping of names to such values."""
    return {"type": "object", "additionalProperties": value} | (
        {"propertyNames": {"pattern": pattern}} if pattern else {}
    )


def _list(items: Tree, **more: Any) -> Tree:
    return {"type": "array", "items": items, "minItems": 1, **more}


def _one_or_more(value: Tree) -> Tree:
    return {"anyOf": [value, _list(value)]}


def _or_null(value: Tree) -> Tree:
    inner = value["anyOf"] if set(value) == {"anyOf"} else [value]
    return {"anyOf": inner if NULL in inner else [*inner, NULL]}


def _enum(words: Iterable[str]) -> Tree:
    return {"enum": list(words)}


def _ref(name: str) -> Tree:
    return {"$ref": f"#/definitions/{name}"}
