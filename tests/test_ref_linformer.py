"""Linformer, its package on copied weights, loops; and our causal one."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from reference import SITE, B, T, array, context, make, near, random
from reference_attention import GPT, PROJECTIONS, costs, finish, heads_of
from torch import Tensor, nn

from ablate import registry
from ablate.build import build_model
from ablate.contracts import Cache
from ablate.errors import UserError
from ablate.probe import probe
from ablate.spec import ArchSpec, Component, parse

K, H = SITE.d_head, SITE.n_heads
BOTH = replace(SITE, causal=False)
SHARING = ("headwise", "kv", "none")


def matrices(mixer: Any) -> tuple[np.ndarray, np.ndarray]:
    """E and F, (H, rank, length)."""
    e, f = array(mixer.e), array(mixer.e if mixer.f is None else mixer.f)
    return np.broadcast_to(e, (H, *e.shape[1:])), np.broadcast_to(f, (H, *f.shape[1:]))


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    weights = np.exp(k @ q / math.sqrt(K))
    return weights @ v / weights.sum()


@pytest.mark.parametrize("length", [1, 9, 16])
@pytest.mark.parametrize("d_value", [None, 5])
@pytest.mark.parametrize("sharing", SHARING)
def test_linformer(sharing: str, d_value: int | None, length: int) -> None:
    mixer = make("mixer", "linformer", BOTH, sharing=sharing, rank=3, d_value=d_value)
    x = random(B, length, 12)
    q, k, v = (heads_of(x.numpy(), each) for each in (mixer.q, mixer.k, mixer.v))
    e, f = matrices(mixer)
    assert e.shape == (H, 3, 16)
    y = np.zeros((B, length, H, d_value or K))
    for b, t, h in np.ndindex(B, length, H):
        few = [sum(m[h, :, s, None] * each[b, s, h] for s in range(length)) for m, each in ((e, k), (f, v))]
        y[b, t, h] = attend(q[b, t, h], *few)
    near(array(mixer(x, context(length=length))), finish(mixer, y))


@pytest.mark.parametrize("length", [16, 9])
def test_linformer_is_the_package_s(length: int) -> None:
    """Forward and gradients. Its heads share E and F; its `share_kv` shares W_K and W_V too, and is not `kv`."""
    package = pytest.importorskip("linformer.linformer")
    site = replace(BOTH, d_head=3)
    mixer = make("mixer", "linformer", site, rank=5)
    for linear in (mixer.q, mixer.k, mixer.v):
        nn.init.zeros_(linear.bias)
    theirs = package.LinformerSelfAttention(dim=12, seq_len=16, k=5, heads=4).double().eval()
    pairs: list[tuple[Tensor, Tensor]] = [
        (mixer.q.weight, theirs.to_q.weight),
        (mixer.k.weight, theirs.to_k.weight),
        (mixer.v.weight, theirs.to_v.weight),
        (mixer.out.weight, theirs.to_out.weight),
        (mixer.out.bias, theirs.to_out.bias),
    ]
    for ours, other in pairs:
        other.data.copy_(ours)
    theirs.proj_k.data.copy_(mixer.e[0].T)
    theirs.proj_v.data.copy_(mixer.f[0].T)
    x = random(B, length, 12)
    y, expected = mixer(x, context(length=length)), theirs(x)
    near(array(y), array(expected))
    for output in (y, expected):
        (output * random(*y.shape, seed=4)).sum().backward()
    for ours, other in pairs:
        near(array(ours.grad), array(other.grad))
    near(array(mixer.e.grad[0].T), array(theirs.proj_k.grad))
    near(array(mixer.f.grad[0].T), array(theirs.proj_v.grad))


@pytest.mark.parametrize("sharing", SHARING)
def test_a_linformer_that_keeps_all_is_attention(sharing: str) -> None:
    mixer = make("mixer", "linformer", BOTH, sharing=sharing, rank=16)
    plain = make("mixer", "attention", BOTH)
    plain.load_state_dict(mixer.state_dict(), strict=False)
    with torch.no_grad():
        for matrix in (mixer.e, mixer.f):
            if matrix is not None:
                matrix.copy_(torch.eye(16))
    x = random(B, 16, 12)
    near(array(mixer(x, context(length=16))), array(plain(x, context(length=16))))


def test_linformer_sees_the_future_and_is_refused_where_it_must_not() -> None:
    mixer = make("mixer", "linformer", BOTH)
    x = random(1, T, 12)
    later = x.clone()
    later[:, -1] += 1
    assert (mixer(later, context()) - mixer(x, context()))[:, 0].abs().max() > 0.01
    arch = parse(ArchSpec, {"d_model": 16, "n_heads": 4, "sublayers": {"s": "linformer"}})
    with pytest.raises(UserError, match="mixer 'linformer' sees the future"):
        build_model(arch, 13, 12)
    build_model(arch, 13, 12, causal=False)


@pytest.mark.parametrize("name", ["linformer", "linformer_block_causal"])
@pytest.mark.parametrize("position", ["alibi", "t5"])
def test_positions_that_add_to_scores_are_refused(name: str, position: str) -> None:
    arch = {"d_model": 16, "n_heads": 4, "position": position, "sublayers": {"s": name}}
    with pytest.raises(UserError, match=f"position '{position}' has no effect"):
        probe(parse(ArchSpec, arch), 13, 12, causal=name != "linformer")
    probe(parse(ArchSpec, {**arch, "position": "rope"}), 13, 12, causal=name != "linformer")


def test_starts() -> None:
    site = replace(BOTH, max_len=400)
    for sharing in SHARING:
        mixer = registry.make("mixer", Component("linformer", (("sharing", sharing),)), site)
        for matrix in (mixer.e, mixer.f):
            if matrix is not None:  # U(+-1/sqrt(100))
                assert matrix.shape == (H if sharing == "none" else 1, 100, 400)
                assert matrix.abs().max() <= 0.1
                assert matrix.std().item() == pytest.approx(0.1 / math.sqrt(3), rel=0.01)
    ours = registry.make("mixer", Component("linformer_block_causal"), replace(SITE, max_len=390))
    assert ours.e.shape == (1, 5, 20)


# --- ours


def block_causal(mixer: Any, x: np.ndarray) -> np.ndarray:
    """Token by token: the own block so far, and mixtures of each block before it."""
    q, k, v = (heads_of(x, each) for each in (mixer.q, mixer.k, mixer.v))
    e, f = matrices(mixer)
    C = mixer.block
    y = np.zeros((*x.shape[:2], H, v.shape[3]))
    for b, t, h in np.ndindex(x.shape[0], x.shape[1], H):
        start = t // C * C
        parts: list[list[np.ndarray]] = [[], []]
        for n in range(0, start, C):
            parts[0].append(e[h] @ k[b, n : n + C, h])
            parts[1].append(f[h] @ v[b, n : n + C, h])
        keys, values = (
            np.concatenate([*rows, own])
            for rows, own in zip(parts, (k[b, start : t + 1, h], v[b, start : t + 1, h]), strict=True)
        )
        y[b, t, h] = attend(q[b, t, h], keys, values)
    return finish(mixer, y)


@pytest.mark.parametrize("length", [1, 4, 5, 9, 16])
@pytest.mark.parametrize("block", [1, 3, 4, 20])
@pytest.mark.parametrize("sharing", SHARING)
def test_block_causal(sharing: str, block: int, length: int) -> None:
    for causal in (True, False):  # it looks back alone in either case
        site = replace(SITE, causal=causal)
        mixer = make("mixer", "linformer_block_causal", site, sharing=sharing, block=block, rank=2, d_value=5)
        x = random(B, length, 12)
        near(array(mixer(x, context(length=length))), block_causal(mixer, x.numpy()))


def test_block_causal_of_one_block_or_without_loss_is_attention() -> None:
    x = random(B, T, 12)
    for block, rank in ((16, 2), (4, 4), (1, 1)):
        mixer = make("mixer", "linformer_block_causal", SITE, block=block, rank=rank)
        with torch.no_grad():
            mixer.e.copy_(torch.eye(rank, block)), mixer.f.copy_(torch.eye(rank, block))
        plain = make("mixer", "attention", SITE)
        plain.load_state_dict(mixer.state_dict(), strict=False)
        near(array(mixer(x, context())), array(plain(x, context())))


@pytest.mark.parametrize("pieces", [[1] * 12, [5, 5, 2], [3, 1, 4, 4], [12]])
@pytest.mark.parametrize("block", [1, 3, 4, 12])
def test_decoding(block: int, pieces: list[int]) -> None:
    """The block at hand and mixtures are kept; with rotary positions too."""
    settings = {"name": "linformer_block_causal", "block": block}
    arch = {"d_model": 16, "n_heads": 4, "depth": 1, "position": "rope", "sublayers": {"s": settings}}
    model = build_model(parse(ArchSpec, arch), 13, 12).double().eval()
    tokens = torch.arange(24).view(2, 12) * 5 % 13
    cache = Cache()
    parts = [model.log_probs(piece, cache=cache) for piece in tokens.split(pieces, 1)]
    near(array(torch.cat(parts, 1)), array(model.log_probs(tokens)), 1e-10)
    rank = -(-block // 4)
    assert [state.shape[2] for state in cache.states[0]] == [0, 0, 12 // block * rank, 12 // block * rank]


# --- costs


@pytest.mark.parametrize(("sharing", "matrices"), [("headwise", 2), ("kv", 1), ("none", 8)])
def test_costs_of_a_linformer(sharing: str, matrices: int) -> None:
    """2 m n, m n, 2 H m n parameters; 4 m d for the mixtures and 4 m H k for attention, whatever the length."""
    plain = costs("attention", causal=False)
    for length in (24, 7):
        cost = costs("linformer", length, causal=False, rank=5, sharing=sharing)
        assert cost.params_total - plain.params_total == matrices * 5 * length
        assert cost.flops_forward == cost.flops_algorithmic == PROJECTIONS + 4 * 5 * 16 + 4 * 5 * 16


@pytest.mark.parametrize("length", [5, 24, 26])
def test_costs_of_block_causal(length: int) -> None:
    cost = costs("linformer_block_causal", length, block=6, rank=2)
    assert cost.params_total - costs("attention", length).params_total == 2 * 2 * 6
    blocks = (length - 1) // 6
    mixtures = 4 * 16 * 2 * 6 * blocks / length
    executed = 4 * 16 * (-(-length // 6) * 6) * (6 + 2 * blocks) / length
    needed = 4 * 16 * sum(t % 6 + 1 + 2 * (t // 6) for t in range(length)) / length
    assert cost.flops_forward == pytest.approx(PROJECTIONS + mixtures + executed, rel=1e-12)
    assert cost.flops_algorithmic == pytest.approx(PROJECTIONS + mixtures + needed, rel=1e-12)


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "rank": ({"name": "linformer", "rank": 0}, "mixer 'linformer': rank"),
    "rank of a block": ({"name": "linformer_block_causal", "rank": 0}, "mixer 'linformer_block_causal': rank"),
    "block": ({"name": "linformer_block_causal", "block": 0}, "mixer 'linformer_block_causal': block"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str) -> None:
    settings, message = REFUSALS[case]
    with pytest.raises(UserError, match=message):
        build_model(parse(ArchSpec, {**GPT, "sublayers": {"s": settings}}), 13, 12, causal=False)
