"""A component's options, read from the source of its constructor, and the check of a value against an option."""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablate.errors import UserError, unknown

PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class Option:
    """A keyword-only constructor argument: its name, its type as written, its default."""

    name: str
    type: str
    default: Any

    def accept(self, value: Any) -> Any:
        """The value as this option holds it (an int becomes a float where a float is due), or `ValueError`."""
        return accept(ast.parse(self.type, mode="eval").body, value)


def accept(kind: ast.expr, value: Any) -> Any:
    """`value` if it is of type `kind`, an annotation's expression. Raises `ValueError` saying what is due."""
    match kind:
        case ast.BinOp(op=ast.BitOr()):
            return _accept_union(kind, value)
        case ast.Constant(value=None):
            if value is None:
                return None
        case ast.Name(id="bool"):
            if isinstance(value, bool):
                return value
        case ast.Name(id="int"):
            if isinstance(value, int) and not isinstance(value, bool):
                return value
        case ast.Name(id="float"):
            if isinstance(value, int | float) and not isinstance(value, bool):
                if not abs(value) <= sys.float_info.max:
                    raise ValueError(f"{value} must be a finite number")
                return float(value)
        case ast.Name(id="str"):
            if isinstance(value, str):
                return value
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choices):
            words = ast.literal_eval(choices)
            words = words if isinstance(words, tuple) else (words,)
            if any(value == word and type(value) is type(word) for word in words):
                return value
            raise ValueError(unknown("value", value, map(str, words)))
        case ast.Subscript(value=ast.Name(id="list"), slice=item):
            if isinstance(value, list | tuple):
                return [accept(item, each) for each in value]
        case _:
            known = "bool, int, float, str, Literal[...], list[...] and unions of them with None"
            raise ValueError(f"options of type {ast.unparse(kind)} are not supported, but {known}")
    raise ValueError(f"{value!r} is {_kind_of(value)}, must be {ast.unparse(kind)}")


def _accept_union(kind: ast.BinOp, value: Any) -> Any:
    for side in (kind.left, kind.right):
        try:
            return accept(side, value)
        except ValueError:
            continue
    raise ValueError(f"{value!r} is {_kind_of(value)}, must be {ast.unparse(kind)}")


def _kind_of(value: Any) -> str:
    names = {str: "text", int: "int", float: "float", bool: "bool", list: "a list", dict: "a mapping"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def read_options(cls: ast.ClassDef, tree: ast.Module, file: Path) -> tuple[Option, ...]:
    """The keyword-only arguments of the class's constructor, or of the nearest base's that has one."""
    for node in cls.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            return _options_of(node, f"{file}:{node.lineno}: {cls.name}", tree, file)
    for base in cls.bases:
        if isinstance(base, ast.Name) and (found := _find(base.id, tree, file)):
            node, tree, file = found
            return read_options(node, tree, file) if isinstance(node, ast.ClassDef) else ()
    return ()


def _options_of(init: ast.FunctionDef, place: str, tree: ast.Module, file: Path) -> tuple[Option, ...]:
    arguments = init.args
    if arguments.vararg or arguments.kwarg:
        raise UserError(f"{place}: a component takes no *args and no **kwargs; name every option")
    if arguments.defaults:
        raise UserError(f"{place}: options are keyword-only: write them after a `*`")
    options = []
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        if default is None or argument.annotation is None:
            raise UserError(f"{place}: option {argument.arg!r} needs a type and a default")
        try:
            kind = _written_out(argument.annotation, tree, file)
            option = Option(argument.arg, ast.unparse(kind), ast.literal_eval(default))
        except ValueError:
            raise UserError(f"{place}: the default of option {argument.arg!r} must be a literal") from None
        try:
            option.accept(option.default)
        except ValueError as error:
            raise UserError(f"{place}: option {argument.arg!r}: {error}") from None
        options.append(option)
    return tuple(options)


def _written_out(kind: ast.expr, tree: ast.Module, file: Path) -> ast.expr:
    """A type, or what stands for it where it is a name that a module gives to one: `Activation = Literal[...]`."""
    if isinstance(kind, ast.Name) and (found := _find(kind.id, tree, file)) and isinstance(found[0], ast.Assign):
        return found[0].value
    return kind


def _find(name: str, tree: ast.Module, file: Path) -> tuple[ast.stmt, ast.Module, Path] | None:
    """The definition of `name` as seen from `tree`: in the file itself, or imported from this package."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node, tree, file
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in node.targets):
            return node, tree, file
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "ablate":
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _find_in_package(node.module, alias.name)
    return None


def _find_in_package(module: str, name: str) -> tuple[ast.stmt, ast.Module, Path] | None:
    if module == "ablate":
        from ablate import EXPORTS

        module = EXPORTS.get(name, module)
    path = PACKAGE.joinpath(*module.split(".")[1:])
    file = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
    if not file.is_file():
        return None
    return _find(name, ast.parse(file.read_text(encoding="utf-8")), file)
