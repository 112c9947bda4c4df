"""Embeddings against loops written from the equations, and against a plain table that holds their product."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from parity import our_model
from reference import SITE, B, T, array, context, make, near, random
from torch import Tensor, nn

from ablate.build import build_model, build_on_meta
from ablate.components.embeddings_adaptive import clusters
from ablate.contracts import Embedding
from ablate.cost import count
from ablate.errors import UserError
from ablate.spec import ArchSpec, parse

BIG = replace(SITE, vocab=23)
TOKENS = torch.randint(0, 23, (B, T), generator=torch.Generator().manual_seed(3))
TOKENS[0, :3] = torch.tensor([0, 1, 22])  # clusters of one token are met too
EVERY = torch.arange(23)[None]
KINDS: dict[str, dict[str, Any]] = {
    "table": {"name": "table"},
    "bert": {"name": "bert"},
    "factorized": {"name": "factorized", "rank": 5},
    "wide": {"name": "factorized", "rank": 14},
    "adaptive": {"name": "adaptive", "cutoffs": [4, 9], "factor": 2},
    "fairseq": {"name": "adaptive", "cutoffs": [4, 9], "factor": 2, "project_first": True},
    "dims": {"name": "adaptive", "cutoffs": [1, 2, 22], "dims": [3, 12, 1, 20]},
}


def embedding_of(kind: str, **options: Any) -> Any:
    settings = {**KINDS[kind], **options}
    return make("embedding", settings.pop("name"), BIG, **settings)


# --- factorized


@pytest.mark.parametrize("scaled", [False, True])
def test_factorized(scaled: bool) -> None:
    embedding = embedding_of("factorized", scaled=scaled)
    A, B_ = array(embedding.table.weight), array(embedding.expand.weight).T
    assert A.shape == (23, 5) and B_.shape == (5, 12)
    assert {name for name, _ in embedding.named_parameters()} == {"table.weight", "expand.weight"}
    found = array(embedding(TOKENS))
    for b, t in np.ndindex(B, T):
        expected = sum(A[TOKENS[b, t], m] * B_[m] for m in range(5)) * (12**0.5 if scaled else 1)
        near(found[b, t], expected)
    near(array(embedding.rows()), A @ B_)  # the tied head does not see the scale, as with a table


# --- adaptive


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("kind", ["adaptive", "fairseq", "dims"])
def test_adaptive(kind: str, scaled: bool) -> None:
    """Token by token: find the cluster, look up, project."""
    embedding = embedding_of(kind, scaled=scaled)
    edges = [0, *KINDS[kind]["cutoffs"], 23]
    dims = KINDS[kind].get("dims", [12, 6, 3])
    assert [table.weight.shape for table in embedding.tables] == [
        (high - low, d) for low, high, d in zip(edges[:-1], edges[1:], dims, strict=True)
    ]
    plain = [isinstance(each, nn.Identity) for each in embedding.expand]
    assert plain == [d == 12 and kind != "fairseq" for d in dims]
    found = array(embedding(EVERY))[0]
    for token in range(23):
        c = max(index for index, edge in enumerate(edges[:-1]) if token >= edge)
        row = array(embedding.tables[c].weight)[token - edges[c]]
        expected = row if plain[c] else array(embedding.expand[c].weight) @ row
        near(found[token], expected * (12**0.5 if scaled else 1))


def test_adaptive_with_one_cluster_is_a_table() -> None:
    one, table = embedding_of("adaptive", cutoffs=[]), embedding_of("table")
    assert [p.shape for p in one.parameters()] == [(23, 12)]
    table.load_state_dict({"table.weight": one.tables[0].weight})
    near(array(one(TOKENS)), array(table(TOKENS)), 0)
    x = random(B, T, 12)
    near(array(one.logits(x)), array(table.logits(x)), 0)


def test_default_clusters() -> None:
    """Narang et al.'s 2500, 6000 and the rest, in proportion; dimensions d / 4^c, one at least."""
    assert clusters(32_128, None, "") == [(0, 2500), (2500, 8500), (8500, 32_128)]
    assert clusters(256, None, "") == [(0, 20), (20, 68), (68, 256)]
    assert clusters(13, None, "") == [(0, 1), (1, 3), (3, 13)]
    for vocab in range(2, 40):
        bounds = clusters(vocab, None, "")
        assert [*range(vocab)] == [each for low, high in bounds for each in range(low, high)]
        assert all(low < high for low, high in bounds)
    embedding = make("embedding", "adaptive", SITE)
    assert [table.weight.shape[1] for table in embedding.tables] == [12, 3, 1]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adaptive", {"cutoffs": [9, 4]}, r"cutoffs \[9, 4\] must rise between 0 and the vocabulary of 23"),
        ("adaptive", {"cutoffs": [4, 4]}, "must rise"),
        ("adaptive", {"cutoffs": [4, 23]}, "must rise"),
        ("adaptive", {"cutoffs": [0]}, "must rise"),
        ("adaptive", {"cutoffs": [4], "dims": [12]}, r"dims \[12\] must be 2 positive numbers"),
        ("adaptive", {"cutoffs": [4], "dims": [12, 0]}, "must be 2 positive numbers"),
        ("adaptive", {"factor": 0}, "factor 0 must be at least 1"),
        ("factorized", {"rank": 0}, "rank 0 must be at least 1"),
    ],
)
def test_refusals(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make("embedding", name, BIG, **options)


# --- every embedding as a table of its products


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_what_is_looked_up_and_scored(kind: str) -> None:
    """Forward and backward, whole and in slices that cut clusters."""
    embedding: Embedding = embedding_of(kind)
    rows = embedding.rows()
    assert rows is not None
    offset = embedding.segments.weight[0] if kind == "bert" else 0.0  # type: ignore[union-attr, index]
    near(array(embedding(EVERY)[0]), array(rows + offset))
    x = random(B, T, 12).requires_grad_()
    for start, stop in ((0, None), (0, 4), (4, 9), (3, 11), (22, 23), (5, None)):
        weigh = random(B, T, len(rows[start:stop]), seed=2)
        parameters = [x, *embedding.parameters()]
        pair = (embedding.logits(x, start, stop), F.linear(x, embedding.rows()[start:stop]))  # type: ignore[index]
        near(array(pair[0]), array(pair[1]))
        found, expected = (
            torch.autograd.grad((each * weigh).sum(), parameters, allow_unused=True, materialize_grads=True)
            for each in pair
        )
        for one, other in zip(found, expected, strict=True):
            near(one, other, 1e-11)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["factorized", "wide", "adaptive", "fairseq", "dims"])
def test_a_model_is_that_of_a_table(kind: str, tied: bool) -> None:
    """The same outputs as a model whose table is the product; the factors' gradients are the table's by the chain
    rule, as an input and, when tied, as an output."""
    tree = {"d_model": 12, "n_heads": 3, "depth": 1, "head": {"name": "softmax", "tied": tied}}
    ours, plain = our_model({**tree, "embedding": KINDS[kind]}, 23, T), our_model(tree, 23, T)
    rows: Tensor = ours.embedding.rows()
    shared = {name: each for name, each in ours.state_dict().items() if not name.startswith("embedding.")}
    plain.load_state_dict({**shared, "embedding.table.weight": rows.detach()})
    near(array(ours.log_probs(TOKENS)), array(plain.log_probs(TOKENS)), 1e-11)
    for model in (ours, plain):
        model.nll(TOKENS, TOKENS.flip(1)).sum().backward()
    factors = list(ours.embedding.parameters())
    expected = torch.autograd.grad(rows, factors, plain.embedding.table.weight.grad)
    for factor, gradient in zip(factors, expected, strict=True):
        assert gradient.abs().max() > 1e-3
        near(factor.grad, gradient, 1e-10)


# --- bert


@pytest.mark.parametrize("segments", [0, 1, 2])
@pytest.mark.parametrize("position", ["none", "learned"])
def test_bert_normalises_the_sum(segments: int, position: str) -> None:
    embedding = {"name": "bert", "segments": segments, "scaled": segments == 2}
    tree = {"d_model": 12, "n_heads": 3, "depth": 1, "embedding": embedding, "position": position}
    model = our_model(tree, 23, T)
    weights = {name: array(each) for name, each in model.named_parameters()}
    found = array(model.embed(TOKENS, context(model.position)))
    for b, t in np.ndindex(B, T):
        x = weights["embedding.table.weight"][TOKENS[b, t]] * (12**0.5 if segments == 2 else 1)
        x = x + (weights["embedding.segments.weight"][0] if segments else 0)
        x = x + (weights["position.table"][t] if position == "learned" else 0)
        x = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
        near(found[b, t], x * weights["closing.gain"] + weights["closing.shift"])


def test_towers_share_a_table_and_not_a_norm() -> None:
    tree = {"d_model": 12, "n_heads": 3, "depth": 1, "encoder": True, "embedding": "bert"}
    model = our_model(tree, 23, T)
    names = [name for name, _ in model.named_parameters() if "embedding" in name or "closing" in name]
    assert names == [
        "decoder.embedding.table.weight",
        "decoder.embedding.segments.weight",
        "decoder.closing.gain",
        "decoder.closing.shift",
        "encoder.closing.gain",
        "encoder.closing.shift",
    ]


# --- initial values


@pytest.mark.parametrize(("init", "deviation"), [("t5", 1.0), ("lecun", 96**-0.5)])
def test_a_product_starts_as_a_table_does(init: str, deviation: float) -> None:
    """And under `t5` each factor with deviation m^-1/4, as the mesh code of Narang et al. draws both."""
    tree = {"d_model": 96, "n_heads": 4, "depth": 1, "init": init, "head": {"name": "softmax", "tied": False}}
    for embedding in (
        {"name": "factorized", "rank": 48},
        {"name": "adaptive", "cutoffs": [500, 1500], "dims": [96, 48, 64]},
        {"name": "adaptive", "cutoffs": [500, 1500], "dims": [96, 48, 64], "project_first": True},
    ):
        made = build_model(parse(ArchSpec, {**tree, "embedding": embedding}), 3000, 4).embedding
        for low, high in ((0, 500), (500, 1500), (1500, 3000)):
            assert abs(made.rows()[low:high].std().item() / deviation - 1) < 0.05
        if init == "t5" and embedding["name"] == "factorized":
            for weight in (made.table.weight, made.expand.weight):
                assert abs(weight.std().item() / 48**-0.25 - 1) < 0.05
        if init == "t5" and embedding["name"] == "adaptive":
            assert abs(made.tables[1].weight.std().item() / 48**-0.25 - 1) < 0.05
            assert abs(made.expand[2].weight.std().item() / 64**-0.25 - 1) < 0.05


# --- counts: section 14 of the specification, without norms and positions

FACTORIZED = {"name": "factorized", "rank": 128}
CUTS = {"name": "adaptive", "cutoffs": [2500, 8500], "dims": [768, 256, 128]}
NARROW = {**CUTS, "dims": [768, 256, 64]}
SPLIT = {"name": "adaptive", "cutoffs": [2500, 8500, 32_000], "dims": [768, 256, 128, 128]}
FREE = {"name": "softmax", "tied": False}
ADAPTIVE = {"name": "adaptive_softmax", "tied": True}
MOS = {"name": "mixture_of_softmaxes", "softmaxes": 15}
V, D = 32_128, 768
BLOCKS = 12 * (4 * D * D + 2 * D * 3072) + 12 * (8 * D * D + 2 * D * 3072)
PRODUCTS = 6000 * 256 + 256 * D + 23_628 * 128 + 128 * D
ROWS: dict[str, tuple[dict[str, Any], int, float]] = {
    "tied_all": ({}, V * D, 222.86),
    "untied": ({"share_embeddings": False, "head": FREE}, 3 * V * D, 272.20),
    "tied_enc_dec_in": ({"head": FREE}, 2 * V * D, 247.53),
    "tied_dec_in_out": ({"share_embeddings": False}, 2 * V * D, 247.53),
    "factorized": ({"embedding": FACTORIZED, "head": FREE}, V * 128 + 128 * D + V * D, 227.07),
    "factorized_shared": ({"embedding": FACTORIZED}, V * 128 + 128 * D, 202.39),
    "adaptive_in": ({"embedding": CUTS}, 2500 * D + PRODUCTS, 204.96),
    "adaptive_in, 64": ({"embedding": NARROW}, 2500 * D + PRODUCTS - 64 * (23_628 + D), 203.39),
    "adaptive_softmax": ({"embedding": SPLIT, "head": ADAPTIVE}, 2500 * D + PRODUCTS + 128 * D + 3 * D, 205.06),
    "adaptive_softmax_noproj": (
        {"head": {**ADAPTIVE, "cutoffs": [2500, 8500, 32_000], "project": False}},
        V * D + 3 * D,
        222.86,
    ),
    "mos": ({"head": MOS}, V * D + 15 * D + 15 * D * D, 231.71),
}


@pytest.mark.parametrize("row", ROWS)
def test_parameters(row: str) -> None:
    settings, embeddings, millions = ROWS[row]
    tree = {"d_model": D, "n_heads": 12, "depth": 12, "encoder": True, "bias": False, "norm": "none"}
    model = build_on_meta(parse(ArchSpec, {**tree, "position": "none", "init": "t5", **settings}), V, 16)
    total = sum(p.numel() for p in model.parameters())
    assert total == BLOCKS + embeddings
    assert abs(total / 1e6 - millions) < 0.006


@pytest.mark.parametrize(("embedding", "millions"), [("table", 65.86), (FACTORIZED, 45.40)])
def test_parameters_with_shared_blocks(embedding: Any, millions: float) -> None:
    tree = {"d_model": D, "n_heads": 12, "depth": 12, "encoder": True, "bias": False, "norm": "none"}
    arch = parse(ArchSpec, {**tree, "position": "none", "sharing": "all", "embedding": embedding, "head": FREE})
    assert abs(sum(p.numel() for p in build_on_meta(arch, V, 16).parameters()) / 1e6 - millions) < 0.006


def test_flops() -> None:
    """A token looked up is m d products; a tied head is m d + m V, or that of each cluster."""

    def flops(**settings: Any) -> tuple[float, float]:
        tree = {"d_model": 24, "n_heads": 3, "depth": 1, "norm": "none", "position": "none", **settings}
        cost = count(parse(ArchSpec, tree), 100, 8)
        return cost.flops_forward, cost.flops_algorithmic

    plain, factorized = flops(), flops(embedding={"name": "factorized", "rank": 6})
    assert factorized[0] - plain[0] == 2 * (6 * 24 + 24 * 6 + 6 * 100 - 24 * 100)
    adaptive = flops(embedding={"name": "adaptive", "cutoffs": [10, 40], "dims": [24, 6, 4]})
    head = 24 * 10 + 6 * (24 + 30) + 4 * (24 + 60)
    assert adaptive[0] - plain[0] == 2 * ((6 + 4) * 24 + head - 24 * 100)
    assert adaptive[1] - plain[1] == 2 * (6 * 24 + head - 24 * 100)  # one cluster is needed, the dearest
