"""Windows with dilation and global tokens: transformers, rules in the place of masks, and identities."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from reference import SITE, B, T, array, context, make, near, random
from reference_attention import GPT, Rule, costs, finish, full, masked, needed
from torch import nn

from ablate.build import build_model
from ablate.errors import UserError
from ablate.spec import ArchSpec, parse

K, H = SITE.d_head, SITE.n_heads


def longformer_rule(mixer: Any, options: dict[str, Any], causal: bool) -> Rule:
    window, g = options.get("window", 4), options.get("global_tokens", 1)
    dilated, step = options.get("dilated_heads", 0), options.get("dilation", 2)

    def rule(h: int, t: int, s: int) -> bool:
        if causal and s > t:
            return False
        delta = step if h >= H - dilated else 1
        near = t - window * delta < s <= t if causal else abs(t - s) <= window * delta / 2
        return (near and (t - s) % delta == 0) or s < g

    return rule


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window": 3, "global_tokens": 0},
        {"window": 2, "global_tokens": 3},
        {"window": 2, "global_tokens": 0, "dilated_heads": 2, "dilation": 3},
        {"window": 3, "global_tokens": 2, "dilated_heads": 1},
        {"window": 3, "global_tokens": 12},
    ],
)
def test_longformer(options: dict[str, Any], causal: bool) -> None:
    """Rows of global tokens with projections of their own, the others with the local ones."""
    mixer = make("mixer", "longformer", replace(SITE, causal=causal), **options)
    x = random(B, T, 12)
    y = masked(mixer, x.numpy(), longformer_rule(mixer, options, causal))
    if g := options.get("global_tokens", 1):
        everything = masked(mixer, x.numpy(), lambda h, t, s: s <= t or not causal, mixer.globals)
        y[:, :g] = everything[:, :g]
    near(array(mixer(x, context())), finish(mixer, y))


@pytest.mark.parametrize(("causal", "window"), [(True, 9), (False, 16)])
def test_a_longformer_that_sees_everything_is_attention(causal: bool, window: int) -> None:
    mixer = make("mixer", "longformer", replace(SITE, causal=causal), window=window, global_tokens=2)
    x = random(B, T, 12)
    expected = full(mixer, causal, x)
    assert np.abs(array(mixer(x, context())) - expected)[:, :2].max() > 0.01
    near(array(mixer(x, context()))[:, 2:], expected[:, 2:])
    mixer.reset_parameters()  # the global projections start as the local ones
    near(array(mixer(x, context())), expected)


def test_longformer_starts_with_equal_projections() -> None:
    arch = {"d_model": 16, "n_heads": 4, "depth": 2, "sublayers": {"s": {"name": "longformer", "window": 3}}}
    model = build_model(parse(ArchSpec, arch), 13, 12)
    for layer in ("0", "1"):
        mixer = model.tower.functions[layer][0]
        for name in ("q", "k", "v"):
            assert torch.equal(getattr(mixer, name).weight, getattr(mixer.globals, name).weight)
    assert not torch.equal(mixer.q.weight, model.tower.functions["0"][0].q.weight)


@pytest.mark.parametrize("tokens", [0, 1, 3])
@pytest.mark.parametrize("lengths", [(12, 12), (12, 7)])
def test_longformer_is_theirs(tokens: int, lengths: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides, global tokens, padding: forward and gradients. Their softmax is in float32, but for here."""
    monkeypatch.setattr(nn.functional, "softmax", lambda x, dim, dtype=None: x.softmax(dim))
    transformers = pytest.importorskip("transformers")
    config = transformers.LongformerConfig(
        vocab_size=11,
        hidden_size=24,
        num_attention_heads=4,
        num_hidden_layers=1,
        intermediate_size=20,
        attention_window=4,
        max_position_embeddings=40,
        attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=0.0,
    )
    theirs = transformers.LongformerModel(config, add_pooling_layer=False).double().eval()
    attention = theirs.encoder.layer[0].attention.self
    site = replace(SITE, d_model=24, causal=False)
    mixer = make("mixer", "longformer", site, window=4, global_tokens=tokens)
    nn.init.eye_(mixer.out.weight), nn.init.zeros_(mixer.out.bias)  # theirs follows outside
    pairs = [(mixer.q, attention.query), (mixer.k, attention.key), (mixer.v, attention.value)]
    if tokens:
        ours = mixer.globals
        pairs += [(ours.q, attention.query_global), (ours.k, attention.key_global), (ours.v, attention.value_global)]
    for one, other in pairs:
        other.load_state_dict(one.state_dict())
    valid = torch.arange(12)[None] < torch.tensor(lengths)[:, None]
    seen: list[Any] = []
    attention.register_forward_hook(lambda module, inputs, output: seen.append((inputs, output)), with_kwargs=False)
    embedded = random(2, 12, 24)
    mask, first = valid.long(), (torch.arange(12) < tokens).long().expand(2, -1)
    theirs(inputs_embeds=embedded, attention_mask=mask, global_attention_mask=first)
    (x, *_), (expected, *_) = seen[0]
    ctx = context(length=12)
    ctx.valid_BT = None if lengths == (12, 12) else valid
    y = mixer(x[:, :12].detach(), ctx)
    weigh = valid[..., None].double()
    near(array(y * weigh), array(expected[:, :12] * weigh))
    for output in (y, expected[:, :12]):
        (output * weigh * random(2, 12, 24, seed=4)).sum().backward()
    for one, other in pairs:
        assert one.weight.grad.abs().max() > 1e-3
        near(array(one.weight.grad), array(other.weight.grad), 1e-11)


def test_costs_of_a_longformer() -> None:
    """Another three matrices; window and global keys for the local tokens, everything for the global ones."""
    options = {"window": 5, "global_tokens": 3}
    for causal in (True, False):
        cost = costs("longformer", causal=causal, **options)
        assert cost.params_total - costs("attention").params_total == 3 * 16 * 16
        rule = longformer_rule(None, options, causal)
        local = sum(rule(0, t, s) for t in range(3, 24) for s in range(24))
        ends = 6 if causal else 3 * 24
        own = (2 * 3 + 4 * (3 if causal else 24)) * 16 * 16  # queries of the three, keys and values of what they see
        local_queries = -2 * 3 * 16 * 16
        assert needed(cost) * 24 * 64 == pytest.approx((local + ends) * 64 + own + local_queries, rel=1e-12)
    wide = costs("longformer", window=5, global_tokens=0, dilated_heads=2, dilation=2)
    assert wide.params_total == costs("attention").params_total
    assert needed(wide) == pytest.approx(((24 * 5 - 10) + (24 * 5 - 20)) / 2 / 24, rel=1e-12)


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "no window of a longformer": ({"name": "longformer", "window": 0}, "mixer 'longformer': window"),
    "too many heads": ({"name": "longformer", "dilated_heads": 5}, "mixer 'longformer': dilated_heads"),
    "no dilation": ({"name": "longformer", "dilation": 0}, "mixer 'longformer': dilation"),
    "all global": ({"name": "longformer", "global_tokens": 12}, "leave no local one of max_len 12: choose 0 to 11"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str) -> None:
    settings, message = REFUSALS[case]
    with pytest.raises(UserError, match=message):
        build_model(parse(ArchSpec, {**GPT, "sublayers": {"s": settings}}), 13, 12)
