"""T5 v1.0 and v1.1 are what their slots say: transformers' implementation on copied weights, decoding included.

In float64: their norm squares in float32 whatever the type. It is replaced by torch's, and once left as it is.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from parity import EXACT, Weights, error, layer, norm, our_model, same_model, with_weights
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

from ablate.build import build_model, build_on_meta  # noqa: E402
from ablate.contracts import Cache  # noqa: E402
from ablate.spec import ArchSpec, parse  # noqa: E402

VOCAB, LENGTH = 23, 18
FLOAT32 = 5e-6  # relative to the largest entry: two dozen roundings to 24 bits
SIZES = {"d_model": 24, "n_heads": 3, "d_head": 6, "d_ff": 40, "depth": 2}
VALID = torch.arange(16)[None] < torch.tensor([16, 7, 11])[:, None]

T5: dict[str, Any] = {
    "encoder": True,
    "bias": False,
    "position": "t5",
    "norm": "rmsnorm",
    "residual": "pre",
    "init": "t5",
    "sublayers": {
        "s": {"name": "attention", "score": "dot"},
        "c": {"name": "cross", "score": "dot"},
        "f": {"name": "ffn", "activation": "relu"},
    },
    "head": {"name": "softmax", "scaled": True},
}
T5_1_1 = {
    **T5,
    "sublayers": {**T5["sublayers"], "f": {"name": "glu", "activation": "gelu_tanh", "hidden": "full"}},
    "head": {"name": "softmax", "tied": False},
}


def tokens(length: int, seed: int) -> Tensor:
    return torch.randint(1, VOCAB, (3, length), generator=torch.Generator().manual_seed(seed))


SOURCE, READ, TARGETS = tokens(16, 0), tokens(14, 1), tokens(14, 2)


def names(ours: Weights) -> dict[str, Tensor]:
    theirs = {"shared.weight": ours["decoder.embedding.table.weight"]}
    if "head.project.weight" in ours:
        theirs["lm_head.weight"] = ours["head.project.weight"]
    for side, parts in (("encoder", ["SelfAttention"]), ("decoder", ["SelfAttention", "EncDecAttention"])):
        table = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        theirs[table] = ours[f"{side}.position.table"]
        theirs |= norm(ours, f"{side}.final_layer_norm", f"{side}.tower.final_norm")
        ffn = len(parts)
        functions = {"wi": "up", "wo": "down"}
        if f"{side}.tower.functions.0.{ffn}.gate.weight" in ours:
            functions = {"wi_0": "gate", "wi_1": "up", "wo": "down"}
        linears = {f"layer.{ffn}.DenseReluDense.{name}": f"{ffn}.{each}" for name, each in functions.items()}
        for at, part in enumerate(parts):
            linears |= {f"layer.{at}.{part}.{each}": f"{at}.{each}" for each in "qkv"}
            linears[f"layer.{at}.{part}.o"] = f"{at}.out"
        norms = {f"layer.{at}.layer_norm": str(at) for at in range(ffn + 1)}
        for i in range(2):
            theirs |= layer(ours, f"{side}.block.{i}", f"{side}.tower", i, linears, norms)
    return theirs


def their_model(version: str, **sizes: int) -> Any:
    """transformers 5 ties even where the configuration says not to, and then only leaves out the scale."""
    kinds: dict[str, Any] = {"feed_forward_proj": "relu"}
    if version == "1.1":
        kinds = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    theirs = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, **kinds))
    assert theirs.config.scale_decoder_outputs == (version == "1.0")
    if version == "1.1":
        theirs.lm_head.weight = nn.Parameter(torch.empty_like(theirs.shared.weight))
    return theirs


def t5(version: str, exact: bool = True) -> tuple[Any, Any]:
    """Eight buckets up to distance 9, so that the spaced ones and the last are all met."""
    position = {"name": "t5", "buckets": 8, "max_distance": 9}
    ours = our_model({**SIZES, **{"1.0": T5, "1.1": T5_1_1}[version], "position": position}, VOCAB, LENGTH)
    theirs = their_model(
        version,
        vocab_size=VOCAB,
        d_model=24,
        d_kv=6,
        d_ff=40,
        num_layers=2,
        num_heads=3,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=9,
    )
    with_weights(theirs, names(dict(ours.named_parameters())))
    for name, module in list(theirs.named_modules()):
        if exact and type(module).__name__ == "T5LayerNorm":
            mine = nn.RMSNorm(24, eps=module.variance_epsilon, dtype=torch.float64)
            mine.weight = module.weight
            theirs.set_submodule(name, mine)
    return ours, theirs


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("exact", [True, False], ids=["float64 norms", "their norms"])
@pytest.mark.parametrize("padded", [True, False])
def test_logits_loss_and_gradients(version: str, exact: bool, padded: bool) -> None:
    ours, theirs = t5(version, exact)
    valid = VALID if padded else None
    mask = None if valid is None else valid.long()
    expected = theirs(SOURCE, attention_mask=mask, decoder_input_ids=READ).logits
    x = ours(SOURCE, READ, valid_BS=valid)[0]
    if not padded:
        assert torch.equal(ours.nll(SOURCE, READ, TARGETS), ours.head.nll(x, TARGETS))
    tolerance = EXACT if exact else FLOAT32
    same_model(ours, theirs, names, (ours.head.logits(x), expected), ours.head.nll(x, TARGETS), TARGETS, tolerance)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_decoding(version: str) -> None:
    """Four tokens, then one by one, each with its own cache; the encoder runs once."""
    ours, theirs = t5(version)
    cache = Cache()
    past = transformers.EncoderDecoderCache(transformers.DynamicCache(), transformers.DynamicCache())
    with torch.no_grad():
        memory = theirs.encoder(SOURCE, attention_mask=VALID.long())
        for piece in READ.split([4, *[1] * 10], 1):
            expected = theirs(
                encoder_outputs=memory,
                attention_mask=VALID.long(),
                decoder_input_ids=piece,
                past_key_values=past,
                use_cache=True,
            ).logits
            assert error(ours.head.logits(ours(SOURCE, piece, cache, valid_BS=VALID)[0]), expected) < EXACT
    assert cache.length == past.get_seq_length() == 14


@pytest.mark.parametrize(("version", "published"), [("1.0", 222_903_552), ("1.1", 247_577_856)])
def test_parameters_at_full_size(version: str, published: int) -> None:
    """t5-base, and t5-v1_1-base: 12 + 12 layers, 32,128 tokens, a feed-forward of 3072 and of 2048."""
    sizes = {"d_model": 768, "n_heads": 12, "depth": 12, "d_ff": 3072 if version == "1.0" else 2048}
    ours = build_on_meta(parse(ArchSpec, {**sizes, **{"1.0": T5, "1.1": T5_1_1}[version]}), 32_128, 512)
    with torch.device("meta"):
        theirs = their_model(version, d_model=768, d_kv=64, d_ff=sizes["d_ff"], num_layers=12, num_heads=12)
    assert [sum(p.numel() for p in model.parameters()) for model in (ours, theirs)] == [published, published]


def test_initial_deviations() -> None:
    """As the authors' mesh code draws: queries (d k)^-1/2 for the scale that scores lack, embeddings 1."""
    model = build_model(parse(ArchSpec, {"d_model": 192, "n_heads": 4, "depth": 1, **T5}), 500, 8)
    weights = dict(model.named_parameters())
    expected = {
        "decoder.embedding.table.weight": 1.0,
        "encoder.tower.functions.0.0.q.weight": (192 * 48) ** -0.5,
        "decoder.tower.functions.0.1.q.weight": (192 * 48) ** -0.5,
        "decoder.tower.functions.0.1.k.weight": 192**-0.5,
        "decoder.tower.functions.0.1.out.weight": 192**-0.5,
        "decoder.tower.functions.0.2.up.weight": 192**-0.5,
        "decoder.tower.functions.0.2.down.weight": 768**-0.5,
    }
    for name, deviation in expected.items():
        assert abs(weights[name].std().item() / deviation - 1) < 0.02, name
