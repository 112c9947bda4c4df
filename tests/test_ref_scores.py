"""Scores that are not plain products: loops written from the equations, and identities."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from reference import SITE, B, T, array, context, make, near, random
from reference_attention import GPT, costs
from torch import Tensor

from ablate import registry
from ablate.build import build_model
from ablate.components.mixers import scores as module
from ablate.errors import UserError
from ablate.spec import ArchSpec, Component, parse

K, H = SITE.d_head, SITE.n_heads

Score = Callable[[Any, np.ndarray, np.ndarray, int], float]


def additive(mixer: Any, q: np.ndarray, k: np.ndarray, h: int) -> float:
    return sum(array(mixer.w)[h, i] * math.tanh(q[i] + k[i]) for i in range(len(q)))


def concat(mixer: Any, q: np.ndarray, k: np.ndarray, h: int) -> float:
    return sum(array(mixer.w)[h, i] * max(q[i] + k[i], 0.2 * (q[i] + k[i])) for i in range(len(q)))


def gaussian(mixer: Any, q: np.ndarray, k: np.ndarray, h: int) -> float:
    variance = math.sqrt(K) if mixer.log_sigma is None else math.exp(array(mixer.log_sigma)[h]) ** 2
    return -sum((a - b) ** 2 for a, b in zip(q, k, strict=True)) / (2 * variance)


def bilinear(mixer: Any, q: np.ndarray, k: np.ndarray, h: int) -> float:
    return q @ array(mixer.w)[h] @ k


def loop(mixer: Any, x: np.ndarray, score: Score, causal: bool) -> np.ndarray:
    """softmax(score(q_t, k_s)) v_s, one query and one key at a time."""
    q, k, v = (x @ array(each.weight).T + array(each.bias) for each in (mixer.q, mixer.k, mixer.v))
    q, k, v = (each.reshape(*each.shape[:2], H, -1) for each in (q, k, v))
    y = np.zeros((*x.shape[:2], H, v.shape[3]))
    for b, t, h in np.ndindex(x.shape[0], x.shape[1], H):
        seen = range(t + 1 if causal else x.shape[1])
        weights = np.exp([score(mixer, q[b, t, h], k[b, s, h], h) for s in seen])
        y[b, t, h] = sum(w * v[b, s, h] for w, s in zip(weights / weights.sum(), seen, strict=True))
    return y.reshape(*x.shape[:2], -1) @ array(mixer.out.weight).T + array(mixer.out.bias)


SCORES: dict[str, tuple[Score, dict[str, Any]]] = {
    "additive": (additive, {}),
    "concat": (concat, {}),
    "gaussian": (gaussian, {}),
    "gaussian, learned": (gaussian, {"learned": True}),
    "bilinear": (bilinear, {}),
}


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("d_value", [None, 4, 9])
@pytest.mark.parametrize("name", SCORES)
def test_scores(name: str, d_value: int | None, causal: bool) -> None:
    score, options = SCORES[name]
    mixer = make("mixer", name.split(",")[0], replace(SITE, causal=causal), d_value=d_value, **options)
    x = random(B, T, 12)
    near(array(mixer(x, context())), loop(mixer, x.numpy(), score, causal))


@pytest.mark.parametrize("name", SCORES)
def test_gradients_of_scores(name: str) -> None:
    options = SCORES[name][1]
    mixer = make("mixer", name.split(",")[0], replace(SITE, d_head=2, n_heads=2, d_model=3), **options)
    x = random(1, 3, 3).requires_grad_()
    names, parameters = zip(*mixer.named_parameters(), strict=True)

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(mixer, dict(zip(names, parameters, strict=True)), (x, context(length=3)))

    assert torch.autograd.gradcheck(run, (x, *parameters))


@pytest.mark.parametrize("name", ["additive", "concat"])
def test_blocks_of_queries_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mixer = make("mixer", name, SITE)
    found = []
    for pairs in (2**25, B * H * T * K * 2):  # all at once; two queries at a time
        monkeypatch.setattr(module, "PAIRS", pairs)
        mixer.zero_grad()
        x = random(B, T, 12).requires_grad_()
        y = mixer(x, context())
        (y * random(*y.shape, seed=3)).sum().backward()
        found.append([y, x.grad, *(p.grad.clone() for p in mixer.parameters())])
    for one, other in zip(*found, strict=True):
        near(array(one), array(other))


def copied(name: str, like: Any, site: Any = SITE, **options: Any) -> Any:
    """A mixer with another's matrices."""
    mixer = make("mixer", name, site, **options)
    mixer.load_state_dict(like.state_dict(), strict=False)
    return mixer


@pytest.mark.parametrize("causal", [True, False])
def test_gaussian_of_keys_of_one_length_is_scaled_dot(causal: bool) -> None:
    site = replace(SITE, causal=causal)
    plain = make("mixer", "attention", site)
    q, k, v = (random(B, H, T, K, seed=seed) for seed in range(3))
    k = 3 * k / k.norm(dim=-1, keepdim=True)
    expected = plain.attend(q, k, v, context())
    for options in ({}, {"learned": True}):
        mixer = make("mixer", "gaussian", site, **options)
        mixer.reset_parameters()
        near(array(mixer.attend(q, k, v, context())), array(expected))
        assert (mixer.attend(q, k * (1 + v.abs()), v, context()) - expected).abs().max() > 0.01


def test_gaussian_s_kernels_agree() -> None:
    """The fused kernel, a column longer, and scores written out."""
    mixer = make("mixer", "gaussian", SITE, learned=True)
    q, k, v = (random(B, H, T, K, seed=seed) for seed in range(3))
    mask = torch.full((T, T), -math.inf, dtype=torch.float64).triu(1)
    near(array(mixer.fast(q, k, v, mask, False)), array(mixer.explicit(q, k, v, mask)[0]))
    near(array(mixer.fast(q, k, v, None, True)), array(mixer.explicit(q, k, v, mask)[0]))


def test_bilinear_starts_as_scaled_dot() -> None:
    plain = make("mixer", "attention", SITE)
    mixer = copied("bilinear", plain)
    x = random(B, T, 12)
    assert (mixer(x, context()) - plain(x, context())).abs().max() > 1e-3
    mixer.reset_parameters()
    near(array(mixer(x, context())), array(plain(x, context())))


def test_bilinear_is_longer_queries() -> None:
    """x W_Q W_h is one matrix, also where positions rotate."""
    mixer = make("mixer", "bilinear", SITE)
    plain = copied("attention", mixer, score="dot")
    with torch.no_grad():
        weight = torch.einsum("hkj,hkd->hjd", mixer.w, mixer.q.weight.unflatten(0, (H, K)))
        plain.q.weight.copy_(weight.flatten(0, 1))
        plain.q.bias.copy_(torch.einsum("hkj,hk->hj", mixer.w, mixer.q.bias.unflatten(0, (H, K))).flatten())
    x = random(B, T, 12)
    for position in ("none", "rope", "alibi"):
        ctx = context(make("position", position, SITE))
        near(array(mixer(x, ctx)), array(plain(x, ctx)))


def test_starts() -> None:
    site = replace(SITE, d_head=40, n_heads=50)
    made = {name: registry.make("mixer", Component(name), site) for name in ("additive", "concat", "bilinear")}
    assert not made["additive"].w.any()
    bound = math.sqrt(6 / 41)
    assert made["concat"].w.abs().max() <= bound
    assert made["concat"].w.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    near(array(made["bilinear"].w), np.broadcast_to(np.eye(40) * np.float32(40**-0.5), (50, 40, 40)), 1e-8)
    learned = registry.make("mixer", Component("gaussian", (("learned", True),)), site)
    near(np.exp(2 * array(learned.log_sigma)), np.full(50, math.sqrt(40)), 1e-5)


EXTRA = {"additive": 4 * 4, "concat": 4 * 4, "gaussian": 0, "bilinear": 4 * 16}


@pytest.mark.parametrize("name", EXTRA)
def test_costs_of_scores(name: str) -> None:
    """Parameters beside attention's; FLOPs 2 n H k more or less, for n keys."""
    plain, ours = costs("attention"), costs(name)
    assert ours.params_by_slot["mixer"] - plain.params_by_slot["mixer"] == EXTRA[name]
    fixed = 2 * 4 * 4 * 4 * (name == "bilinear")
    columns = 2 * 24 * 4 * 2 * (name == "gaussian")
    assert ours.flops_forward == plain.flops_forward + fixed + columns
    assert ours.flops_algorithmic == pytest.approx(plain.flops_algorithmic + fixed, rel=1e-13)
    assert costs("gaussian", learned=True).params_total == plain.params_total + 4


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "d_value": ({"name": "additive", "d_value": 0}, "mixer 'additive': d_value"),
    "dropout": ({"name": "gaussian", "dropout": 2.0}, "mixer 'gaussian': dropout"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str) -> None:
    settings, message = REFUSALS[case]
    with pytest.raises(UserError, match=message):
        build_model(parse(ArchSpec, {**GPT, "sublayers": {"s": settings}}), 13, 12)
