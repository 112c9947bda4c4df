"""Positions by distance: loops over queries and keys, transformers' Shaw keys, and what must coincide."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from reference import SITE, TABLE, B, T, array, context, jitter, make, near, random
from torch import Tensor

from ablate.build import build_on_meta
from ablate.components.positions_relative import collect, compare, skew, unskew
from ablate.contracts import Cache, Context, Site
from ablate.errors import UserError
from ablate.spec import ArchSpec, parse


def attention_loop(
    mixer: Any, x: np.ndarray, key: Any, value: Any, *, causal: bool = True, scale: float = 6**-0.5
) -> np.ndarray:
    """softmax_s(q_t . (k_s + key(h, s - t)) scale) (v_s + value(h, s - t)), one query and one key at a time."""
    q, k, v = (x @ array(linear.weight).T + array(linear.bias) for linear in (mixer.q, mixer.k, mixer.v))
    q, k, v = (each.reshape(*each.shape[:2], mixer.n_heads, -1) for each in (q, k, v))
    y = np.zeros_like(v)
    for b, t, h in np.ndindex(*v.shape[:3]):
        keys = range(t + 1 if causal else x.shape[1])
        scores = np.array([q[b, t, h] @ (k[b, s, h] + key(h, s - t)) * scale for s in keys])
        weights = np.exp(scores) / np.exp(scores).sum()
        y[b, t, h] = sum(w * (v[b, s, h] + value(h, s - t)) for w, s in zip(weights, keys, strict=True))
    return y.reshape(*y.shape[:2], -1) @ array(mixer.out.weight).T + array(mixer.out.bias)


def nothing(head: int, distance: int) -> float:
    return 0.0


def waves(omega: Any) -> Any:
    """sin(w_i r) and cos(w_i r) beside each other."""
    return lambda head, r: np.stack((np.sin(omega * r), np.cos(omega * r)), -1).flatten()


FIXED = 10000.0 ** -(np.arange(0, 6, 2) / 6)


def vectors(name: str, position: Any, layer: int, causal: bool) -> tuple[Any, Any]:
    """What a position says it adds to keys and to values at a distance."""
    if name == "shaw":
        rows = [None if each is None else array(each)[layer] for each in (position.key_table, position.value_table)]
        c = position.clip
        assert all(each is None or each.shape == (c + 1 if causal else 2 * c + 1, 6) for each in rows)

        def key(head: int, r: int) -> Any:
            return 0 if rows[0] is None else rows[0][min(max(r, -c), c) + c]

        def value(head: int, r: int) -> Any:
            return 0 if rows[1] is None else rows[1][min(max(r, -c), c) + c]

        return key, value
    if name == "music":
        return (lambda head, r: array(position.table)[layer, head, r + 15]), nothing
    omega = FIXED if name == "sinusoidal_relative" else array(position.omega).reshape(-1, 3)[layer]
    return waves(omega), waves(omega)


CASES: list[tuple[str, dict[str, Any]]] = [
    ("shaw", {"clip": 3}),
    ("shaw", {"clip": 40}),
    ("shaw", {"clip": 2, "keys": False}),
    ("shaw", {"clip": 2, "values": False}),
    ("sinusoidal_relative", {}),
    ("learned_sinusoidal_relative", {}),
    ("music", {}),
]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("score", ["scaled_dot", "dot"])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_relative_position(name: str, options: dict[str, Any], score: str, causal: bool) -> None:
    """In the first layer, in the second, and in the third and fourth where the two are run again."""
    if name == "music" and not causal:
        return
    site = replace(SITE, causal=causal)
    mixer, position = make("mixer", "attention", site, score=score), make("position", name, site, **options)
    x = random(B, T, 12)
    ctx = context(position)
    for layer in range(4):
        ctx.layer = layer
        key, value = vectors(name, position, layer % 2, causal)
        scale = 1.0 if score == "dot" else 6**-0.5
        expected = attention_loop(mixer, x.numpy(), key, value, causal=causal, scale=scale)
        near(array(mixer(x, ctx)), expected, TABLE if name == "sinusoidal_relative" else 1e-11)


def test_shared_frequencies() -> None:
    own, shared = (make("position", "learned_sinusoidal_relative", SITE, shared=each) for each in (False, True))
    assert own.omega.shape == (6,) and shared.omega.shape == (3,)
    own.omega.data = shared.omega.data.repeat(2)
    mixer, x = make("mixer", "attention", SITE), random(B, T, 12)
    for layer in range(2):
        one, other = context(own), context(shared)
        one.layer = other.layer = layer
        near(array(mixer(x, one)), array(mixer(x, other)))


@pytest.mark.parametrize("causal", [True, False])
def test_shaw_keys_are_wav2vec2_bert_s(causal: bool) -> None:
    """Outputs and gradients on copied weights. Theirs sees both sides; a mask makes it causal."""
    theirs = pytest.importorskip("transformers.models.wav2vec2_bert.modeling_wav2vec2_bert")
    config = theirs.Wav2Vec2BertConfig(
        hidden_size=12, num_attention_heads=4, position_embeddings_type="relative_key", attention_dropout=0.0,
        left_max_position_embeddings=3, right_max_position_embeddings=3, attn_implementation="eager",
    )  # fmt: skip
    oracle = theirs.Wav2Vec2BertSelfAttention(config).double().eval()
    site = replace(SITE, d_head=3, causal=causal)
    mixer, position = make("mixer", "attention", site), make("position", "shaw", site, clip=3, values=False)
    pairs = [(oracle.linear_q, mixer.q), (oracle.linear_k, mixer.k), (oracle.linear_v, mixer.v)]
    for one, other in (*pairs, (oracle.linear_out, mixer.out)):
        one.load_state_dict(other.state_dict())
    rows = 4 if causal else 7
    oracle.distance_embedding.weight.data[:rows] = position.key_table.data[0]
    x, weights = random(B, T, 12).requires_grad_(), random(B, T, 12, seed=1)
    mask = torch.full((T, T), -math.inf, dtype=torch.float64).triu(1).expand(B, 1, T, T) if causal else None
    y, expected = mixer(x, context(position)), oracle(x, attention_mask=mask)[0]
    near(array(y), array(expected))
    ours = torch.autograd.grad((y * weights).sum(), (x, position.key_table, mixer.q.weight))
    found = torch.autograd.grad(
        (expected * weights).sum(), (x, oracle.distance_embedding.weight, oracle.linear_q.weight)
    )
    near(ours[0], found[0], 1e-11)
    near(ours[1][0], found[1][:rows], 1e-11)
    near(ours[2], found[2], 1e-11)
    assert not ours[1][1].any()


@pytest.mark.parametrize("causal", [True, False])
def test_gradients_of_shaw(causal: bool) -> None:
    """Against differences, through queries, keys, values and both tables."""
    site = replace(SITE, d_model=4, n_heads=2, d_head=2, max_len=5, n_layers=1, causal=causal)
    mixer, position = make("mixer", "attention", site), make("position", "shaw", site, clip=2)

    def attend(x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        position.__dict__.update(key_table=keys, value_table=values)
        return mixer(x, context(position, 4))  # type: ignore[no-any-return]

    tables = [position._parameters.pop(f"{each}_table").detach().requires_grad_() for each in ("key", "value")]
    x = random(1, 4, 4).requires_grad_()
    assert torch.autograd.gradcheck(attend, (x, *tables))
    assert all(each.any() for each in torch.autograd.grad(attend(x, *tables).square().sum(), (x, *tables)))


@pytest.mark.parametrize("causal", [True, False])
def test_shaw_of_zeros_is_no_position(causal: bool) -> None:
    site = replace(SITE, causal=causal)
    mixer, position = make("mixer", "attention", site), make("position", "shaw", site)
    x = random(B, T, 12)
    assert (mixer(x, context(position)) - mixer(x, context())).abs().max() > 0.1
    for table in position.parameters():
        table.data.zero_()
    near(array(mixer(x, context(position))), array(mixer(x, context())))


@pytest.mark.parametrize("shared", [True, False])
def test_learned_waves_start_as_the_fixed_ones(shared: bool) -> None:
    learned = make("position", "learned_sinusoidal_relative", SITE, shared=shared)
    learned.reset_parameters()
    fixed = make("position", "sinusoidal_relative", SITE)
    distance = torch.arange(-8, 9)
    for layer in range(2):
        ctx = context(learned)
        ctx.layer = layer
        near(array(learned.value_rows(distance, ctx)), array(fixed.value_rows(distance, context(fixed))), TABLE)


def test_music_is_shaw_s_keys_without_a_clip() -> None:
    """Where all heads have the same vectors, of which Shaw has one table: the same scores and gradients."""
    music, shaw = make("position", "music", SITE), make("position", "shaw", SITE, clip=15, values=False)
    assert music.table.shape == (2, 4, 16, 6) and shaw.key_table.shape == (2, 16, 6)
    shaw.key_table.data = music.table.data[:, 0]
    music.table.data = music.table.data[:, :1].expand(-1, 4, -1, -1).clone()
    mixer, found = make("mixer", "attention", SITE), []
    for position in (music, shaw):
        y = mixer(random(B, T, 12), context(position))
        (y * random(B, T, 12, seed=1)).sum().backward()
        found.append(y)
    near(array(found[0]), array(found[1]))
    near(music.table.grad.sum(1), shaw.key_table.grad, 1e-11)


COMBINATIONS = list(
    itertools.product(
        ("learned", "learned_sinusoidal"), ("shaw", "sinusoidal_relative", "learned_sinusoidal_relative")
    )
)


@pytest.mark.parametrize(("absolute", "relative"), COMBINATIONS)
def test_combined_is_one_after_the_other(absolute: str, relative: str) -> None:
    both = make("position", "combined", SITE, absolute=absolute, relative=relative)
    one, other = make("position", absolute, SITE), make("position", relative, SITE)
    one.load_state_dict(both.absolute.state_dict())
    other.load_state_dict(both.relative.state_dict())
    mixer, x = make("mixer", "attention", SITE), random(B, T, 12)
    ctx = context(both)
    near(array(mixer(both.embed(x, ctx), ctx)), array(mixer(one.embed(x, context(one)), context(other))))
    assert sum(p.numel() for p in both.parameters()) == sum(
        p.numel() for p in (*one.parameters(), *other.parameters())
    )


def test_combined_clip() -> None:
    assert make("position", "combined", SITE).relative.clip == 16
    assert make("position", "combined", SITE, clip=3).relative.key_table.shape == (2, 4, 6)
    with pytest.raises(UserError, match="clip 3 is for relative 'shaw'"):
        make("position", "combined", SITE, relative="sinusoidal_relative", clip=3)


# --- the shift


@pytest.mark.parametrize(("T", "S"), [(1, 1), (1, 6), (5, 5), (2, 7)])
@pytest.mark.parametrize("both_sides", [True, False])
def test_skew(T: int, S: int, both_sides: bool) -> None:
    """Column s - t + T - 1 of row t comes to column s, and back."""
    R = S + T - 1 if both_sides else S
    x = random(2, 3, T, R)
    y = skew(x, S)
    assert y.shape == (2, 3, T, S)
    expected, back = np.zeros((2, 3, T, S)), np.zeros((2, 3, T, R))
    for t, s in np.ndindex(T, S):
        if s - t + T - 1 < R:
            expected[:, :, t, s] = x[:, :, t, s - t + T - 1]
            back[:, :, t, s - t + T - 1] = x[:, :, t, s - t + T - 1]
    seen = torch.from_numpy(expected != 0)
    near(y * seen, expected, 0.0)
    near(unskew(y * seen, R), back, 0.0)


@pytest.mark.parametrize("positions", ["apart", "pooled", "pooled queries", "decoding"])
def test_distances_are_those_of_the_positions(positions: str) -> None:
    """Positions that are not 0, 1, 2, ...: every second of them, or queries that are fewer than the keys."""
    pos_T, pos_S = {
        "apart": (torch.arange(5) * 3, torch.arange(5) * 3),
        "pooled": (torch.arange(0, 12, 2), torch.arange(0, 12, 2)),
        "pooled queries": (torch.arange(0, 12, 2), torch.arange(12)),
        "decoding": (torch.arange(6, 9), torch.arange(9)),
    }[positions]
    causal = positions == "decoding"
    position = make("position", "shaw", replace(SITE, causal=causal), clip=7)
    ctx = Context(position, pos_T, Cache(length=6) if causal else None, scale=1.0)
    q, weights = random(B, 4, len(pos_T), 6), random(B, 4, len(pos_T), len(pos_S), seed=1)
    if causal:
        weights = weights * (pos_S[None] <= pos_T[:, None])
    scores = compare(q, position.key_rows, pos_S, ctx, causal)
    values = collect(weights, position.value_rows, pos_S, ctx, causal)
    expected = np.zeros(values.shape)
    for (i, t), (j, s) in itertools.product(enumerate(pos_T.tolist()), enumerate(pos_S.tolist())):
        if s > t and causal:
            continue
        row = min(max(s - t, -7), 7) + 7
        near(array(scores[:, :, i, j]), array(q[:, :, i] @ position.key_table[0, row]))
        expected[:, :, i] += weights[:, :, i, j, None].numpy() * array(position.value_table[0, row])
    near(array(values), expected)


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("piece", [1, 5])
def test_decoding(name: str, options: dict[str, Any], piece: int) -> None:
    mixer, position = make("mixer", "attention", SITE), make("position", name, SITE, **options)
    x, cache, parts = random(B, T, 12), Cache(), []
    for start in range(0, T, piece):
        part = x[:, start : start + piece]
        parts.append(mixer(part, Context(position, torch.arange(start, start + part.shape[1]), cache)))
        cache.length += part.shape[1]
    near(array(torch.cat(parts, 1)), array(mixer(x, context(position))))


# --- counts, first values, refusals


@pytest.mark.parametrize(
    ("name", "options", "causal", "expected"),
    [
        ("shaw", {}, False, 3 * 2 * 33 * 8),  # (2c + 1) k for keys and for values, in each layer
        ("shaw", {"clip": 4}, True, 3 * 2 * 5 * 8),
        ("shaw", {"clip": 4, "keys": False}, True, 3 * 5 * 8),
        ("sinusoidal_relative", {}, True, 0),
        ("learned_sinusoidal_relative", {}, True, 3 * 4),
        ("learned_sinusoidal_relative", {"shared": True}, True, 4),
        ("learned_sinusoidal", {}, True, 20),
        ("music", {}, True, 3 * 5 * 24 * 8),
        ("combined", {}, False, 24 * 40 + 3 * 2 * 33 * 8),
    ],
)
def test_parameters_are_counted(name: str, options: dict[str, Any], causal: bool, expected: int) -> None:
    sizes = {"d_model": 40, "n_heads": 5, "depth": 3, "position": {"name": name, **options}}
    model = build_on_meta(parse(ArchSpec, sizes), 11, 24, causal)
    assert sum(p.numel() for p in model.position.parameters()) == expected


def test_first_values() -> None:
    """Shaw's U(+-sqrt(6 / (2c + 1 + k))) and the Music Transformer's N(0, 1/k), to five standard errors."""
    wide = Site(d_model=64, n_heads=2, d_head=32, d_ff=4, vocab=4, max_len=200, n_layers=4, sublayers=4, causal=True)
    shaw, music = make("position", "shaw", wide, clip=60), make("position", "music", wide)
    for position in (shaw, music):
        torch.manual_seed(0)
        position.reset_parameters()
    bound = math.sqrt(6 / (121 + 32))
    for table in shaw.parameters():
        assert 0.99 * bound < table.abs().max() <= bound and abs(table.mean()) < 5 * bound / math.sqrt(3 * 7808)
    assert abs(music.table.std().item() * 32**0.5 - 1) < 5 / math.sqrt(2 * music.table.numel())


def test_refusals() -> None:
    both = replace(SITE, causal=False)
    with pytest.raises(UserError, match="position 'music' is for causal models"):
        make("position", "music", both)
    with pytest.raises(UserError, match="keys false and values false leave nothing"):
        make("position", "shaw", SITE, keys=False, values=False)
    with pytest.raises(UserError, match="clip 0 must be at least 1"):
        make("position", "shaw", SITE, clip=0)
    with pytest.raises(UserError, match=r"'learned_sinusoidal_relative' .* d_head 1 must be at least 2"):
        make("position", "learned_sinusoidal_relative", replace(SITE, d_head=1))
    mixer, position = make("mixer", "attention", SITE, d_value=5), make("position", "shaw", SITE)
    with pytest.raises(UserError, match="d_value 5 must be d_head"):
        mixer(random(B, T, 12), context(position))
    keys = make("position", "shaw", SITE, values=False)
    jitter(keys)
    mixer(random(B, T, 12), context(keys))
