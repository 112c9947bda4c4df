"""The complexity table of Vaswani et al. 2017 (table 1), measured: how a mixer's forward pass grows with n and d.

Exponents a, b of time ~ n^a d^b are least-squares fits in logarithms over a small grid; the same fit on counted FLOPs
stands beside them, and what the table says. A mixer's projections (n d^2) are part of what is measured: the table's
term alone would show at n much larger than d.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import numpy as np
import torch

from ablate import registry
from ablate.contracts import Context, Site
from ablate.spec import Component
from benchmarks.measure import interleaved

LENGTHS, WIDTHS, ROUNDS = (512, 1024, 2048, 4096), (32, 64, 128, 256), 5
LAYERS = {  # table 1: complexity per layer, sequential operations, maximum path length
    "attention": (Component("attention"), "n² d", "1", "1"),
    "lstm": (Component("lstm"), "n d²", "n", "n"),
    "convolution": (Component("convolution", (("kernel", 3),)), "k n d²", "1", "n / k, log_k n dilated"),
    "sliding_window": (Component("sliding_window", (("window", 64),)), "r n d", "1", "n / r"),
}


def table() -> list[list[str]]:
    torch.set_num_threads(1)
    rows = [
        [
            "layer",
            "table 1",
            "sequential",
            "path",
            "time ~ n^a d^b",
            "FLOPs ~ n^a d^b",
            "n ≥ 2048, d ≤ 64: time ~ n^a",
        ]
    ]
    for name, (component, theory, sequential, path) in LAYERS.items():
        times, flops = {}, {}
        for d in WIDTHS:
            for n in LENGTHS:
                times[n, d], flops[n, d] = _measure(component, n, d)
        long = {key: value for key, value in times.items() if key[0] >= 2048 and key[1] <= 64}
        rows.append([name, theory, sequential, path, _fitted(times), _fitted(flops), f"n^{_exponents(long)[0]:.2f}"])
    return rows


def _measure(component: Component, n: int, d: int) -> tuple[float, float]:
    """Median seconds and counted FLOPs of one forward pass over one sequence."""
    from torch.utils.flop_counter import FlopCounterMode

    site = Site(d_model=d, n_heads=4, d_head=d // 4, d_ff=4 * d, vocab=2, max_len=n, n_layers=1, sublayers=1)
    none = registry.make("position", Component("none"), site)
    mixer = registry.make("mixer", component, site).eval()
    x = torch.randn(1, n, d)

    @torch.no_grad()
    def run() -> None:
        mixer(x, Context(none, torch.arange(n)))

    seconds = interleaved({"mixer": run}, ROUNDS, 1, time.process_time)["mixer"]
    with torch.device("meta"):
        none = registry.make("position", Component("none"), replace(site))
        counted = registry.make("mixer", component, site)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            counted(torch.empty(1, n, d), Context(none, torch.arange(n)))
    return statistics.median(seconds), float(counter.get_total_flops())


def _exponents(values: dict[tuple[int, int], float]) -> tuple[float, float]:
    design = np.array([[1.0, np.log(n), np.log(d)] for n, d in values])
    found = np.linalg.lstsq(design, np.log(list(values.values())), rcond=None)[0]
    return float(found[1]), float(found[2])


def _fitted(values: dict[tuple[int, int], float]) -> str:
    a, b = _exponents(values)
    return f"n^{a:.2f} d^{b:.2f}"
