"""Synthesizers against loops from their equations, against attention, and against the published counts."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from reference import SITE, B, T, array, context, make, near, random
from torch import Tensor, nn

from ablate import registry
from ablate.build import build_model
from ablate.contracts import Context, Position, Site
from ablate.cost import count
from ablate.errors import UserError
from ablate.probe import probe
from ablate.spec import ArchSpec, Component, parse

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("synthesizer_dense", {}),
    "dense of the paper": ("synthesizer_dense", {"form": "paper"}),
    "dense plus": ("synthesizer_dense_plus", {}),
    "dense plus, unscaled": ("synthesizer_dense_plus", {"score": "dot"}),
    "dense plus alpha": ("synthesizer_dense_plus_alpha", {}),
    "random": ("synthesizer_random", {}),
    "fixed random": ("synthesizer_random", {"fixed": True}),
    "random plus": ("synthesizer_random_plus", {}),
    "random plus, unscaled": ("synthesizer_random_plus", {"score": "dot"}),
    "random plus alpha": ("synthesizer_random_plus_alpha", {}),
    "factorized": ("synthesizer_factorized", {}),
    "factorized of rank 3": ("synthesizer_factorized", {"rank": 3}),
}
K, H = SITE.d_head, SITE.n_heads


class Bias(Position):
    """Adds what it is given to the scores."""

    def __init__(self, bias_HTS: Tensor):
        super().__init__(SITE)
        self.bias_HTS = bias_HTS

    def bias(self, q_BHTK: Tensor, k_BHSK: Tensor, pos_S: Tensor, ctx: Context) -> Tensor:
        return self.bias_HTS[:, ctx.positions_T][:, :, pos_S]


def heads(x: np.ndarray, linear: Any) -> np.ndarray:
    y = x @ array(linear.weight).T + array(linear.bias)
    return y.reshape(*y.shape[:2], H, -1)


def synthetic(name: str, mixer: Any, q: np.ndarray, h: int, t: int, s: int) -> float:
    """The synthesized score of query t for key s in head h."""
    if "dense" in name:
        hidden = np.maximum(q[t, h], 0)
        if "paper" in name:
            return hidden @ array(mixer.to_keys)[h][:, s] + array(mixer.shift).reshape(H, -1)[h, s]
        return hidden @ array(mixer.to_keys)[:, s]
    if "factorized" in name:
        return sum(
            row[h, t] * column[h, s] for row, column in zip(*map(array, (mixer.rows, mixer.columns)), strict=True)
        )
    return array(mixer.table)[h, t, s]


def loop(name: str, mixer: Any, x: np.ndarray, causal: bool, bias_HTS: np.ndarray) -> np.ndarray:
    """softmax(scores) v, one query and one key at a time."""
    v = heads(x, mixer.v)
    q = heads(x, mixer.q) if "dense" in name or "plus" in name else v
    k = heads(x, mixer.k) if "plus" in name else v
    share = 1 / (1 + math.exp(-array(mixer.alpha))) if "alpha" in name else None
    y = np.zeros((len(x), T, H, K))
    for b, h, t in np.ndindex(len(x), H, T):
        keys = range(t + 1 if causal else T)
        scores = []
        for s in keys:
            made = synthetic(name, mixer, q[b], h, t, s)
            product = q[b, t, h] @ k[b, s, h] * (1 if "unscaled" in name else K**-0.5)
            if share is not None:
                made = (1 - share) * product + share * made
            elif "plus" in name:
                made = product + made
            scores.append(made + bias_HTS[h, t, s])
        weights = np.exp(scores) / np.sum(np.exp(scores))
        y[b, t, h] = weights @ v[b, list(keys), h]
    return y.reshape(*y.shape[:2], -1) @ array(mixer.out.weight).T + array(mixer.out.bias)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_loop(case: str, causal: bool) -> None:
    """With a position's bias, which is added after; max_len is 16 and T is 9."""
    name, options = CASES[case]
    mixer = make("mixer", name, replace(SITE, causal=causal), **options)
    x, bias_HTS = random(B, T, 12), random(H, T, T, seed=4)
    found = mixer(x, context(Bias(bias_HTS)))
    near(array(found), loop(case, mixer, x.numpy(), causal, bias_HTS.numpy()))
    near(array(mixer(x, context())), loop(case, mixer, x.numpy(), causal, np.zeros((H, T, T))))


def attention_like(mixer: Any, site: Site = SITE, **options: Any) -> Any:
    """Attention with the synthesizer's matrices, queries zero where it has none."""
    attention = make("mixer", "attention", site, **options)
    state = mixer.state_dict()
    attention.load_state_dict(
        {name: state.get(name, torch.zeros_like(p)) for name, p in attention.state_dict().items()}
    )
    return attention


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("case", ["random", "fixed random", "random plus", "random plus, unscaled", "factorized"])
def test_attention_with_R_as_its_bias(case: str, causal: bool) -> None:
    """Outputs, and the gradients of x, of the values and of R."""
    name, options = CASES[case]
    site = replace(SITE, causal=causal)
    mixer = make("mixer", name, site, **options)
    attention = attention_like(mixer, site, score="dot" if options.get("score") == "dot" else "scaled_dot")
    table = torch.einsum("rht,rhs->hts", mixer.rows, mixer.columns) if case == "factorized" else mixer.table
    table = table.detach().requires_grad_()
    x, weight = random(B, T, 12).requires_grad_(), random(B, T, 12, seed=2)
    one, two = mixer(x, context()), attention(x, context(Bias(table)))
    near(array(one), array(two))
    wanted = [x, mixer.v.weight] + ([mixer.table] if "random" in case and "fixed" not in case else [])
    found = torch.autograd.grad((one * weight).sum(), wanted)
    expected = torch.autograd.grad((two * weight).sum(), [x, attention.v.weight, table])
    for each, other in zip(found, expected, strict=False):
        near(each, other)


def test_random_without_R_is_the_mean_of_the_past() -> None:
    mixer = make("mixer", "synthesizer_random", SITE)
    mixer.table.data.zero_()
    x = random(B, T, 12)
    mean = mixer.v(x).cumsum(1) / torch.arange(1, T + 1)[:, None]
    near(array(mixer(x, context())), array(mixer.out(mean)))


@pytest.mark.parametrize("name", ["synthesizer_dense_plus", "synthesizer_random_plus"])
def test_plus_nothing_is_attention(name: str) -> None:
    mixer = make("mixer", name, SITE)
    (mixer.to_keys if "dense" in name else mixer.table).data.zero_()
    x = random(B, T, 12)
    near(array(mixer(x, context())), array(attention_like(mixer)(x, context())))


@pytest.mark.parametrize("kind", ["dense", "random"])
def test_alpha_goes_from_attention_to_the_synthesizer(kind: str) -> None:
    mixer = make("mixer", f"synthesizer_{kind}_plus_alpha", SITE)
    x = random(B, T, 12)
    mixer.alpha.data.fill_(-80.0)
    near(array(mixer(x, context())), array(attention_like(mixer)(x, context())))
    alone = make("mixer", f"synthesizer_{kind}", SITE)
    alone.load_state_dict({name: mixer.state_dict()[name] for name in alone.state_dict()})
    mixer.alpha.data.fill_(80.0)
    near(array(mixer(x, context())), array(alone(x, context())))


def test_positions_rotate_the_products_alone() -> None:
    """With rope, dense plus has the synthesized scores of unrotated queries."""
    mixer, rope = make("mixer", "synthesizer_dense_plus", SITE), make("position", "rope", SITE)
    x = random(B, T, 12)
    q, k, v = (mixer.split(linear(x)) for linear in (mixer.q, mixer.k, mixer.v))
    turned_q, turned_k = rope.rotate(q, k, context(rope))
    scores = turned_q @ turned_k.mT * K**-0.5 + q.relu() @ mixer.to_keys[:, :T]
    weights = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -math.inf).softmax(-1)
    near(array(mixer(x, context(rope))), array(mixer.out((weights @ v).transpose(1, 2).flatten(2))))


@pytest.mark.parametrize("case", CASES)
def test_start(case: str) -> None:
    """R, W, R_1, R_2 Glorot-uniform with TensorFlow's fans, b_2 and alpha 0."""
    name, options = CASES[case]
    site = replace(SITE, n_heads=8, d_head=20, max_len=80)
    mixer = registry.make("mixer", Component(name, tuple(options.items())), site)
    mixer.reset_parameters()
    bounds = {"table": math.sqrt(6 / (8 * 160)), "to_keys": math.sqrt(6 / 100)}
    bounds |= dict.fromkeys(("rows", "columns"), math.sqrt(6 / (options.get("rank", 16) * 88)))
    tested = 0
    for key, value in mixer.state_dict().items():
        if key in bounds:
            tested += 1
            assert 0.98 * bounds[key] < value.abs().max() <= bounds[key], key
            assert abs(value.std().item() / (bounds[key] / math.sqrt(3)) - 1) < 0.1
        elif key in ("alpha", "shift"):
            assert not value.any()
    assert tested == 2 if "factorized" in name else tested == 1


def test_fixed_is_the_random_that_is_not_trained() -> None:
    """The same R under the same seed, another under another; saved, and no parameter."""

    def model(seed: int, **options: Any) -> nn.Module:
        arch = parse(
            ArchSpec, {"d_model": 12, "n_heads": 2, "sublayers": {"s": {"name": "synthesizer_random", **options}}}
        )
        return build_model(arch, 11, 16, seed=seed)

    fixed, free, other = model(3, fixed=True), model(3), model(4, fixed=True)
    names = [name for name in fixed.state_dict() if name.endswith("table") and "functions" in name]
    assert names and not any(name in dict(fixed.named_parameters()) for name in names)
    for name in names:
        assert torch.equal(fixed.state_dict()[name], dict(free.named_parameters())[name])
        assert not torch.equal(fixed.state_dict()[name], other.state_dict()[name])


NARANG = replace(SITE, d_model=768, n_heads=12, d_head=64, d_ff=3072, max_len=512, bias=False)
ATTENTION = 4 * 768 * 768
COUNTS = {
    "dense": ATTENTION - 768 * 768 + 64 * 512,
    "dense of the paper": ATTENTION - 768 * 768 + 768 * 512,
    "dense plus": ATTENTION + 64 * 512,
    "dense plus alpha": ATTENTION + 64 * 512 + 1,
    "random": ATTENTION - 2 * 768 * 768 + 12 * 512**2,
    "fixed random": ATTENTION - 2 * 768 * 768,
    "random plus": ATTENTION + 12 * 512**2,
    "random plus alpha": ATTENTION + 12 * 512**2 + 1,
    "factorized": ATTENTION - 2 * 768 * 768 + 32 * 12 * 512,
}
WHOLE = {"random": 270.0, "random plus": 298.4, "factorized": 199.3, "dense plus": 223.6}


@pytest.mark.parametrize("case", COUNTS)
def test_parameters(case: str) -> None:
    """Of a layer at Narang et al.'s sizes, and of their whole models: 222.86 million with attention in 24 places."""
    name, options = CASES[case]
    with torch.device("meta"):
        mixer = registry.make("mixer", Component(name, tuple(options.items())), NARANG)
    found = sum(p.numel() for p in mixer.parameters())
    assert found == COUNTS[case]
    if case in WHOLE:
        assert abs(222.86 + 24 * (found - ATTENTION) / 1e6 - WHOLE[case]) < 0.06


@pytest.mark.parametrize("case", ["dense", "dense plus", "random", "random plus", "factorized"])
def test_flops(case: str) -> None:
    """Per token, over attention: what it leaves out and what it adds; of the scores, only the visible are needed."""
    name, options = CASES[case]
    d, n, heads_, k = 16, 12, 4, 4

    def cost(part: Any) -> Any:
        tree = {"d_model": d, "n_heads": heads_, "depth": 1, "order": "s", "position": "none", "bias": False}
        return count(parse(ArchSpec, {**tree, "sublayers": {"s": part}}), 13, n)

    base, found = cost("attention"), cost({"name": name, **options})
    projection, product = 2 * d * heads_ * k, 2 * n * heads_ * k
    extra = {
        "dense": -projection,
        "dense plus": product,
        "random": -2 * projection - product,
        "random plus": 0,
        "factorized": -2 * projection - product + 32 * heads_ * n,
    }[case]
    assert found.flops_forward - base.flops_forward == pytest.approx(extra)
    in_attend = {"dense": 2, "dense plus": 3, "random": 1, "random plus": 2}.get(case, 1) * product
    in_attend += 32 * heads_ * n * (case == "factorized")
    needed = found.flops_forward - in_attend * (1 - (n + 1) / (2 * n))
    assert found.flops_algorithmic == pytest.approx(needed)


@pytest.mark.parametrize("case", ["random", "random plus"])
def test_dropout(case: str) -> None:
    """On the weights: with values that are 1, every output is what is left of a row of weights, of each sequence."""
    mixer = make("mixer", CASES[case][0], replace(SITE, bias=False, d_model=24), dropout=0.5).train()
    x = torch.ones(4, T, 24).double()
    mixer.v.weight.data.fill_(1 / 24)
    mixer.out.weight.data = torch.eye(24).double()
    torch.manual_seed(0)
    y = mixer(x, context())
    assert {round(each, 9) for each in y[:, 0].unique().tolist()} == {0.0, 2.0} and 0.8 < y.mean() < 1.2
    assert not torch.equal(y[0], y[1])
    near(array(mixer.eval()(x, context())), np.ones((4, T, 24)))


def test_refusals() -> None:
    for name, options, words in (
        ("synthesizer_factorized", {"rank": 0}, "mixer 'synthesizer_factorized': rank 0 must be at least 1"),
        ("synthesizer_random", {"dropout": 1.5}, "mixer 'synthesizer_random': dropout 1.5 must be from 0 to 1"),
    ):
        with pytest.raises(UserError, match=words):
            make("mixer", name, SITE, **options)


class Queried(Bias):
    """A position that multiplies queries."""

    def bias(self, q_BHTK: Tensor, k_BHSK: Tensor, pos_S: Tensor, ctx: Context) -> Tensor:
        return q_BHTK @ self.bias_HTS


def test_positions_that_read_queries_need_some() -> None:
    position = Queried(random(H, K, T))
    position.component = "position/shaw"  # type: ignore[misc]
    x = random(B, T, 12)
    with pytest.raises(UserError, match="position 'shaw' reads queries, and mixer 'synthesizer_random' has none"):
        make("mixer", "synthesizer_random", SITE)(x, context(position))
    assert make("mixer", "synthesizer_dense", SITE)(x, context(position)).isfinite().all()
    for name in ("synthesizer_random", "synthesizer_dense"):
        arch = parse(ArchSpec, {"d_model": 16, "n_heads": 4, "position": "rope", "sublayers": {"s": name}})
        with pytest.raises(UserError, match="position 'rope' has no effect"):
            probe(arch, 13, 12)
