"""Which components exist, and how to make one.

A component is a class under `@register(slot, name, paper=...)`; its options are the keyword-only arguments of
its constructor. The catalogue is read from the *source* of this package (and of the user's plugins), so that
listing components, checking a grid and computing an id import nothing heavy; the class itself is imported when
it is first made. This asks three things of a component, and says so when one is missing: the decorator's
arguments and the options' defaults are literals, options carry a type, and there is no `*args` or `**kwargs`.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from ablate.errors import UserError, unknown
from ablate.signatures import Option, read_options

SLOTS = (
    "embedding",
    "position",
    "mixer",
    "channel",
    "norm",
    "residual",
    "stack",
    "sharing",
    "init",
    "head",
)
FORMS = ("tokens", "pair", "classify", "image", "denoise")
KINDS = (*SLOTS, "model", "optimizer", "schedule", "tokenizer", "task")

PACKAGE = Path(__file__).parent
PLUGIN = "ablate_plugin_"  # begins the names of the modules that are made of plugins
T = TypeVar("T", bound=type)


@dataclass(frozen=True)
class Entry:
    """One registered component, as its source declares it."""

    slot: str
    name: str
    paper: str
    causal: bool
    form: str
    version: int
    options: tuple[Option, ...]
    doc: str
    cls: str
    file: Path
    module: str
    code: str = ""  # hash of the syntax tree, of a component that is not part of this package

    @property
    def defaults(self) -> dict[str, Any]:
        return {option.name: option.default for option in self.options}

    @property
    def identity(self) -> dict[str, Any]:
        """What a trial's id holds of this component: its name, and its version or the hash of its code."""
        return {"name": self.name, "code": self.code} if self.code else {"name": self.name, "version": self.version}


_added: dict[tuple[str, str], Entry] = {}  # from plugins
_classes: dict[tuple[str, str], type] = {}  # imported so far
_plugin_files: dict[Path, str] = {}


def register(
    slot: str, name: str, *, paper: str, causal: bool = True, form: str = "tokens", version: int = 1
) -> Callable[[T], T]:
    """Enter a class as component `name` of `slot`.

    `paper` is the source of the definition. `causal=False` states that it cannot be used causally; the contract
    checks verify that in both directions. `form` names the kind of model that it is for, where that is not one that
    reads tokens and says something of each: `pair` an encoder-decoder, `classify` a classifier of sequences, `image`
    one of images, `denoise` a denoiser of images. `version` is raised whenever the meaning of the component
    changes, so that results made with the old meaning are never taken for results of the new one.
    """

    def enter(cls: T) -> T:
        if (slot, name) not in _entries():
            file = inspect.getsourcefile(cls)
            if file is None:
                raise UserError(f"{slot} {name!r}: the source of {cls.__name__} cannot be read")
            add_plugin(Path(file))
        _classes[slot, name] = cls
        cls.component = f"{slot}/{name}"  # type: ignore[attr-defined]
        return cls

    return enter


def catalogue(slot: str | None = None) -> list[Entry]:
    """All components, or those of one slot, by slot and name."""
    if slot is not None and slot not in KINDS:
        raise UserError(unknown("slot", slot, KINDS))
    chosen = [entry for entry in _entries().values() if slot in (None, entry.slot)]
    return sorted(chosen, key=lambda entry: (KINDS.index(entry.slot), entry.name))


def find(slots: str | tuple[str, ...], name: str) -> Entry:
    """The entry of that name in one of the slots. Raises `UserError` with the known names."""
    slots = (slots,) if isinstance(slots, str) else slots
    for slot in slots:
        if entry := _entries().get((slot, name)):
            return entry
    names = [entry.name for slot in slots for entry in catalogue(slot)]
    what = " or ".join(slots) if len(slots) < 4 else "component"
    raise UserError(unknown(what, name, names, "ablate list"))


def load(entry: Entry) -> type:
    """The class of an entry, imported now if it was not yet."""
    if (entry.slot, entry.name) not in _classes:
        if entry.code:
            _import_file(entry.module, entry.file)
        else:
            importlib.import_module(entry.module)
    try:
        return _classes[entry.slot, entry.name]
    except KeyError:
        raise UserError(f"{entry.file} has changed since it was imported: start Python anew") from None


def make(slots: str | tuple[str, ...], component: Any, *args: Any) -> Any:
    """Build `component` (its name and options) with the slot's positional arguments."""
    entry = find(slots, component.name)
    return load(entry)(*args, **dict(component.options))


def add_plugin(file: Path) -> list[Entry]:
    """Enter the components of a user's own file. Its code is hashed, so that a change of it changes ids."""
    file = file.resolve()
    if not file.is_file():
        raise UserError(f"plugin {file} {'is not a file' if file.exists() else 'does not exist'}")
    tree = _parse(file)
    code = syntax_hash(file.read_text(encoding="utf-8"))
    if _plugin_files.get(file) == code:
        return [entry for entry in _added.values() if entry.file == file]
    for key in [key for key, entry in _added.items() if entry.file == file]:
        _added.pop(key)
        _classes.pop(key, None)
    module = _module_name(file, code)
    entries = list(_read(file, tree, module, code))
    if not entries:
        raise UserError(f"plugin {file} registers nothing: decorate a class with @register(slot, name, paper=...)")
    for entry in entries:
        if other := _entries().get((entry.slot, entry.name)):
            raise UserError(f"plugin {file}: {entry.slot} {entry.name!r} is already registered in {other.file.name}")
        _added[entry.slot, entry.name] = entry
    _plugin_files[file] = code
    return entries


def plugin_files() -> dict[str, str]:
    """Path -> code hash of every plugin in use: what a worker process needs to load the same components."""
    return {str(file): code for file, code in _plugin_files.items()}


def syntax_hash(source: str) -> str:
    """Hash of a module's meaning: comments, layout and docstrings do not count."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node, clean=False
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return hashlib.sha256(_text_of(tree).encode()).hexdigest()[:16]


def _text_of(node: Any) -> str:
    """A syntax tree as text without its empty fields, which differ between Python's versions (`ast.dump`'s do)."""
    if isinstance(node, ast.AST):
        parts = [f"{name}={_text_of(value)}" for name, value in ast.iter_fields(node) if value not in (None, [])]
        return f"{type(node).__name__}({','.join(parts)})"
    return f"[{','.join(map(_text_of, node))}]" if isinstance(node, list) else repr(node)


def _entries() -> dict[tuple[str, str], Entry]:
    return _builtin() | _added


@lru_cache(maxsize=1)
def _builtin() -> dict[tuple[str, str], Entry]:
    found: dict[tuple[str, str], Entry] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        if "\n@register(" not in file.read_text(encoding="utf-8"):
            continue
        module = ".".join(("ablate", *file.relative_to(PACKAGE).with_suffix("").parts))
        for entry in _read(file, _parse(file), module, ""):
            if (entry.slot, entry.name) in found:
                raise UserError(f"{entry.slot} {entry.name!r} is registered twice: again in {file}")
            found[entry.slot, entry.name] = entry
    return found


def _read(file: Path, tree: ast.Module, module: str, code: str) -> Iterator[Entry]:
    """The entries that a parsed file declares."""
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        for mark in node.decorator_list:
            if not (isinstance(mark, ast.Call) and _called(mark) == "register"):
                continue
            place = f"{file}:{node.lineno}: {node.name}"
            try:
                slot, name = (ast.literal_eval(value) for value in mark.args)
                facts = {str(word.arg): ast.literal_eval(word.value) for word in mark.keywords}
                written = isinstance(name, str) and isinstance(facts.get("paper"), str)
            except ValueError:
                written = False
            if not written or facts.keys() - {"paper", "causal", "form", "version"}:
                raise UserError(f"{place}: write @register(slot, name, paper=...), all of it literal text")
            if slot not in KINDS:
                raise UserError(f"{place}: {unknown('slot', slot, KINDS)}")
            if facts.get("form", FORMS[0]) not in FORMS:
                raise UserError(f"{place}: {unknown('form', facts['form'], FORMS)}")
            yield Entry(
                slot,
                name,
                facts.get("paper", ""),
                facts.get("causal", True),
                facts.get("form", FORMS[0]),
                facts.get("version", 1),
                read_options(node, tree, file),
                ast.get_docstring(node) or "",
                node.name,
                file,
                module,
                code,
            )


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _parse(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_text(encoding="utf-8"), str(file))
    except SyntaxError as error:
        raise UserError(f"{file}:{error.lineno or 1}: not Python: {error.msg}") from None
    except UnicodeDecodeError:
        raise UserError(f"{file}: not a UTF-8 text file") from None


def _module_name(file: Path, code: str) -> str:
    """A module that is imported already keeps its name; a plugin file gets one of its own."""
    for name, module in list(sys.modules.items()):
        if getattr(module, "__file__", None) == str(file) and not name.startswith(PLUGIN):
            return name
    return f"{PLUGIN}{file.stem}_{code}"


def _import_file(name: str, file: Path) -> None:
    if name in sys.modules and not name.startswith(PLUGIN):
        return
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UserError(f"plugin {file} cannot be imported: {type(error).__name__}: {error}") from error
