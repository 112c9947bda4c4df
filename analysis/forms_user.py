"""A law that is a function of a person's own."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from analysis.errors import AnalysisError
from analysis.laws import Law

Array = np.ndarray
LETTERS = {"n": "parameters", "d": "tokens", "c": "FLOPs", "s": "steps", "u": "tokens that are not repeats",
           "e": "experts", "l": "loss"}  # fmt: skip


class UnknownForm(AnalysisError):
    """A form that does not exist, or cannot be made of what was given."""


class UserLaw(Law):
    """A function of a person's own, in numpy: `def f(n, d, *, A=100.0, alpha=0.3)`. Its positional arguments are
    inputs, by their letters, its keyword-only ones the parameters, each with a number where the search begins; those
    that begin above 0 stay there."""

    def __init__(self, function: Callable[..., Any]):
        signature = inspect.signature(function).parameters.values()
        self.function, self.name = function, function.__name__
        self.inputs = tuple(each.name for each in signature if each.kind is not each.KEYWORD_ONLY)
        kept = {each.name: each.default for each in signature if each.kind is each.KEYWORD_ONLY}
        self.parameters = tuple(kept)
        self.equation = (inspect.getdoc(function) or f"L = {self.name}(...)").splitlines()[0]
        wrong = [each for each in self.inputs if each not in LETTERS]
        if wrong or not self.inputs or not kept:
            known = ", ".join(f"{letter} ({what})" for letter, what in LETTERS.items())
            told = f"inputs are {known}, and parameters are keyword-only with a default"
            raise UnknownForm(f"form {self.name!r}: {told}")
        without = [name for name, value in kept.items() if not isinstance(value, int | float)]
        if without:
            raise UnknownForm(f"form {self.name!r}: parameter {without[0]!r} needs a number to begin from")
        self.begin = np.array([float(value) for value in kept.values()])
        self.positive = self.begin > 0

    def centre(self, logs: Array) -> Array:
        return np.zeros(logs.shape[1])  # the function reads them as they are

    def _free(self, theta: Array) -> Array:
        return np.where(self.positive, np.exp(np.where(self.positive, theta, 0.0)), theta)

    def value(self, theta: Array, x: Array) -> Array:
        flat = self._free(theta).reshape(-1, len(self.parameters))
        inputs = np.exp(x)
        with np.errstate(all="ignore"):
            rows = [
                np.broadcast_to(self.function(*inputs.T, **dict(zip(self.parameters, each, strict=True))), len(x))
                for each in flat
            ]
        return np.stack(rows).reshape(*theta.shape[:-1], len(x))

    def named(self, theta: Array, centre: Array) -> dict[str, Array]:
        free = self._free(theta)
        return {name: free[..., k] for k, name in enumerate(self.parameters)}

    def theta(self, params: Mapping[str, float], centre: Array) -> Array:
        values = np.array([params[name] for name in self.parameters])
        return np.where(self.positive, np.log(np.where(self.positive, values, 1.0)), values)

    def starts(self, x: Array, y: Array) -> Array:
        """The defaults, and a hundred points around them."""
        begin = np.where(self.positive, np.log(np.where(self.positive, self.begin, 1.0)), self.begin)
        around = np.random.default_rng(0).standard_normal((100, len(begin)))
        return begin + np.concatenate((np.zeros((1, len(begin))), around))


def function_of(form: str) -> Callable[..., Any]:
    """The function that `FILE.py:FUNCTION` names. Raises `UnknownForm`."""
    file, name = form.rsplit(":", 1)
    if not Path(file).is_file():
        raise UnknownForm(f"form {form!r}: no file {file}")
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # of a person's own code
        raise UnknownForm(f"form {form!r}: {file} cannot be read: {error}") from None
    if not callable(getattr(module, name, None)):
        raise UnknownForm(f"form {form!r}: {file} has no function {name!r}")
    return getattr(module, name)  # type: ignore[no-any-return]
