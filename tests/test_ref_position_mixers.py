"""Attention with positions of its own: Transformer-XL, recurrent and disentangled attention."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from reference import SITE, TABLE, B, T, array, context, make, near, random
from torch import Tensor

from ablate.contracts import Cache, Context
from ablate.cost import count
from ablate.errors import UserError
from ablate.probe import probe
from ablate.spec import ArchSpec, parse


def plain_from(mixer: Any, **site: Any) -> Any:
    """Plain attention with the mixer's queries, keys, values and output."""
    plain = make("mixer", "attention", replace(SITE, **site))
    state = mixer.state_dict()
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    return plain


def projections(mixer: Any, x: np.ndarray) -> tuple[Any, Any, Any]:
    """Queries, keys and values, (B, T, H, K)."""
    made = (x @ array(linear.weight).T + array(linear.bias) for linear in (mixer.q, mixer.k, mixer.v))
    q, k, v = (each.reshape(*each.shape[:2], mixer.n_heads, -1) for each in made)
    return q, k, v


def weighted(mixer: Any, scores: dict[tuple[int, int, int, int], float], v: np.ndarray, y: np.ndarray) -> Any:
    """softmax over the keys that have a score, the values' weighted sum, the output matrix."""
    for b, t, h in np.ndindex(*v.shape[:3]):
        keys = [s for s in range(v.shape[1]) if (b, t, h, s) in scores]
        exps = np.exp([scores[b, t, h, s] for s in keys])
        y[b, t, h] += sum(e * v[b, s, h] for e, s in zip(exps / exps.sum(), keys, strict=True))
    return y.reshape(*y.shape[:2], -1) @ array(mixer.out.weight).T + array(mixer.out.bias)


def decode(mixer: Any, x: Tensor, piece: int) -> tuple[Tensor, Cache]:
    cache, parts = Cache(), []
    for start in range(0, x.shape[1], piece):
        part = x[:, start : start + piece]
        position = make("position", "none", SITE)
        parts.append(mixer(part, Context(position, torch.arange(start, start + part.shape[1]), cache)))
        cache.length += part.shape[1]
    return torch.cat(parts, 1), cache


# --- Transformer-XL


def wave(distance: int, d: int) -> np.ndarray:
    angle = distance * 10000.0 ** -(np.arange(0, d, 2) / d)
    return np.stack((np.sin(angle), np.cos(angle)), -1).flatten()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("segment", [1, 2, 4, 5, 8, 9, 30])
def test_transformer_xl(segment: int, causal: bool) -> None:
    """((q + u) . k + (q + v) . W_R r_{t-s}) / sqrt(k) over this segment and the last, key by key."""
    mixer = make("mixer", "transformer_xl", replace(SITE, causal=causal), segment=segment)
    x = random(B, T, 12)
    q, k, v = projections(mixer, x.numpy())
    u, w = (array(each).reshape(4, 6) for each in (mixer.bias_content, mixer.bias_position))
    scores = {}
    for b, t, s, h in np.ndindex(B, T, T, 4):
        if t // segment - s // segment in (0, 1) and (s <= t or not causal):
            r = (array(mixer.r.weight) @ wave(t - s, 12)).reshape(4, 6)[h]
            scores[b, t, h, s] = ((q[b, t, h] + u[h]) @ k[b, s, h] + (q[b, t, h] + w[h]) @ r) * 6**-0.5
    near(array(mixer(x, context())), weighted(mixer, scores, v, np.zeros_like(v)), TABLE)


def test_transformer_xl_is_xlnet_s() -> None:
    """The second of two segments against XLNet's attention with the first as memory: outputs, and all gradients
    but those that the memory does not pass."""
    xlnet = pytest.importorskip("transformers.models.xlnet.modeling_xlnet")
    config = xlnet.XLNetConfig(d_model=12, n_head=4, d_inner=8, n_layer=1, vocab_size=5, attn_type="uni", dropout=0.0)
    theirs = xlnet.XLNetRelativeAttention(config).double().eval()
    mixer = make("mixer", "transformer_xl", replace(SITE, d_head=3, bias=False), segment=4)
    order = np.r_[0:12:2, 1:12:2]  # their sinusoids have all sines first
    with torch.no_grad():
        for name in ("q", "k", "v", "r"):
            weight = getattr(mixer, name).weight.T
            getattr(theirs, name).copy_((weight[order] if name == "r" else weight).unflatten(-1, (4, 3)))
        theirs.r_w_bias.copy_(mixer.bias_content.view(4, 3))
        theirs.r_r_bias.copy_(mixer.bias_position.view(4, 3))
    x = random(B, 8, 12)
    memory, here = x[:, :4].transpose(0, 1), x[:, 4:].transpose(0, 1).clone().requires_grad_()
    distance = torch.arange(8.0, -1.0, -1.0, dtype=torch.float64)
    r = xlnet.XLNetModel.positional_embedding(distance, 10000.0 ** -(torch.arange(0, 12, 2).double() / 12), B)
    around = torch.cat((memory, here))
    made = ((here, theirs.q), (around, theirs.k), (around, theirs.v), (r, theirs.r))
    heads = [torch.einsum("ibh,hnd->ibnd", each, weight) for each, weight in made]
    hidden = torch.ones(4, 8, dtype=torch.float64).triu(5)[:, :, None, None].expand(-1, -1, B, 1)
    vector = theirs.rel_attn_core(*heads, attn_mask=hidden)
    expected = vector.flatten(2).transpose(0, 1) @ mixer.out.weight.T
    ours = x.clone().requires_grad_()
    y, weights = mixer(ours, context(length=8))[:, 4:], random(B, 4, 12, seed=1)
    near(array(y), array(expected), TABLE)
    (y * weights).sum().backward()
    mixer_gradients = {name: p.grad.clone() for name, p in mixer.named_parameters()}
    mixer.zero_grad()
    (expected * weights).sum().backward()
    near(ours.grad[:, 4:], here.grad.transpose(0, 1), 10 * TABLE)
    assert not ours.grad[:, :4].any()
    for name in ("q", "k", "v"):
        near(mixer_gradients[f"{name}.weight"].T, getattr(theirs, name).grad.flatten(1), 10 * TABLE)
    near(mixer_gradients["r.weight"].T[order], theirs.r.grad.flatten(1), 10 * TABLE)
    near(mixer_gradients["bias_content"], theirs.r_w_bias.grad.flatten(), 10 * TABLE)
    near(mixer_gradients["bias_position"], theirs.r_r_bias.grad.flatten(), 10 * TABLE)


def test_memory_is_read_and_passes_no_gradient() -> None:
    """The third segment's output depends on the second and not on the first; its gradient reaches neither."""
    mixer = make("mixer", "transformer_xl", SITE, segment=3)
    x = random(B, T, 12).requires_grad_()
    y = mixer(x, context())
    y[:, 6:].sum().backward()
    assert not x.grad[:, :6].any() and x.grad[:, 6:].any()
    for changed, moves in ((1, False), (4, True)):
        other = x.detach().clone()
        other[:, changed] += 1
        assert (mixer(other, context()) - y)[:, 6:].abs().max().item() > 1e-3 if moves else True
        assert moves or torch.equal(mixer(other, context())[:, 6:], y[:, 6:])


@pytest.mark.parametrize("causal", [True, False])
def test_one_segment_without_positions_is_attention(causal: bool) -> None:
    mixer = make("mixer", "transformer_xl", replace(SITE, causal=causal), segment=T)
    for each in (mixer.bias_content, mixer.bias_position, mixer.r.weight):
        each.data.zero_()
    x = random(B, T, 12)
    near(array(mixer(x, context())), array(plain_from(mixer, causal=causal)(x, context())))


@pytest.mark.parametrize("piece", [1, 2, 5, 7])
@pytest.mark.parametrize("segment", [1, 3, 4, 30])
def test_transformer_xl_decodes(segment: int, piece: int) -> None:
    """From a state of less than two segments."""
    mixer, x = make("mixer", "transformer_xl", SITE, segment=segment), random(B, 15, 12)
    y, cache = decode(mixer, x, piece)
    near(array(y), array(mixer(x, context(length=15))), 1e-11)
    assert cache.states[0][0].shape[2] == min(15, 2 * segment - 1)


def test_transformer_xl_padding() -> None:
    mixer = make("mixer", "transformer_xl", replace(SITE, causal=False), segment=4)
    x = random(B, T, 12)
    ctx = context()
    ctx.valid_BT = torch.arange(T)[None] < torch.tensor([[6], [3]])
    y = mixer(x, ctx)
    for row, length in ((0, 6), (1, 3)):
        near(array(y[row : row + 1, :length]), array(mixer(x[row : row + 1, :length], context(length=length))))


def test_transformer_xl_costs() -> None:
    """Segments of the default length; scores of two segments for every token are computed, fewer are needed."""
    arch = parse(
        ArchSpec, {"d_model": 16, "n_heads": 4, "depth": 1, "order": "s", "sublayers": {"s": "transformer_xl"}}
    )
    assert make("mixer", "transformer_xl", SITE).segment == 8
    assert make("mixer", "transformer_xl", replace(SITE, max_len=15)).segment == 8
    cost, plain = count(arch, 11, 16), count(replace(arch, sublayers=ArchSpec().sublayers), 11, 16)
    assert cost.params_total - plain.params_total == 16 * 16 + 2 * 16  # W_R, u and v
    needed = 8 * 9 / 2 + 8 * 9 / 2 + 8 * 8
    products = 2 * 16 * 3  # 2 per multiplication, 16 = H K, scores of content and of position and the values
    assert abs((cost.flops_forward - cost.flops_algorithmic) * 16 - products * (2 * 8 * 16 - needed)) < 1e-6
    with pytest.raises(UserError, match="segment 0 must be at least 1"):
        make("mixer", "transformer_xl", SITE, segment=0)


@pytest.mark.parametrize("mixer", ["transformer_xl", "disentangled"])
def test_positions_in_attention_are_refused(mixer: str) -> None:
    arch = parse(ArchSpec, {"d_model": 16, "n_heads": 4, "depth": 1, "sublayers": {"s": mixer}})
    probe(replace(arch, position=parse(ArchSpec, {"position": "none"}).position), 11, 16)
    for name in ("rope", "shaw", "t5"):
        with pytest.raises(UserError, match=f"position '{name}' has no effect"):
            probe(replace(arch, position=parse(ArchSpec, {"position": name}).position), 11, 16)


# --- attention with a recurrence

SHARES = {"split": (2, 1, 1), "regular": (4, 0, 0), "cos": (0, 4, 0), "sin": (0, 0, 4)}


def recurrences(mixer: Any, v: np.ndarray, shares: tuple[int, int, int]) -> np.ndarray:
    """P V of every head by its recurrence: h_t = a (h_{t-1} + v_{t-1}) from zero, a = lambda or gamma e^{i theta}."""
    roots = [] if mixer.eta is None else list(np.tanh(array(mixer.eta)))
    if mixer.nu is not None:
        roots += list(np.exp(1j * array(mixer.theta)) / (1 + np.exp(-array(mixer.nu))))
    y = np.zeros_like(v)
    for h, root in enumerate(roots):
        state = np.zeros_like(v[:, 0, h]) * 1j
        for t in range(v.shape[1]):
            y[:, t, h] = state.imag if h >= shares[0] + shares[1] else state.real
            state = root * (state + v[:, t, h])
    return y


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("recurrence", SHARES)
def test_rsa(recurrence: str, causal: bool) -> None:
    """Attention's part and the recurrence's, gated; to both sides the recurrence runs both ways."""
    site = replace(SITE, causal=causal)
    mixer, shares = make("mixer", "rsa", site, recurrence=recurrence), SHARES[recurrence]
    x = random(B, T, 12)
    q, k, v = projections(mixer, x.numpy())
    ran = recurrences(mixer, v, shares)
    if not causal:
        ran = ran + recurrences(mixer, v[:, ::-1], shares)[:, ::-1]
    gate = 1 / (1 + np.exp(-array(mixer.mu)))[:, None]
    scores = {
        (b, t, h, s): q[b, t, h] @ k[b, s, h] * 6**-0.5
        for b, t, s, h in np.ndindex(B, T, T, 4)
        if s <= t or not causal
    }
    expected = weighted(mixer, scores, (1 - gate) * v, gate * ran)
    near(array(mixer(x, context())), expected)
    numbers = sum(p.numel() for name, p in mixer.named_parameters() if name in ("mu", "eta", "nu", "theta"))
    assert numbers == 4 + shares[0] + 2 * (shares[1] + shares[2])


def test_rsa_with_a_shut_gate_is_attention() -> None:
    mixer, x = make("mixer", "rsa", SITE), random(B, T, 12)
    assert (mixer(x, context()) - plain_from(mixer)(x, context())).abs().max() > 0.01
    mixer.mu.data.fill_(-math.inf)
    near(array(mixer(x, context())), array(plain_from(mixer)(x, context())))


@pytest.mark.parametrize("piece", [1, 5])
def test_rsa_decodes(piece: int) -> None:
    mixer, x = make("mixer", "rsa", SITE), random(B, T, 12)
    near(array(decode(mixer, x, piece)[0]), array(mixer(x, context())))


def test_rsa_starts_within_its_ranges() -> None:
    mixer = make("mixer", "rsa", replace(SITE, n_heads=300))
    torch.manual_seed(0)
    mixer.reset_parameters()
    assert -3 <= mixer.mu.min() < -2.5 and 2.5 < mixer.mu.max() <= 3
    assert 1 <= mixer.eta.abs().min() and mixer.eta.abs().max() <= 2 and 30 < (mixer.eta > 0).sum() < 70
    assert 1 <= mixer.nu.min() and mixer.nu.max() <= 2 and (mixer.theta == math.pi / 4).all()


# --- disentangled attention


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("clip", [None, 3, 1])
@pytest.mark.parametrize("index", ["paper", "released"])
def test_disentangled(clip: int | None, index: str, causal: bool) -> None:
    """(q . k + q . Kr[d(t, s)] + k . Qr[d(s, t)]) / sqrt(3k), key by key."""
    mixer = make("mixer", "disentangled", replace(SITE, causal=causal), clip=clip, index=index)
    c = clip or 16
    assert mixer.table.shape == (2 * c, 12)
    x = random(B, T, 12)
    q, k, v = projections(mixer, x.numpy())
    rows_k, rows_q = ((array(mixer.table) @ array(each.weight).T).reshape(2 * c, 4, 6) for each in (
        mixer.position_k, mixer.position_q))  # fmt: skip

    def d(i: int, j: int) -> int:
        return 0 if i - j <= -c else 2 * c - 1 if i - j >= c else i - j + c

    scores = {}
    for b, t, s, h in np.ndindex(B, T, T, 4):
        if s <= t or not causal:
            last = d(s, t) if index == "paper" else d(t, s)
            score = q[b, t, h] @ k[b, s, h] + q[b, t, h] @ rows_k[d(t, s), h] + k[b, s, h] @ rows_q[last, h]
            scores[b, t, h, s] = score / math.sqrt(18)
    near(array(mixer(x, context())), weighted(mixer, scores, v, np.zeros_like(v)))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("clip", [16, 4])
def test_disentangled_is_deberta_s(clip: int, causal: bool) -> None:
    """Outputs and gradients on copied weights. d_head is 3: theirs takes sqrt(3 d_head) in float32.

    The released code has d(i, j) in the last term too: with the index of the paper the two differ.
    """
    deberta = pytest.importorskip("transformers.models.deberta.modeling_deberta")
    config = deberta.DebertaConfig(
        hidden_size=12, num_attention_heads=4, relative_attention=True, pos_att_type=["c2p", "p2c"],
        max_relative_positions=clip, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    theirs = deberta.DisentangledSelfAttention(config).double().eval()
    site = replace(SITE, d_head=3, causal=causal)
    mixer = make("mixer", "disentangled", site, clip=clip, index="released")
    with torch.no_grad():
        mixer.k.bias.zero_()  # which theirs does not have
        by_head = [each.weight.unflatten(0, (4, 3)) for each in (mixer.q, mixer.k, mixer.v)]
        theirs.in_proj.weight.copy_(torch.stack(by_head, 1).flatten(0, 2))
        theirs.q_bias.copy_(mixer.q.bias)
        theirs.v_bias.copy_(mixer.v.bias)
        theirs.pos_proj.weight.copy_(mixer.position_k.weight)
        theirs.pos_q_proj.weight.copy_(mixer.position_q.weight)
        theirs.pos_q_proj.bias.zero_()
    x, rows = random(B, T, 12).requires_grad_(), mixer.table.detach().clone().requires_grad_()
    relative = deberta.build_relative_position(x, x)
    mask = torch.ones(B, 1, T, T).tril() if causal else torch.ones(B, 1, T, T)
    expected = mixer.out(theirs(x, mask, relative_pos=relative, rel_embeddings=rows)[0])
    y, weights = mixer(x, context()), random(B, T, 12, seed=1)
    near(array(y), array(expected))
    paper = make("mixer", "disentangled", site, clip=clip)
    paper.load_state_dict(mixer.state_dict())
    assert (paper(x, context()) - y).abs().max() > 1e-3
    ours = torch.autograd.grad(
        (y * weights).sum(), (x, mixer.table, mixer.position_k.weight, mixer.position_q.weight, mixer.v.weight)
    )
    found = torch.autograd.grad(
        (expected * weights).sum(), (x, rows, theirs.pos_proj.weight, theirs.pos_q_proj.weight, theirs.in_proj.weight)
    )
    for one, other in zip(ours[:4], found[:4], strict=True):
        near(one, other, 1e-11)
    near(ours[4], found[4].unflatten(0, (4, 3, 3))[:, 2].flatten(0, 1), 1e-11)


def test_disentangled_costs() -> None:
    """2c rows through two matrices once; four products of T x T, T (T + 1) / 2 of each needed, as it is causal."""
    arch = parse(
        ArchSpec, {"d_model": 16, "n_heads": 4, "depth": 1, "order": "s", "sublayers": {"s": "disentangled"}}
    )
    cost, plain = count(arch, 11, 16), count(replace(arch, sublayers=ArchSpec().sublayers), 11, 16)
    assert cost.params_total - plain.params_total == 2 * 16 * 16 + 2 * 16 * 16  # P, W_kr and W_qr
    rows = 2 * 2 * 32 * 16 * 16
    assert abs((cost.flops_algorithmic - plain.flops_algorithmic) * 16 - rows - 2 * 2 * 16 * 16 * 17 / 2) < 1e-6


def test_disentangled_without_positions_is_attention() -> None:
    mixer, x = make("mixer", "disentangled", SITE), random(B, T, 12)
    mixer.table.data.zero_()
    plain = plain_from(mixer)
    plain.q.weight.data /= 3**0.5
    plain.q.bias.data /= 3**0.5
    near(array(mixer(x, context())), array(plain(x, context())))


@pytest.mark.parametrize("piece", [1, 5])
@pytest.mark.parametrize("options", [{}, {"clip": 2}, {"index": "released"}])
def test_disentangled_decodes(options: dict[str, Any], piece: int) -> None:
    mixer, x = make("mixer", "disentangled", SITE, **options), random(B, T, 12)
    near(array(decode(mixer, x, piece)[0]), array(mixer(x, context())))
