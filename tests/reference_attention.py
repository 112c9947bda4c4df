"""What the tests of attention's variants share: rules in the place of masks, costs, contracts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from reference import SITE, array, context, make
from torch import Tensor

from ablate.cost import Cost, count
from ablate.spec import ArchSpec, parse

H = SITE.n_heads
Rule = Callable[[int, int, int], bool]  # head, query, key -> seen


def heads_of(x: np.ndarray, linear: Any) -> np.ndarray:
    y = x @ array(linear.weight).T + array(linear.bias)
    return y.reshape(*y.shape[:2], H, -1)


def masked(mixer: Any, x: np.ndarray, rule: Rule, projections: Any = None) -> np.ndarray:
    """softmax over the keys that the rule lets each query see, (B, T, H, K)."""
    q, k, v = (heads_of(x, getattr(projections or mixer, name)) for name in "qkv")
    y = np.zeros((*x.shape[:2], H, v.shape[3]))
    for b, t, h in np.ndindex(x.shape[0], x.shape[1], H):
        seen = [s for s in range(x.shape[1]) if rule(h, t, s)]
        weights = np.exp(k[b, seen, h] @ q[b, t, h] * mixer.scale)
        y[b, t, h] = weights @ v[b, seen, h] / weights.sum()
    return y


def finish(mixer: Any, y: np.ndarray) -> np.ndarray:
    return y.reshape(*y.shape[:2], -1) @ array(mixer.out.weight).T + array(mixer.out.bias)


def full(like: Any, causal: bool, x: Tensor) -> np.ndarray:
    """Plain attention with another mixer's matrices."""
    plain = make("mixer", "attention", replace(SITE, causal=causal))
    plain.load_state_dict(like.state_dict(), strict=False)
    return array(plain(x, context()))


GPT = {"d_model": 16, "n_heads": 4, "depth": 1, "d_ff": 24, "bias": False, "order": "s", "position": "none"}
PROJECTIONS = 2 * 16 * 13 + 8 * 16 * 16  # FLOPs a token of the head's matrix and of attention's


def costs(name: str, length: int = 24, causal: bool = True, **options: Any) -> Cost:
    """Of one layer with that mixer, and no other."""
    return count(parse(ArchSpec, {**GPT, "sublayers": {"s": {"name": name, **options}}}), 13, length, causal)


def needed(cost: Cost) -> float:
    """Keys a token: the scores and weighted sums that the definition needs, over the 4 H k of one."""
    return (cost.flops_algorithmic - PROJECTIONS) / (4 * 16)
