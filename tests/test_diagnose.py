"""Rank collapse layer by layer: against a loop, on attention alone, and in a trial's record."""

from __future__ import annotations

import numpy as np
import torch
from reference import near, random

from ablate.build import build_model
from ablate.diagnose import by_layer, rank_residual, rank_residual_frobenius
from ablate.spec import ArchSpec, parse

TOKENS = torch.randint(0, 50, (4, 16), generator=torch.Generator().manual_seed(0))


def test_the_ratios_as_written() -> None:
    x = random(3, 5, 7)
    for b, one, other in zip(range(3), rank_residual(x), rank_residual_frobenius(x), strict=True):
        rows = x[b].numpy()
        left = rows - np.ones((5, 1)) @ rows.mean(0)[None]
        composite = [np.sqrt(np.linalg.norm(each, 1) * np.linalg.norm(each, np.inf)) for each in (left, rows)]
        near(one, composite[0] / composite[1])
        near(other, np.linalg.norm(left) / np.linalg.norm(rows))


def ratios(residual: str, order: str, causal: bool = False, depth: int = 12) -> list[float | None]:
    """Of a network at its start, in float64, without norms and positions."""
    arch = parse(
        ArchSpec,
        {
            "d_model": 32,
            "n_heads": 1,
            "depth": depth,
            "order": order,
            "residual": residual,
            "norm": "none",
            "position": "none",
            "init": "vaswani",
            "bias": False,
        },
    )
    found = by_layer(build_model(arch, 50, 16, causal=causal).double(), (TOKENS,))
    assert found is not None and len(found["rank_residual"]) == depth + 1
    return found["rank_residual"]


def test_attention_alone_collapses_doubly_exponentially() -> None:
    """Dong et al. 2021: the exponent of the ratio grows about threefold a layer, until rounding hides it."""
    first = np.log([each for each in ratios("none", "s", depth=4) if each is not None])
    assert first[0] > -1 and first[3] < -10
    assert first[3] / first[2] > 2 and first[2] / first[1] > 1.5


def test_residuals_protect_from_it() -> None:
    """Where attention sees both sides; under a causal mask the collapse is slower, and towards the first token."""
    alone, kept = ratios("none", "s")[3], ratios("pre", "s")[3]
    assert alone is not None and kept is not None and alone < 1e-12 and kept > 0.5
    alone, kept = ratios("none", "s", causal=True)[-1], ratios("pre", "s", causal=True)[-1]
    assert alone is not None and kept is not None and 1e-4 < alone < 0.01 and kept > 0.1
