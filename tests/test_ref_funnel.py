"""Funnels against transformers' Funnel, against average pooling by torch, and against loops."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from reference import SITE, B, array, context, jitter, make, near, random
from torch import Tensor

from ablate.build import Layer, build_model
from ablate.contracts import Cache, Context
from ablate.errors import UserError
from ablate.spec import ArchSpec, parse

TOKENS = torch.randint(0, 11, (3, 16), generator=torch.Generator().manual_seed(3))
SOURCE = torch.randint(0, 11, (3, 16), generator=torch.Generator().manual_seed(4))
HF_EXACT = 1e-6  # transformers takes its scores in float32


def model(causal: bool = False, **settings: Any) -> Any:
    tree = {"d_model": 12, "n_heads": 2, "d_ff": 20, "depth": 3, **settings}
    made = build_model(parse(ArchSpec, tree), 11, 16, causal=causal).double().eval()
    jitter(made, 6)
    return made


def pooled(x_BTD: Tensor, how: str) -> Tensor:
    """Windows of two, of one where the length is odd, by torch."""
    x_BDT = x_BTD.transpose(1, 2)
    if how == "mean":
        y_BDT = F.avg_pool1d(x_BDT, 2, ceil_mode=True)
    else:
        sign = 1 if how == "max" else -1
        y_BDT = sign * F.max_pool1d(sign * x_BDT, 2, ceil_mode=True)
    return y_BDT.transpose(1, 2)


def by_hand(tower: Any, position: Any, x_BTD: Tensor, how: str, blocks: list[list[int]]) -> tuple[Tensor, Tensor]:
    """The mesh form: the stream after the first group, and the last."""
    first = x_BTD
    for block, group in enumerate(blocks):
        for layer in group:
            for number in range(2):
                function, residual = tower.functions[str(layer)][number], tower.residuals[str(layer)][number]
                fresh = Context(position, torch.arange(x_BTD.shape[1]))
                x_BTD = residual(x_BTD, lambda y, f=function, c=fresh: f(y, c))
                if block and layer == group[0] and number == 0:
                    x_BTD = pooled(x_BTD, how)
        first = first if block else x_BTD
    return first, x_BTD


@pytest.mark.parametrize("how", ["mean", "max", "min"])
@pytest.mark.parametrize("length", [1, 2, 9, 12, 15])
def test_mesh_form(length: int, how: str) -> None:
    """Attention and its residual at full length, then pooling; positions of the short sequence are its own."""
    made = model(position="t5", depth=5, stack={"name": "funnel", "blocks": 3, "pool": how})
    x = random(3, length, 12)
    ctx = Context(made.position, torch.arange(length))
    first, last = by_hand(made.tower, made.position, x, how, [[0, 1], [2, 3], [4]])
    upsampled = array(last).repeat(4, 1)[:, :length]
    near(array(made.tower(x, ctx)), array(made.tower.final_norm(first + torch.from_numpy(upsampled))))
    assert (ctx.layer, ctx.call, ctx.valid_BT) == (4, 10, None) and len(ctx.positions_T) == length


def test_layers_at_full_length_after() -> None:
    made = model(depth=4, position="t5", stack={"name": "funnel", "after": 2})
    x = random(3, 7, 12)
    first, last = by_hand(made.tower, made.position, x, "mean", [[0], [1]])
    y = first + last.repeat_interleave(2, 1)[:, :7]
    y = by_hand(made.tower, made.position, y, "mean", [[2, 3]])[1]
    near(array(made.tower(x, Context(made.position, torch.arange(7)))), array(made.tower.final_norm(y)))


def encoder_pair(how: str) -> tuple[Any, Any]:
    """An encoder-decoder with a funnel of 3 blocks, and the same weights without."""
    settings: dict[str, Any] = {"encoder": True, "position": "t5"}
    short = model(True, stack={"name": "funnel", "blocks": 3, "pool": how}, **settings)
    plain = model(True, **settings)
    plain.load_state_dict(short.state_dict())
    return short, plain


@pytest.mark.parametrize("how", ["mean", "max"])
@pytest.mark.parametrize("length", [1, 11, 16])
def test_the_decoder_reads_the_short_sequence(length: int, how: str) -> None:
    """It is not upsampled, and the decoder is a plain one."""
    short, plain = encoder_pair(how)
    source = SOURCE[:, :length]
    memory, ctx = short.encode(source)
    tower, position = short.encoder.tower, short.encoder.position
    embedded = short.encoder.embed(source, short.encoder.context(source))
    _, last = by_hand(tower, position, embedded, how, [[0], [1], [2]])
    near(array(memory.x_BSD), array(tower.final_norm(last)))
    assert memory.x_BSD.shape[1] == -(-length // 4) == len(ctx.positions_T)
    decoder = plain.decoder
    ours = decoder.context(TOKENS)
    ours.memory = memory
    expected = plain.head.log_probs(decoder.tower(decoder.embed(TOKENS, ours), ours))
    near(array(short.log_probs(source, TOKENS)), array(expected))


@pytest.mark.parametrize("query_only", [False, True])
@pytest.mark.parametrize("how", ["mean", "max", "min"])
def test_padding_in_an_encoder_decoder(how: str, query_only: bool) -> None:
    options = {"name": "funnel", "blocks": 3, "pool": how, "query_only": query_only}
    pair = model(True, encoder=True, position="t5", stack=options)
    lengths = (16, 7, 1)
    valid_BS = torch.arange(16)[None] < torch.tensor(lengths)[:, None]
    memory, _ = pair.encode(SOURCE, valid_BS)
    assert memory.valid_BS is not None and memory.valid_BS.sum(1).tolist() == [4, 2, 1]
    y = pair.log_probs(SOURCE, TOKENS, valid_BS=valid_BS)
    for row, length in enumerate(lengths):
        alone = pair.log_probs(SOURCE[row : row + 1, :length], TOKENS[row : row + 1])
        near(array(y[row : row + 1]), array(alone), atol=1e-10)


@pytest.mark.parametrize("options", [{}, {"query_only": True}])
@pytest.mark.parametrize("encoder", [False, True])
def test_one_block_is_plain(encoder: bool, options: dict[str, Any]) -> None:
    one = model(encoder, encoder=encoder, stack={"name": "funnel", "blocks": 1, **options})
    plain = model(encoder, encoder=encoder)
    plain.load_state_dict(one.state_dict())
    inputs = (SOURCE, TOKENS)[1 - encoder :]
    assert torch.equal(one.log_probs(*inputs), plain.log_probs(*inputs))


# --- the paper's form, against transformers


def theirs(depth: list[int], how: str, decoder: int) -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.FunnelConfig(
        vocab_size=11, block_sizes=depth, num_decoder_layers=decoder, d_model=12, n_head=2, d_head=6, d_inner=20,
        hidden_act="gelu", hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, pooling_type=how,
        separate_cls=False, truncate_seq=False, pool_q_only=True, layer_norm_eps=1e-5,
    )  # fmt: skip
    torch.manual_seed(0)
    made = transformers.FunnelModel(config).double().eval()
    jitter(made, 9)
    for layer in [layer for block in made.encoder.blocks for layer in block] + list(made.decoder.layers):
        for name in ("r_w_bias", "r_r_bias", "r_kernel", "r_s_bias", "seg_embed"):
            getattr(layer.attention, name).data.zero_()  # without them its attention is plain
    return made


def copy(tower: Any, layers: list[Any]) -> None:
    for number, other in enumerate(layers):
        attention, ffn = tower.functions[str(number)]
        norms = tower.residuals[str(number)]
        pairs = [
            (attention.q, other.attention.q_head), (attention.k, other.attention.k_head),
            (attention.v, other.attention.v_head), (attention.out, other.attention.post_proj),
            (ffn.up, other.ffn.linear_1), (ffn.down, other.ffn.linear_2),
        ]  # fmt: skip
        for mine, his in pairs:
            mine.weight.data.copy_(his.weight)
            mine.bias.data.zero_() if his.bias is None else mine.bias.data.copy_(his.bias)
        for mine, his in ((norms[0].norm, other.attention.layer_norm), (norms[1].norm, other.ffn.layer_norm)):
            mine.gain.data.copy_(his.weight)
            mine.shift.data.copy_(his.bias)


@pytest.mark.parametrize("how", ["mean", "max"])
@pytest.mark.parametrize("length", [7, 9, 12])
@pytest.mark.parametrize("after", [0, 2])
def test_query_only_is_transformers_funnel(after: int, length: int, how: str) -> None:
    """Forward and gradient: the short output of an encoder, and the long one of a single tower with two layers."""
    other = theirs([2, 1, 1], how, 2)
    encoder = [layer for block in other.encoder.blocks for layer in block]
    options: dict[str, Any] = {"name": "funnel", "blocks": 3, "pool": how, "query_only": True}
    settings: dict[str, Any] = {"residual": "post", "position": "none", "norm": {"name": "layernorm", "eps": 1e-5}}
    if after:
        made = model(depth=6, stack={**options, "after": 2}, **settings)
        tower, position = made.tower, made.position
    else:
        made = model(True, depth=4, encoder=True, stack=options, **settings)
        tower, position = made.encoder.tower, made.encoder.position
    copy(tower, encoder + list(other.decoder.layers) * bool(after))
    x = random(2, length, 12).requires_grad_()
    y = tower(x, Context(position, torch.arange(length)))
    z = other.encoder(x, torch.ones(2, length), output_hidden_states=True)
    expected = z.last_hidden_state
    if after:
        expected = other.decoder(z.last_hidden_state, z.hidden_states[2], torch.ones(2, length)).last_hidden_state
    near(array(y), array(expected), atol=HF_EXACT)
    weights = random(*y.shape, seed=8)
    one, two = (torch.autograd.grad((each * weights).sum(), x)[0] for each in (y, expected))
    near(one, two, atol=10 * HF_EXACT)


@pytest.mark.parametrize("position", ["rope", "t5", "alibi"])
def test_pooled_queries_stand_at_their_first_token(position: str) -> None:
    """With every token equal to its neighbour, pooled queries are the queries at 0, 2, 4 of plain attention."""
    made = model(depth=2, order="s", position=position, stack={"name": "funnel", "query_only": True, "pool": "max"})
    tower = made.tower
    x = random(2, 4, 12).repeat_interleave(2, 1)
    attention, residual = tower.functions["1"][0], tower.residuals["1"][0]
    ctx = Context(made.position, torch.arange(8))
    full = residual(x, lambda y: attention(y, ctx))
    got = tower.stack.enter(Layer(tower.functions["1"], tower.residuals["1"], 0.0), x, replace(ctx, once={}))
    near(array(got), array(full[:, ::2]))


def test_refusals() -> None:
    with pytest.raises(UserError, match="sees the future"):
        model(True, stack="funnel")
    with pytest.raises(UserError, match="blocks 4 must be from 1 to 3"):
        model(stack={"name": "funnel", "blocks": 4})
    with pytest.raises(UserError, match="after leaves no layers"):
        model(stack={"name": "funnel", "after": 3})
    with pytest.raises(UserError, match="after has no effect"):
        model(True, encoder=True, stack={"name": "funnel", "after": 1})
    made = model(stack={"name": "funnel", "query_only": True}, position="none", sublayers={"s": "lstm"})
    with pytest.raises(UserError, match="query_only pools queries of attention, and mixer/lstm"):
        made.log_probs(TOKENS)


# --- ours, causal


def shifted(x: np.ndarray, how: str) -> np.ndarray:
    """One for each of 0, 2, 4, ...: of it and the one before."""
    join = {"mean": lambda one, two: (one + two) / 2, "max": np.maximum, "min": np.minimum}[how]
    windows = [x[:, u] if u == 0 else join(x[:, u - 1], x[:, u]) for u in range(0, x.shape[1], 2)]
    return np.stack(windows, 1)


@pytest.mark.parametrize("how", ["mean", "max", "min"])
@pytest.mark.parametrize("length", [1, 2, 9, 12])
def test_causal_funnel(length: int, how: str) -> None:
    stack = make("stack", "funnel_causal", replace(SITE, n_layers=4), blocks=3, pool=how)
    matrices = random(4, 12, 12)
    layers: list[Any] = [lambda x, ctx, m=m: x.cumsum(1) @ m / 3 + x for m in matrices]
    x = random(B, length, 12)
    streams = [x.numpy()]
    for number, layer in enumerate(layers):
        entering = shifted(streams[-1], how) if number in (2, 3) else streams[-1]
        streams.append(layer(torch.from_numpy(entering), None).numpy())
    expected = np.stack([streams[2][:, t] + streams[4][:, t // 4] for t in range(length)], 1)
    near(array(stack(x, layers, context(length=length))), expected)


@pytest.mark.parametrize("position", ["t5", "rope", "learned"])
def test_causal_funnel_sees_nothing_ahead(position: str) -> None:
    """A change of any token moves no earlier output, and moves its own."""
    made = model(True, depth=4, position=position, stack={"name": "funnel_causal", "blocks": 4})
    before = made.log_probs(TOKENS)
    for place in range(16):
        changed = TOKENS.clone()
        changed[:, place] = (changed[:, place] + 1) % 11
        difference = (made.log_probs(changed) - before).abs().amax((0, 2))
        assert not difference[:place].gt(1e-10).any()
        assert difference[place] > 1e-6


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 7, 16])
@pytest.mark.parametrize("blocks", [1, 2, 3, 4])
def test_causal_funnel_decodes(blocks: int, piece: int) -> None:
    """Whatever the pieces, also those that complete no window further down."""
    made = model(True, depth=4, position="t5", stack={"name": "funnel_causal", "blocks": blocks})
    cache = Cache()
    parts = [made.log_probs(each, cache) for each in TOKENS.split(piece, 1)]
    near(array(torch.cat(parts, 1)), array(made.log_probs(TOKENS)), atol=1e-10)


def test_one_causal_block_is_plain() -> None:
    one, plain = model(True, stack={"name": "funnel_causal", "blocks": 1}), model(True)
    plain.load_state_dict(one.state_dict())
    assert torch.equal(one.log_probs(TOKENS), plain.log_probs(TOKENS))
    pair = model(True, encoder=True, stack="funnel_causal")
    assert pair.encode(SOURCE)[0].x_BSD.shape == (3, 16, 12)
