"""Where laws are tried: of every form inputs, true parameters and noise; and points that were published."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from conftest import SHARED

from analysis.fit import ScalingLaw

SCALING = SHARED / "reference" / "scaling"


def reference(name: str) -> pytest.MarkDecorator:
    """Skips a test, by the file's name, where the published points are not at hand."""
    return pytest.mark.skipif(not (SCALING / name).is_file(), reason=f"reference data: {name}")


@dataclass(frozen=True)
class Design:
    """Where a form is measured, its true parameters, and the standard deviation of the logarithm's noise."""

    inputs: dict[str, np.ndarray]
    params: dict[str, float]
    noise: float = 0.01

    def curve(self, law: ScalingLaw) -> np.ndarray:
        logs = np.log(np.stack([self.inputs[name] for name in law.law.inputs], -1))
        centre = law.law.centre(logs)
        return law.law.value(law.law.theta(self.params, centre), logs - centre)


def crossed(**axes: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(axes, (each.ravel() for each in np.meshgrid(*axes.values(), indexing="ij")), strict=True))


def repeated() -> dict[str, np.ndarray]:
    """Sizes, unique tokens, and up to 60 epochs of them."""
    grid = crossed(n=np.geomspace(5e7, 5e9, 6), u=np.geomspace(1e8, 1e10, 4), epochs=np.geomspace(1, 60, 6))
    return {"n": grid["n"], "d": grid["u"] * grid["epochs"], "u": grid["u"]}


COMPUTE = {"c": np.geomspace(1e15, 1e21, 100)}
GRID = crossed(n=np.geomspace(5e7, 1e10, 10), d=np.geomspace(1e9, 5e11, 10))
DESIGNS = {
    "power": Design({"c": COMPUTE["c"][::2]}, {"A": 60, "alpha": 0.07}),
    "power_offset": Design(COMPUTE, {"A": 3000, "E": 1.7, "alpha": 0.2}),
    "bnsl": Design(
        {"c": np.geomspace(1e15, 1e21, 120)},
        {"a": 1.5, "b": 600, "c0": 0.15, "c1": 0.25, "d1": 1e18, "f1": 0.3},
        noise=0.003,  # of a training curve: the break's width is in few of the points
    ),
    "shifted": Design({"s": np.geomspace(1e2, 1e6, 120)}, {"A": 60, "E": 2, "alpha": 0.4, "g": 3e3}),
    "chinchilla": Design(GRID, {"E": 1.7, "A": 400, "B": 1500, "alpha": 0.34, "beta": 0.36}),
    "chinchilla_tied": Design(GRID, {"E": 1.8, "A": 170, "B": 290, "eta": 0.28}),
    "kaplan_nd": Design(GRID, {"n_c": 6.4e13, "d_c": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103}),
    "kaplan_ns": Design(
        crossed(n=np.geomspace(1e6, 1e9, 10), s=np.geomspace(5e2, 2.5e5, 10)),
        {"A": 6.5e13**0.077, "B": 2.1e3**0.76, "alpha_N": 0.077, "alpha_S": 0.76},
    ),
    "data_constrained": Design(
        repeated(), {"E": 1.87, "A": 521, "B": 1488, "alpha": 0.353, "beta": 0.353, "R_D": 15.4, "R_N": 5.3}
    ),
    "routing": Design(
        crossed(n=np.geomspace(1.5e7, 1.5e9, 10), e=np.geomspace(1, 512, 10)),
        {"a": -0.082, "b": -0.108, "c": 0.009, "d": 1.104, "e_start": 1.85, "e_max": 315},
        noise=0.005,
    ),
    "error_exponential": Design({"l": np.linspace(2, 4.5, 80)}, {"epsilon": 0.85, "k": 2.1, "gamma": 0.75}),
    "error_sigmoid": Design({"l": np.linspace(2, 4.5, 100)}, {"low": 0.15, "high": 0.8, "k": 3, "l0": 3.1}),
}
