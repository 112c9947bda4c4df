"""Mixtures over depth: transparent attention and the scalar mix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from reference import SITE, B, T, array, context, jitter, make, near, random
from torch import Tensor

from ablate.build import build_model, build_on_meta
from ablate.contracts import Cache, Context
from ablate.errors import UserError
from ablate.spec import ArchSpec, parse

SOURCE = torch.randint(0, 11, (B, T), generator=torch.Generator().manual_seed(4))
TOKENS = torch.randint(0, 11, (B, T), generator=torch.Generator().manual_seed(3))


def pair(**settings: Any) -> Any:
    tree = {"d_model": 12, "n_heads": 2, "d_ff": 20, "depth": 3, "encoder": True, **settings}
    made = build_model(parse(ArchSpec, tree), 11, 16).double().eval()
    jitter(made, 6)
    return made


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum(0)


@pytest.mark.parametrize("norm_each", [False, True])
def test_decoder_layers_read_mixtures(norm_each: bool) -> None:
    """z_j = sum_i softmax_i(W)_ij h_i, for 4 encoder and 3 decoder layers."""
    model = pair(encoder_depth=4, stack={"name": "transparent", "norm_each": norm_each})
    tower = model.encoder.tower
    trace: list[Tensor] = []
    memory, _ = model.encode(SOURCE, trace=trace)
    weights = softmax(array(tower.stack.mix))
    assert weights.shape == (5, 3) and len(trace) == 5
    below = [tower.final_norm(h) if norm_each else h for h in trace[:-1]]
    streams = [array(h) for h in below] + [array(tower.final_norm(trace[-1]))]
    near(array(memory.x_BSD), streams[-1])
    for j in range(3):
        near(array(memory.at(j)), sum(weights[i, j] * streams[i] for i in range(5)))


def test_each_layer_reads_its_own() -> None:
    """The columns of W are for the decoder's layers in order."""
    model = pair(stack="transparent")
    plain = pair()
    plain.load_state_dict({name: p for name, p in model.state_dict().items() if not name.endswith("stack.mix")})
    memory, _ = model.encode(SOURCE)

    class Fixed(torch.nn.Module):
        def __init__(self, cross: Any):
            super().__init__()
            self.cross = cross

        def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
            assert ctx.memory is not None
            ctx.memory.at = lambda layer: memory.at(layer)
            return self.cross(x_BTD, ctx)

    for index in range(3):
        functions: Any = plain.decoder.tower.functions[str(index)]
        functions[1] = Fixed(functions[1])
    near(array(model.log_probs(SOURCE, TOKENS)), array(plain.log_probs(SOURCE, TOKENS)))


@pytest.mark.parametrize("residual", ["pre", "post"])
def test_all_weight_on_the_last_is_vanilla(residual: str) -> None:
    model, plain = pair(stack="transparent", residual=residual), pair(residual=residual)
    model.load_state_dict(plain.state_dict(), strict=False)
    assert (model.log_probs(SOURCE, TOKENS) - plain.log_probs(SOURCE, TOKENS)).abs().max() > 0.01
    model.encoder.tower.stack.mix.data.zero_()
    model.encoder.tower.stack.mix.data[-1] = 1000.0
    near(array(model.log_probs(SOURCE, TOKENS)), array(plain.log_probs(SOURCE, TOKENS)))


def test_decoding_reads_the_same() -> None:
    model = pair(stack="transparent")
    cache = Cache()
    parts = [model.log_probs(SOURCE, each, cache) for each in TOKENS.split(2, 1)]
    near(array(torch.cat(parts, 1)), array(model.log_probs(SOURCE, TOKENS)), atol=1e-10)


def test_parameters() -> None:
    """(N + 1) M of them, 156 for 12 + 12 layers, all in the encoder."""
    counts = []
    for stack in ("plain", "transparent"):
        arch = parse(ArchSpec, {"d_model": 8, "depth": 12, "encoder": True, "stack": stack})
        counts.append(sum(p.numel() for p in build_on_meta(arch, 11, 16).parameters()))
    assert counts[1] - counts[0] == 13 * 12 == 156
    assert not list(pair(stack="transparent").decoder.tower.stack.parameters())


def test_start() -> None:
    mix = build_model(parse(ArchSpec, {"d_model": 4, "depth": 40, "encoder": True, "stack": "transparent"}), 3, 4)
    values = mix.encoder.tower.stack.mix
    assert values.std().item() == pytest.approx(41**-0.5, rel=0.1) and abs(values.mean().item()) < 0.02


def test_dropout_is_on_the_scores() -> None:
    """W's entries become 0 or W / (1 - p) before the softmax; the weights still sum to one."""
    model = pair(stack={"name": "transparent", "dropout": 0.5}, norm="none")
    stack = model.encoder.tower.stack
    ones = [torch.ones(1, 1, 12).double() * value for value in (1.0, 10.0, 100.0, 1000.0)]
    possible = set()
    for kept in np.ndindex(2, 2, 2, 2):
        weights = softmax(array(stack.mix) * 2 * np.array(kept)[:, None])
        possible |= set(np.round(weights.T @ [1, 10, 100, 1000], 6).ravel())
    stack.train()
    for seed in range(5):
        torch.manual_seed(seed)
        at = stack.memory(ones[-1], ones, None)
        assert {round(at(j)[0, 0, 0].item(), 6) for j in range(3)} <= possible
    stack.eval()
    near(array(stack.memory(ones[-1], ones, None)(1)[0, 0, 0]), softmax(array(stack.mix))[:, 1] @ [1, 10, 100, 1000])


def test_refusals() -> None:
    with pytest.raises(UserError, match="scalar_mix"):
        make("stack", "transparent", SITE)
    with pytest.raises(UserError, match="encoder-decoder"):
        build_model(parse(ArchSpec, {"d_model": 8, "stack": "transparent"}), 11, 16)
    with pytest.raises(UserError, match="dropout 2"):
        make("stack", "transparent", SITE, dropout=2.0)
    model = pair(stack={"name": "transparent", "norm_each": True}, residual="post")
    with pytest.raises(UserError, match="norm_each has no effect"):
        model.log_probs(SOURCE, TOKENS)


# --- scalar mix


def layers(n: int) -> list[Any]:
    return [lambda x_BTD, ctx, k=k: torch.tanh(x_BTD * (k + 1)) + x_BTD for k in range(n)]


def test_scalar_mix() -> None:
    stack = make("stack", "scalar_mix", SITE)
    x = random(B, T, 12)
    streams = [x]
    for layer in layers(2):
        streams.append(layer(streams[-1], None))
    weights = softmax(array(stack.scores))
    expected = stack.gamma.item() * sum(w * h.numpy() for w, h in zip(weights, streams, strict=True))
    near(array(stack(x, layers(2), context())), expected)


def test_scalar_mix_on_the_last_is_plain() -> None:
    tree = {"d_model": 12, "n_heads": 2, "d_ff": 20, "depth": 2, "norm": "none"}
    plain = build_model(parse(ArchSpec, tree), 11, 16).double().eval()
    mixed = build_model(parse(ArchSpec, {**tree, "stack": "scalar_mix"}), 11, 16).double().eval()
    mixed.load_state_dict(plain.state_dict(), strict=False)
    assert mixed.tower.stack.gamma.item() == 1 and not mixed.tower.stack.scores.any()
    mixed.tower.stack.scores.data[-1] = 1000.0
    near(array(mixed.log_probs(TOKENS)), array(plain.log_probs(TOKENS)))


def test_layer_dropout() -> None:
    """A layer left out has no weight; where all are, weights are even. Evaluation leaves none out."""
    stack = make("stack", "scalar_mix", SITE, dropout=0.5).train()
    x, ctx = random(B, T, 12), context()  # making one seeds the generator
    ones = [lambda x_BTD, ctx, k=k: torch.full_like(x_BTD, 10.0**k) for k in range(2)]
    exps, gamma = np.exp(array(stack.scores)), stack.gamma.item()
    seen, possible = set(), {round(gamma * 11 / 3, 9)}
    for kept in np.ndindex(2, 2, 2):
        if any(kept):
            weights = exps * kept / (exps * kept).sum()
            possible.add(round(gamma * float(weights @ [0, 1, 10]), 9))
    for seed in range(60):
        torch.manual_seed(seed)
        seen.add(round(stack(x * 0, ones, ctx)[0, 0, 0].item(), 9))
    assert seen == possible and len(possible) == 8
    stack.eval()
    near(array(stack(x * 0, ones, context()))[0, 0, 0], gamma * softmax(array(stack.scores)) @ [0, 1, 10])


def test_scalar_mix_in_both_towers() -> None:
    model, plain = pair(stack="scalar_mix"), pair()
    extra = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in plain.parameters())
    assert extra == 2 * (4 + 1)
    with pytest.raises(UserError, match="dropout -1"):
        make("stack", "scalar_mix", SITE, dropout=-1.0)
