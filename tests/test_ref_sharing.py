"""Sharing against ALBERT's own layers, against towers with equal weights, and against formulas of the parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from reference import SITE, B, T, array, context, jitter, make, near, random
from torch import Tensor

from ablate import registry
from ablate.build import build_model, build_on_meta
from ablate.contracts import Site
from ablate.cost import params_only
from ablate.errors import UserError
from ablate.spec import ArchSpec, parse

TOKENS = torch.randint(0, 11, (B, T), generator=torch.Generator().manual_seed(3))


def arch_of(**settings: Any) -> ArchSpec:
    return parse(ArchSpec, {"d_model": 12, "n_heads": 2, "d_ff": 20, "depth": 3, **settings})


def model_of(*, causal: bool = True, **settings: Any) -> Any:
    model = build_model(arch_of(**settings), 11, 16, causal=causal, classes=5).double().eval()
    jitter(model, seed=6)
    return model


def deep(layers: int, **where: Any) -> Site:
    return Site(**{**vars(SITE), "n_layers": layers, **where})


# --- who borrows from whom


def test_groups_are_albert_s() -> None:
    """HF's int(l / (L / groups)), wherever its division does not round up to the next integer."""
    for layers in range(1, 25):
        for groups in range(1, layers + 1):
            functions = make("sharing", "groups", groups=groups).functions(deep(layers))
            group_of = [layer * groups // layers for layer in range(layers)]
            theirs = [int(layer / (layers / groups)) for layer in range(layers)]
            rounded = [n for n, (one, other) in enumerate(zip(group_of, theirs, strict=True)) if one != other]
            assert all((layer * groups) % layers == 0 for layer in rounded)
            assert functions == [group_of.index(group) for group in group_of]
            assert len(set(functions)) == groups and functions == sorted(functions)


def test_the_ends_of_groups() -> None:
    for layers in (1, 3, 12):
        site = deep(layers)
        one, each = make("sharing", "groups", groups=1), make("sharing", "groups", groups=layers)
        assert one.functions(site) == make("sharing", "all").functions(site) == [0] * layers
        assert each.functions(site) == make("sharing", "none").functions(site) == list(range(layers))
    assert make("sharing", "groups", groups=2).functions(deep(5)) == [0, 0, 0, 3, 3]
    assert make("sharing", "groups").groups == 2


@pytest.mark.parametrize(("name", "groups"), [("encoder", 0), ("decoder", 0), ("groups", 2)])
def test_norms_may_stay(name: str, groups: int) -> None:
    options = {"groups": groups} if groups else {}
    tower = "only" if groups else name
    shares, keeps = (make("sharing", name, norms=norms, **options) for norms in (True, False))
    site = deep(4, tower=tower)
    assert (
        shares.functions(site)
        == keeps.functions(site)
        == shares.residuals(site)
        == ([0, 0, 2, 2] if groups else [0] * 4)
    )
    assert keeps.residuals(site) == [0, 1, 2, 3]
    if not groups:
        other = deep(4, tower="decoder" if name == "encoder" else "encoder")
        assert shares.functions(other) == shares.residuals(other) == [0, 1, 2, 3]


def test_what_sharing_refuses() -> None:
    with pytest.raises(UserError, match="groups 4 must be at most the 3 layers"):
        model_of(sharing={"name": "groups", "groups": 4})
    with pytest.raises(UserError, match="groups 0 must be at least 1"):
        model_of(sharing={"name": "groups", "groups": 0})
    for name in ("encoder", "decoder"):
        with pytest.raises(UserError, match=f"sharing '{name}' is for an encoder-decoder"):
            model_of(sharing=name)
        assert registry.find("sharing", name).form == "pair"


# --- ALBERT


@pytest.mark.parametrize(("depth", "groups"), [(3, 1), (3, 2), (4, 2), (5, 3)])
def test_a_shared_tower_is_albert_s(depth: int, groups: int) -> None:
    """AlbertTransformer behind an identity in place of its mapping of embeddings: outputs and summed gradients."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.albert.modeling_albert import AlbertTransformer

    sharing = "all" if groups == 1 else {"name": "groups", "groups": groups}
    norm = {"name": "layernorm", "eps": 1e-12}
    model = model_of(
        sharing=sharing, depth=depth, residual="post", norm=norm, causal=False, head="classify", position="none"
    )
    config = transformers.AlbertConfig(
        hidden_size=12,
        embedding_size=12,
        num_attention_heads=2,
        intermediate_size=20,
        num_hidden_layers=depth,
        num_hidden_groups=groups,
        hidden_act="gelu",
        attn_implementation="eager",
    )
    theirs = AlbertTransformer(config).double().eval()
    assert len(model.tower.functions) == len(model.tower.residuals) == groups
    state: dict[str, Tensor] = {
        "embedding_hidden_mapping_in.weight": torch.eye(12, dtype=torch.float64),
        "embedding_hidden_mapping_in.bias": torch.zeros(12, dtype=torch.float64),
    }
    linears = {"attention.query": "0.q", "attention.key": "0.k", "attention.value": "0.v", "attention.dense": "0.out"}
    linears |= {"ffn": "1.up", "ffn_output": "1.down"}
    norms = {"attention.LayerNorm": "0", "full_layer_layer_norm": "1"}
    named = dict(model.tower.named_parameters())
    ours_of: dict[str, Tensor] = {}
    for group, owner in enumerate(model.tower.functions):
        layer = f"albert_layer_groups.{group}.albert_layers.0"
        for name, own in linears.items():
            for part in ("weight", "bias"):
                ours_of[f"{layer}.{name}.{part}"] = named[f"functions.{owner}.{own}.{part}"]
        for name, place in norms.items():
            for part, own in (("weight", "gain"), ("bias", "shift")):
                ours_of[f"{layer}.{name}.{part}"] = named[f"residuals.{owner}.{place}.norm.{own}"]
    theirs.load_state_dict(state | {name: p.detach() for name, p in ours_of.items()})
    x = random(B, T, 12)
    y, y2 = model.tower(x, context(model.position)), theirs(x).last_hidden_state
    near(array(y), array(y2), 1e-10)
    weights = random(B, T, 12, seed=2)
    (y * weights).sum().backward()
    (y2 * weights).sum().backward()
    for name, p in theirs.named_parameters():
        if name in ours_of:
            near(ours_of[name].grad, p.grad, 1e-9)
    assert len(ours_of) == len(named)


# --- encoder-decoders


@pytest.mark.parametrize("name", ["encoder", "decoder"])
@pytest.mark.parametrize("norms", [True, False])
def test_one_shared_tower(name: str, norms: bool) -> None:
    """A shared tower is the unshared one with equal weights, gradients summed; the other tower shares nothing."""
    shared = model_of(encoder=True, sharing={"name": name, "norms": norms})
    free = model_of(encoder=True)

    def origin(parameter: str) -> str:
        """The shared model's parameter behind one of the free model's."""
        side, *rest = parameter.split(".")
        if side == name and rest[0] == "tower" and rest[1] in ("functions", "residuals"):
            if rest[1] == "functions" or norms:
                rest[2] = "0"
        return ".".join([side, *rest])

    state = shared.state_dict()
    free.load_state_dict({each: state[origin(each)] for each in free.state_dict()})
    near(array(shared.log_probs(TOKENS, TOKENS.flip(1))), array(free.log_probs(TOKENS, TOKENS.flip(1))), 1e-11)
    for model in (shared, free):
        model.nll(TOKENS, TOKENS.flip(1), TOKENS).sum().backward()
    summed: dict[str, Tensor] = {}
    for each, p in free.named_parameters():
        summed[origin(each)] = summed.get(origin(each), torch.zeros_like(p)) + p.grad
    assert summed.keys() == dict(shared.named_parameters()).keys() and len(state) == len(summed)
    for each, p in shared.named_parameters():
        near(p.grad, summed[each], 1e-9)


V, D, F_, INNER, L = 32128, 768, 3072, 768, 12
BLOCK = 4 * D * INNER + 2 * D * F_  # attention and ffn
WITH_CROSS = BLOCK + 4 * D * INNER


@pytest.mark.parametrize(
    ("sharing", "tied", "formula", "published"),
    [
        ("none", True, V * D + L * (BLOCK + WITH_CROSS), 223),
        ("all", False, 2 * V * D + BLOCK + WITH_CROSS, 65),
        ("encoder", False, 2 * V * D + BLOCK + L * WITH_CROSS, 170),
        ("decoder", False, 2 * V * D + L * BLOCK + WITH_CROSS, 144),
        ({"name": "groups", "groups": 3}, True, V * D + 3 * (BLOCK + WITH_CROSS), None),
    ],
)
def test_parameters_at_the_paper_s_size(sharing: Any, tied: bool, formula: int, published: int | None) -> None:
    """Narang et al. 2021, table 1, without norms and biases; their numbers are rounded to a million."""
    sizes = {"d_model": D, "n_heads": 12, "d_ff": F_, "depth": L, "encoder": True, "bias": False}
    head = {"name": "softmax", "tied": tied}
    arch = arch_of(**sizes, position="none", norm="none", sharing=sharing, head=head)
    assert params_only(arch, V, 8) == formula
    assert published is None or abs(formula / 1e6 - published) <= 1.2


def test_parameters_of_shared_norms() -> None:
    """Two norms to an encoder's layer and three to a decoder's, each 2 d_model: kept or shared."""
    counts = {
        (name, norms): sum(
            p.numel()
            for p in build_on_meta(arch_of(encoder=True, sharing={"name": name, "norms": norms}), 11, 16).parameters()
        )
        for name in ("encoder", "decoder")
        for norms in (True, False)
    }
    assert counts["encoder", False] - counts["encoder", True] == 2 * 2 * 24
    assert counts["decoder", False] - counts["decoder", True] == 2 * 3 * 24
