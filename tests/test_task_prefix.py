"""Prefix language modelling: what sees what, with and without a prefix; who refuses one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from runs import spec, train
from test_task_mlm import opened, small
from torch import Tensor

from ablate import registry
from ablate.build import build_model
from ablate.components.mixers.attention import Attention
from ablate.contracts import Cache, Context, Position
from ablate.errors import UserError
from ablate.registry import catalogue
from ablate.run.ledger import Ledger
from ablate.spec import ArchSpec, parse

T, VOCAB = 12, 31
LENGTHS = (1, 5, T)
SEEING = {
    "attention", "grouped_query", "additive", "concat", "gaussian", "bilinear", "weighted",
}  # fmt: skip


def model_of(mixer: str = "attention", position: str = "none", *, causal: bool = True, prefix: bool = True) -> Any:
    """A model in float64 whose values no initialisation hides."""
    tree = {"d_model": 16, "n_heads": 4, "depth": 2, "position": position, "sublayers": {"s": mixer}}
    made = build_model(parse(ArchSpec, tree), VOCAB, T, causal=causal, **({"prefix": True} if prefix else {}))
    draw = torch.Generator().manual_seed(1)
    for parameter in made.double().eval().parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
    return made


def tokens(rows: int = len(LENGTHS)) -> Tensor:
    return torch.randint(0, VOCAB, (rows, T), generator=torch.Generator().manual_seed(0))


def marked(*lengths: int) -> Tensor:
    return torch.arange(T)[None] < torch.tensor(lengths)[:, None]


def reads(model: Any, x_BT: Tensor, prefix_BT: Tensor) -> Tensor:
    """Which outputs move when a token changes, (B, T, S)."""
    moved = torch.zeros(len(x_BT), T, T, dtype=torch.bool)
    with torch.no_grad():
        before = model.log_probs(x_BT, prefix_BT=prefix_BT)
        for s in range(T):
            changed = x_BT.clone()
            changed[:, s] = (changed[:, s] + 1) % VOCAB
            moved[:, :, s] = (model.log_probs(changed, prefix_BT=prefix_BT) - before).abs().amax(-1) > 1e-9
    return moved


@pytest.mark.parametrize("mixer", sorted(SEEING))
def test_every_query_sees_the_prefix_and_its_past_and_nothing_else(mixer: str) -> None:
    position = "rope" if mixer in ("attention", "grouped_query") else "learned"
    moved = reads(model_of(mixer, position), tokens(), marked(*LENGTHS))
    for row, length in enumerate(LENGTHS):
        for t in range(T):
            for s in range(T):
                assert moved[row, t, s] == (s <= t or s < length), (mixer, length, t, s)


def test_all_other_mixers_refuse_by_name() -> None:
    refused = set()
    for entry in catalogue("mixer"):
        if entry.form == "pair" or not entry.causal or entry.name in SEEING:
            continue
        with pytest.raises(UserError, match=f"mixer '{entry.name}' is not known to see a prefix"):
            model_of(entry.name)
        refused.add(entry.name)
    assert {"sliding_window", "longformer", "bigbird", "lstm", "fixup_attention", "rsa"} <= refused


def test_the_outputs_are_those_of_attention_as_it_is_written() -> None:
    model = model_of()
    attention: Attention = next(module for module in model.modules() if isinstance(module, Attention))
    x_BTD = torch.randn(2, T, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    site_position = Position(None)  # type: ignore[arg-type]
    ctx = Context(site_position, torch.arange(T), prefix_BT=marked(4, 9))
    found = attention(x_BTD, ctx)
    for row, length in enumerate((4, 9)):
        heads = []
        for head in range(4):
            rows = slice(4 * head, 4 * head + 4)
            q, k, v = (
                x_BTD[row] @ each.weight[rows].T + each.bias[rows] for each in (attention.q, attention.k, attention.v)
            )
            y_TK = torch.zeros(T, 4, dtype=torch.float64)
            for t in range(T):
                keys = [s for s in range(T) if s <= t or s < length]
                weights = torch.stack([q[t] @ k[s] / 2 for s in keys]).softmax(0)
                y_TK[t] = sum(w * v[s] for w, s in zip(weights, keys, strict=True))
            heads.append(y_TK)
        assert (attention.out(torch.cat(heads, 1)) - found[row]).abs().max() < 1e-12


@pytest.mark.parametrize("position", ["none", "learned", "rope", "alibi", "t5", "shaw", "sinusoidal"])
def test_between_a_causal_model_and_one_that_sees_both_sides(position: str) -> None:
    """A prefix of all tokens makes an encoder; of one token, a causal model. Distances go both ways."""
    model, both = model_of("attention", position), model_of("attention", position, causal=False, prefix=False)
    both.load_state_dict(model.state_dict())
    with torch.no_grad():
        whole = model.log_probs(tokens(), prefix_BT=marked(T, T, T))
        assert (whole - both.log_probs(tokens())).abs().max() < 1e-9
        one, none = model.log_probs(tokens(), prefix_BT=marked(1, 1, 1)), model.log_probs(tokens())
        assert (one - none).abs().max() < 1e-9 < (whole - none).abs().max()


def test_padding_behind_a_prefix_does_not_leak() -> None:
    model, x_BT = model_of(), tokens(2)
    valid = torch.arange(T)[None] < torch.tensor([[T], [8]])
    with torch.no_grad():
        padded = model.log_probs(x_BT, valid_BT=valid, prefix_BT=marked(3, 5))
        alone = model.log_probs(x_BT[1:, :8], prefix_BT=marked(5)[:, :8])
    assert (padded[1, :8] - alone[0]).abs().max() < 1e-9


def test_decoding_goes_on_behind_a_prefix() -> None:
    model, x_BT, cache = model_of("grouped_query", "rope"), tokens(2), Cache()
    with torch.no_grad():
        full = model.log_probs(x_BT, prefix_BT=marked(5, 5))
        steps = [model.log_probs(x_BT[:, :5], cache, prefix_BT=marked(5, 5)[:, :5])]
        steps += [model.log_probs(x_BT[:, t : t + 1], cache) for t in range(5, T)]
        assert (torch.cat(steps, 1) - full).abs().max() < 1e-9
        with pytest.raises(UserError, match="a prefix is read in one pass"):
            model.log_probs(x_BT[:, :1], Cache(length=5, states=dict(cache.states)), prefix_BT=marked(5, 5)[:, :1])


def test_without_a_prefix_the_causal_kernel_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[tuple[bool, bool]] = []
    plain = F.scaled_dot_product_attention

    def spy(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *rest: Any, **named: Any) -> Tensor:
        used.append((mask is None, named["is_causal"]))
        return plain(q, k, v, mask, *rest, **named)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    with torch.no_grad():
        for prefix in (True, False):
            model_of(prefix=prefix).log_probs(tokens())
        model_of().log_probs(tokens(), prefix_BT=marked(*LENGTHS))
    assert used == [(True, True)] * 4 + [(False, False)] * 2


def test_who_has_no_place_for_a_prefix() -> None:
    with pytest.raises(UserError, match="not built to see a prefix"):
        model_of(prefix=False).log_probs(tokens(), prefix_BT=marked(*LENGTHS))
    for tree, message in (
        ({"stack": "funnel_causal", "depth": 2}, "stack 'funnel_causal' cannot see a prefix"),
        ({"model": "nnlm"}, "model 'nnlm' has no prefix"),
        ({"encoder": True}, "a model of form pair has no prefix"),
        ({"position": "music"}, "'music' is for causal models"),
    ):
        with pytest.raises(UserError, match=message):
            build_model(parse(ArchSpec, {"d_model": 16, "n_heads": 2, **tree}), VOCAB, T, prefix=True)


def test_a_plugin_with_a_mask_of_its_own_is_refused() -> None:
    class Own(Attention):
        def allowed(self, pos_T: Tensor, pos_S: Tensor) -> Tensor | None:
            return pos_S[None] >= pos_T[:, None] - 2

    class Scores(Attention):
        def scores(self, q_BHTK: Tensor, k_BHSK: Tensor) -> Tensor:
            return super().scores(q_BHTK, k_BHSK) / 2

    attention = next(module for module in model_of().modules() if isinstance(module, Attention))
    seeing = []
    for kind in (Attention, Own, Scores):
        attention.__class__ = kind
        seeing.append(attention.sees_prefix())
    assert seeing == [True, False, True]


def test_predictions_behind_the_prefix_count(token_cache: Path) -> None:
    task = opened(token_cache, "prefix_lm")
    batch = task.batches(small(), 0)[1]
    prefix, counts = batch.marks["prefix_BT"], batch.counts
    assert counts is not None and torch.equal(batch.inputs[0][:, 1:], batch.targets[:, :-1])
    for row in range(len(batch)):
        length = int(prefix[row].sum())
        assert length >= 1 and prefix[row, :length].all()
        assert counts[row].tolist() == [place >= length - 1 for place in range(32)]
    again = opened(token_cache, "prefix_lm").batches(small(), 0)
    assert torch.equal(again[1].marks["prefix_BT"], prefix)
    assert not torch.equal(again[2].marks["prefix_BT"], prefix)


def test_lengths_are_drawn_evenly(token_cache: Path) -> None:
    for options, low, high in (({}, 1, 32), ({"shortest": 4, "longest": 7}, 4, 7)):
        batches = opened(token_cache, {"name": "prefix_lm", **options}).batches(small(), 0)
        lengths = torch.cat([batches[step].marks["prefix_BT"].sum(1) for step in range(30)])
        frequency = torch.bincount(lengths, minlength=high + 1)[low:].double()
        assert lengths.min() == low and lengths.max() == high
        assert (frequency - 3000 / len(frequency)).abs().max() < 4.5 * math.sqrt(3000 / len(frequency))


def test_it_trains_and_refuses_when_it_is_planned(ledger: Ledger) -> None:
    record = train(ledger, spec({"data.task": "prefix_lm", "arch.position": "t5"})).record()
    assert record is not None and record["status"] == "finished", record
    assert {"loss", "perplexity", "bits_per_byte", "test_loss"} <= set(record["metrics"])
    refused = train(ledger, spec({"data.task": "prefix_lm", "arch.sublayers": {"s": "lstm"}})).record()
    assert refused is not None and "mixer 'lstm' is not known to see a prefix" in refused["error"]


def test_options_that_cannot_be(token_cache: Path) -> None:
    for options, message in (
        ({"shortest": 0}, "shortest 0 must be at least 1"),
        ({"shortest": 5, "longest": 4}, "longest 4 must be at least 5"),
        ({"longest": 33}, "a prefix of 33 tokens is longer than seq_len 32"),
    ):
        with pytest.raises(UserError, match=message):
            opened(token_cache, {"name": "prefix_lm", **options})
    assert registry.find("task", "prefix_lm").form == "tokens"
