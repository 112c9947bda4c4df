"""The GPT-2 and Llama presets are the published models: transformers' implementations on copied weights.

Logits, loss and every gradient. GPT-2 computes in the type of its parameters, float64 here. Llama's norm and its
table of angles are float32 whatever the type: it is compared once as it is, to float32's rounding, and once with
these two replaced by float64 ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

from ablate.build import build_model, build_on_meta  # noqa: E402
from ablate.contracts import Cache  # noqa: E402
from ablate.models import TokenModel  # noqa: E402
from ablate.overlays import overlays  # noqa: E402
from ablate.spec import ArchSpec, parse  # noqa: E402

VOCAB, LENGTH = 37, 24
TOKENS = torch.randint(0, VOCAB, (3, 20), generator=torch.Generator().manual_seed(0))
EXACT = 1e-12  # float64, three layers and back
FLOAT32 = 5e-6  # relative to the largest entry: some dozen roundings to 24 bits, of norms and of angles up to 20

Mapped = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


def preset(name: str, **sizes: int) -> ArchSpec:
    """The preset's architecture, some sizes replaced."""
    settings = {path.split(".")[1]: each for path, each in overlays()[name].settings.items() if path[:4] == "arch"}
    return parse(ArchSpec, {**settings, **sizes})


def gpt2_names(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors under transformers' names: matrices transposed, queries, keys and values in one."""
    theirs = {
        "transformer.wte.weight": ours["embedding.table.weight"],
        "transformer.wpe.weight": ours["position.table"],
        "transformer.ln_f.weight": ours["tower.final_norm.gain"],
        "transformer.ln_f.bias": ours["tower.final_norm.shift"],
    }
    for i in range(3):
        attention, ffn, norm = f"tower.functions.{i}.0", f"tower.functions.{i}.1", f"tower.residuals.{i}"
        block = f"transformer.h.{i}"
        theirs[f"{block}.attn.c_attn.weight"] = torch.cat([ours[f"{attention}.{each}.weight"] for each in "qkv"]).T
        theirs[f"{block}.attn.c_attn.bias"] = torch.cat([ours[f"{attention}.{each}.bias"] for each in "qkv"])
        for name, linear in (
            ("attn.c_proj", f"{attention}.out"),
            ("mlp.c_fc", f"{ffn}.up"),
            ("mlp.c_proj", f"{ffn}.down"),
        ):
            theirs[f"{block}.{name}.weight"] = ours[f"{linear}.weight"].T
            theirs[f"{block}.{name}.bias"] = ours[f"{linear}.bias"]
        for place in (0, 1):
            theirs[f"{block}.ln_{place + 1}.weight"] = ours[f"{norm}.{place}.norm.gain"]
            theirs[f"{block}.ln_{place + 1}.bias"] = ours[f"{norm}.{place}.norm.shift"]
    return theirs


def llama_names(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    theirs = {
        "model.embed_tokens.weight": ours["embedding.table.weight"],
        "model.norm.weight": ours["tower.final_norm.gain"],
        "lm_head.weight": ours["head.project.weight"],
    }
    for i in range(3):
        attention, ffn, norm = f"tower.functions.{i}.0", f"tower.functions.{i}.1", f"tower.residuals.{i}"
        block = f"model.layers.{i}"
        for name, linear in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "out")):
            theirs[f"{block}.self_attn.{name}_proj.weight"] = ours[f"{attention}.{linear}.weight"]
        for name in ("gate", "up", "down"):
            theirs[f"{block}.mlp.{name}_proj.weight"] = ours[f"{ffn}.{name}.weight"]
        theirs[f"{block}.input_layernorm.weight"] = ours[f"{norm}.0.norm.gain"]
        theirs[f"{block}.post_attention_layernorm.weight"] = ours[f"{norm}.1.norm.gain"]
    return theirs


def our_model(arch: ArchSpec) -> TokenModel:
    """In float64, every parameter moved away from its initial value."""
    model = build_model(arch, VOCAB, LENGTH).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def with_weights(theirs: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """Their model in float64 with these weights: all of them, and nothing else."""
    theirs.double().eval()
    assert dict(theirs.named_parameters()).keys() == weights.keys()
    theirs.load_state_dict({name: weight.detach() for name, weight in weights.items()}, strict=False)
    return theirs


def gpt2() -> tuple[TokenModel, nn.Module, Mapped]:
    ours = our_model(preset("gpt2", d_model=24, n_heads=3, d_ff=96, depth=3))
    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_positions=LENGTH, n_embd=24, n_layer=3, n_head=3, attn_implementation="eager"
    )
    return (
        ours,
        with_weights(transformers.GPT2LMHeadModel(config), gpt2_names(dict(ours.named_parameters()))),
        gpt2_names,
    )


def llama() -> tuple[TokenModel, nn.Module, Mapped]:
    ours = our_model(preset("llama2", d_model=24, n_heads=3, d_ff=40, depth=3))
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        max_position_embeddings=LENGTH,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=40,
        rms_norm_eps=1e-5,
        attn_implementation="sdpa",  # the eager one takes its softmax in float32
    )
    return (
        ours,
        with_weights(transformers.LlamaForCausalLM(config), llama_names(dict(ours.named_parameters()))),
        llama_names,
    )


class Angles(nn.Module):
    """Llama's table of angles, in float64."""

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        rate = 10000.0 ** -(torch.arange(0, 8, 2, dtype=torch.float64) / 8)
        angle = position_ids[..., None] * torch.cat((rate, rate))
        return angle.cos(), angle.sin()


def llama_in_float64() -> tuple[TokenModel, nn.Module, Mapped]:
    ours, theirs, names = llama()
    cos, sin = Angles()(ours.position.cos, torch.arange(LENGTH))
    ours.position.cos.copy_(cos)
    ours.position.sin.copy_(torch.cat((-sin[:, :4], sin[:, 4:]), -1))
    theirs.model.rotary_emb = Angles()
    for name, module in list(theirs.named_modules()):
        if type(module).__name__ == "LlamaRMSNorm":
            norm = nn.RMSNorm(24, eps=module.variance_epsilon, dtype=torch.float64)
            norm.weight = module.weight
            theirs.set_submodule(name, norm)
    return ours, theirs, names


MODELS = {"gpt2": (gpt2, EXACT), "llama": (llama, FLOAT32), "llama in float64": (llama_in_float64, EXACT)}


def error(one: Tensor, other: Tensor) -> float:
    """The largest difference, relative to the largest entry."""
    assert one.shape == other.shape and other.dtype == torch.float64
    return ((one - other).abs().max() / other.abs().max()).item()


@pytest.mark.parametrize("name", MODELS)
def test_logits_loss_and_gradients(name: str) -> None:
    make, tolerance = MODELS[name]
    ours, theirs, names = make()
    logits = theirs(TOKENS[:, :-1]).logits
    assert error(ours.head.logits(ours(TOKENS[:, :-1])[0]), logits) < tolerance

    loss = ours.nll(TOKENS[:, :-1], TOKENS[:, 1:]).mean()
    expected = F.cross_entropy(logits.flatten(0, 1), TOKENS[:, 1:].flatten())
    assert abs(loss.item() - expected.item()) < tolerance
    own = theirs(TOKENS, labels=TOKENS).loss  # their loss shifts the labels, and takes float32 logits
    assert abs(loss.item() - own.item()) < 1e-5

    loss.backward()
    expected.backward()
    gradients = names({key: p.grad for key, p in ours.named_parameters()})
    for key, p in theirs.named_parameters():
        assert p.grad.abs().max() > 1e-5, key
        assert error(gradients[key], p.grad) < tolerance, key


@pytest.mark.parametrize("name", MODELS)
def test_decoding(name: str) -> None:
    """Six tokens, then one by one, each with its own cache."""
    make, tolerance = MODELS[name]
    ours, theirs, _ = make()
    cache, past = Cache(), transformers.DynamicCache()
    with torch.no_grad():
        for piece in TOKENS.split([6, *[1] * 14], 1):
            expected = theirs(piece, past_key_values=past, use_cache=True).logits
            assert error(ours.head.logits(ours(piece, cache)[0]), expected) < tolerance
    assert cache.length == past.get_seq_length() == 20


@pytest.mark.parametrize(
    ("name", "published"),
    [("gpt2", 124_439_808), ("llama2", 6_738_415_616)],  # as the released models are counted
)
def test_parameters_at_full_size(name: str, published: int) -> None:
    at = overlays()[name].at
    assert at is not None
    ours = build_on_meta(preset(name), at["vocab"], at["seq_len"])
    assert sum(p.numel() for p in ours.parameters()) == published
    with torch.device("meta"):
        theirs = {
            "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config()),
            "llama2": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(max_position_embeddings=4096)),
        }[name]()
    assert sum(p.numel() for p in theirs.parameters()) == published
