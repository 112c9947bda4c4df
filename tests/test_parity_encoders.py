"""BERT, ALBERT, GPT-1 and BART are what their slots say: transformers' implementations on copied weights.

Logits, loss and every gradient, in float64; torch.nn's own encoder-decoder beside them.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from parity import EXACT, Weights, error, layer, linear, norm, our_model, same_gradients, same_model, with_weights
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")

from ablate.build import build_on_meta  # noqa: E402
from ablate.contracts import Cache  # noqa: E402
from ablate.errors import UserError  # noqa: E402
from ablate.spec import ArchSpec, parse  # noqa: E402

VOCAB, LENGTH = 23, 14
SIZES = {"d_model": 24, "n_heads": 3, "d_ff": 40, "depth": 2}
VALID = torch.arange(11)[None] < torch.tensor([11, 7, 4])[:, None]


def tokens(length: int, seed: int) -> Tensor:
    """Without the first three, which are padding and the like: their embeddings get no gradient there."""
    return torch.randint(3, VOCAB, (3, length), generator=torch.Generator().manual_seed(seed))


TOKENS, TARGETS = tokens(11, 0), tokens(11, 1)

BERT = {
    "position": "learned",
    "embedding": {"name": "bert", "segments": 2},
    "norm": {"name": "layernorm", "eps": 1e-12},
    "residual": "post",
    "head": "bert",
    "init": "gpt2",
}


def bert_names(ours: Weights) -> dict[str, Tensor]:
    embeddings = "bert.embeddings"
    theirs = {
        f"{embeddings}.word_embeddings.weight": ours["embedding.table.weight"],
        f"{embeddings}.position_embeddings.weight": ours["position.table"],
        f"{embeddings}.token_type_embeddings.weight": ours["embedding.segments.weight"],
        "cls.predictions.bias": ours["head.bias"],
        **norm(ours, f"{embeddings}.LayerNorm", "closing"),
        **norm(ours, "cls.predictions.transform.LayerNorm", "head.norm"),
        **linear(ours, "cls.predictions.transform.dense", "head.hidden"),
    }
    linears = {f"attention.self.{name}": f"0.{name[0]}" for name in ("query", "key", "value")}
    linears |= {"attention.output.dense": "0.out", "intermediate.dense": "1.up", "output.dense": "1.down"}
    norms = {"attention.output.LayerNorm": "0", "output.LayerNorm": "1"}
    for i in range(2):
        theirs |= layer(ours, f"bert.encoder.layer.{i}", "tower", i, linears, norms)
    return theirs


def bert() -> tuple[Any, Any]:
    ours = our_model({**SIZES, **BERT}, VOCAB, LENGTH, causal=False)
    config = transformers.BertConfig(
        vocab_size=VOCAB,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=LENGTH,
        attn_implementation="eager",
    )
    weights = bert_names(dict(ours.named_parameters()))
    return ours, with_weights(transformers.BertForMaskedLM(config), weights)


def test_bert() -> None:
    ours, theirs = bert()
    logits = theirs(TOKENS).logits
    same_model(
        ours, theirs, bert_names, (ours.head.logits(ours(TOKENS)[0]), logits), ours.nll(TOKENS, TARGETS), TARGETS
    )


def test_bert_with_padding() -> None:
    ours, theirs = bert()
    with torch.no_grad():
        expected = theirs(TOKENS, attention_mask=VALID.long()).logits
        found = ours.head.logits(ours(TOKENS, valid_BT=VALID)[0])
    assert error(found[VALID], expected[VALID]) < EXACT
    with torch.no_grad():
        assert error(ours.head.logits(ours(TOKENS)[0])[VALID], expected[VALID]) > 1e-3  # padding mattered


def test_bert_at_full_size() -> None:
    """109,514,298 parameters: the published checkpoint's encoder and masked-token head, without its pooler."""
    sizes = {"d_model": 768, "n_heads": 12, "depth": 12}
    ours = build_on_meta(parse(ArchSpec, {**sizes, **BERT}), 30_522, 512, causal=False)
    with torch.device("meta"):
        theirs = transformers.BertForMaskedLM(transformers.BertConfig())
    counts = [sum(p.numel() for p in model.parameters()) for model in (ours, theirs)]
    assert counts == [109_514_298, 109_514_298]


GPT1 = {
    "position": "learned",
    "residual": "post",
    "sublayers": {"f": {"name": "ffn", "activation": "gelu_tanh"}},
    "init": "gpt2",
}


def gpt1_names(ours: Weights) -> dict[str, Tensor]:
    theirs = {
        "transformer.tokens_embed.weight": ours["embedding.table.weight"],
        "transformer.positions_embed.weight": ours["position.table"],
    }
    for i in range(2):
        attention, block = f"tower.functions.{i}.0", f"transformer.h.{i}"
        theirs[f"{block}.attn.c_attn.weight"] = torch.cat([ours[f"{attention}.{each}.weight"] for each in "qkv"])
        theirs[f"{block}.attn.c_attn.bias"] = torch.cat([ours[f"{attention}.{each}.bias"] for each in "qkv"])
        linears = {"attn.c_proj": "0.out", "mlp.c_fc": "1.up", "mlp.c_proj": "1.down"}
        theirs |= layer(ours, block, "tower", i, linears, {"ln_1": "0", "ln_2": "1"})
    # their matrices are (in, out)
    return {key: each.T if ".c_" in key and each.ndim == 2 else each for key, each in theirs.items()}


def test_gpt1() -> None:
    ours = our_model({**SIZES, "d_ff": 96, **GPT1}, VOCAB, LENGTH)
    config = transformers.OpenAIGPTConfig(vocab_size=VOCAB, n_positions=LENGTH, n_embd=24, n_layer=2, n_head=3)
    theirs = with_weights(transformers.OpenAIGPTLMHeadModel(config), gpt1_names(dict(ours.named_parameters())))
    logits = ours.head.logits(ours(TOKENS)[0]), theirs(TOKENS).logits
    same_model(ours, theirs, gpt1_names, logits, ours.nll(TOKENS, TARGETS), TARGETS)


def test_gpt1_at_full_size() -> None:
    """116,534,784 parameters, as the published model has."""
    ours = build_on_meta(parse(ArchSpec, {"d_model": 768, "n_heads": 12, "depth": 12, **GPT1}), 40_478, 512)
    assert sum(p.numel() for p in ours.parameters()) == 116_534_784


ALBERT = {
    "position": "none",
    "embedding": {"name": "factorized", "rank": 8},
    "norm": {"name": "layernorm", "eps": 1e-12},
    "residual": "post",
    "sharing": "all",
    "sublayers": {"f": {"name": "ffn", "activation": "gelu_tanh"}},
}


def albert_names(ours: Weights) -> dict[str, Tensor]:
    theirs = {
        "embeddings.word_embeddings.weight": ours["embedding.table.weight"],
        "encoder.embedding_hidden_mapping_in.weight": ours["embedding.expand.weight"],
    }
    linears = {f"attention.{name}": f"0.{name[0]}" for name in ("query", "key", "value")}
    linears |= {"attention.dense": "0.out", "ffn": "1.up", "ffn_output": "1.down"}
    norms = {"attention.LayerNorm": "0", "full_layer_layer_norm": "1"}
    return theirs | layer(ours, "encoder.albert_layer_groups.0.albert_layers.0", "tower", 0, linears, norms)


def test_albert() -> None:
    """Without what our factorized embedding leaves out: the norm and the bias inside it; positions none, since ALBERT
    adds them between the factors. The logits by both factors, from the last of three runs of the one layer."""
    ours = our_model({**SIZES, "depth": 3, **ALBERT}, VOCAB, LENGTH, causal=False)
    config = transformers.AlbertConfig(
        vocab_size=VOCAB,
        embedding_size=8,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=LENGTH,
        attn_implementation="eager",
    )
    theirs = transformers.AlbertModel(config, add_pooling_layer=False)
    theirs.embeddings.LayerNorm = nn.Identity()
    theirs.encoder.embedding_hidden_mapping_in.bias = None
    for name in ("position_embeddings", "token_type_embeddings"):
        table = getattr(theirs.embeddings, name).weight.detach().double().zero_()
        delattr(theirs.embeddings, name)
        setattr(theirs.embeddings, name, lambda ids, table=table: table[ids])
    with_weights(theirs, albert_names(dict(ours.named_parameters())))
    x = theirs(TOKENS).last_hidden_state
    expected = x @ theirs.encoder.embedding_hidden_mapping_in.weight @ theirs.embeddings.word_embeddings.weight.T
    logits = ours.head.logits(ours(TOKENS)[0]), expected
    same_model(ours, theirs, albert_names, logits, ours.nll(TOKENS, TARGETS), TARGETS)


BART = {
    "encoder": True,
    "position": "learned",
    "embedding": {"name": "bert", "segments": 0},
    "residual": "post",
    "init": "gpt2",
}


def bart_names(ours: Weights) -> dict[str, Tensor]:
    theirs = {"model.shared.weight": ours["decoder.embedding.table.weight"]}
    attention = {"self_attn": "0", "encoder_attn": "1"}
    for side in ("encoder", "decoder"):
        rows = ours[f"{side}.position.table"]
        offset = rows.new_zeros(2, rows.shape[1])  # two rows that positions never use
        theirs[f"model.{side}.embed_positions.weight"] = torch.cat((offset, rows))
        theirs |= norm(ours, f"model.{side}.layernorm_embedding", f"{side}.closing")
        parts = attention if side == "decoder" else {"self_attn": "0"}
        linears = {f"{name}.{each}_proj": f"{at}.{each}" for name, at in parts.items() for each in "qkv"}
        linears |= {f"{name}.out_proj": f"{at}.out" for name, at in parts.items()}
        ffn = str(len(parts))
        linears |= {"fc1": f"{ffn}.up", "fc2": f"{ffn}.down"}
        norms = {f"{name}_layer_norm": at for name, at in parts.items()} | {"final_layer_norm": ffn}
        for i in range(2):
            theirs |= layer(ours, f"model.{side}.layers.{i}", f"{side}.tower", i, linears, norms)
    return theirs


def bart() -> tuple[Any, Any]:
    ours = our_model({**SIZES, **BART}, VOCAB, LENGTH)
    config = transformers.BartConfig(
        vocab_size=VOCAB,
        max_position_embeddings=LENGTH,
        d_model=24,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=40,
        decoder_ffn_dim=40,
        encoder_attention_heads=3,
        decoder_attention_heads=3,
        attn_implementation="eager",
    )
    weights = bart_names(dict(ours.named_parameters()))
    return ours, with_weights(transformers.BartForConditionalGeneration(config), weights)


def test_bart() -> None:
    """The source padded; its own embedding norm and positions in each tower."""
    ours, theirs = bart()
    read = tokens(9, 2)
    expected = theirs(TOKENS, attention_mask=VALID.long(), decoder_input_ids=read).logits
    x = ours(TOKENS, read, valid_BS=VALID)[0]
    targets = tokens(9, 3)
    same_model(ours, theirs, bart_names, (ours.head.logits(x), expected), ours.head.nll(x, targets), targets)


def test_bart_decodes() -> None:
    ours, theirs = bart()
    read, cache = tokens(9, 2), Cache()
    with torch.no_grad():
        expected = theirs(TOKENS, attention_mask=VALID.long(), decoder_input_ids=read).logits
        parts = [ours(TOKENS, piece, cache, valid_BS=VALID)[0] for piece in read.split([4, *[1] * 5], 1)]
    assert error(ours.head.logits(torch.cat(parts, 1)), expected) < EXACT


def test_bart_at_full_size() -> None:
    """bart-large: 406,291,456 parameters; they hold two rows of positions more in each tower."""
    sizes = {"d_model": 1024, "n_heads": 16, "depth": 12}
    ours = build_on_meta(parse(ArchSpec, {**sizes, **BART}), 50_265, 1024)
    assert sum(p.numel() for p in ours.parameters()) == 406_291_456 - 2 * 2 * 1024


def torch_names(ours: Weights) -> dict[str, Tensor]:
    """Our two towers under the names of nn.Transformer: queries, keys and values in one."""
    theirs: dict[str, Tensor] = {}
    for side, parts in (("encoder", {"self_attn": "0"}), ("decoder", {"self_attn": "0", "multihead_attn": "1"})):
        ffn = str(len(parts))
        linears = {f"{name}.out_proj": f"{at}.out" for name, at in parts.items()}
        linears |= {"linear1": f"{ffn}.up", "linear2": f"{ffn}.down"}
        norms = {f"norm{at + 1}": str(at) for at in range(len(parts) + 1)}
        for i in range(2):
            block, functions = f"{side}.layers.{i}", f"{side}.tower.functions.{i}"
            theirs |= layer(ours, block, f"{side}.tower", i, linears, norms)
            for name, at in parts.items():
                for kind in ("weight", "bias"):
                    joined = [ours[f"{functions}.{at}.{each}.{kind}"] for each in "qkv"]
                    theirs[f"{block}.{name}.in_proj_{kind}"] = torch.cat(joined)
        if f"{side}.tower.final_norm.gain" in ours:
            theirs |= norm(ours, f"{side}.norm", f"{side}.tower.final_norm")
    return theirs


@pytest.mark.parametrize("residual", ["post", "pre"])
def test_torch_s_transformer(residual: str) -> None:
    """Both placements, the source padded. Without embeddings of its own it starts from ours."""
    ours = our_model({**SIZES, "encoder": True, "position": "sinusoidal", "residual": residual}, VOCAB, LENGTH)
    theirs = nn.Transformer(
        24, 3, 2, 2, 40, 0.0, "gelu", batch_first=True, norm_first=residual == "pre", bias=True, dtype=torch.float64
    )
    if residual == "post":  # they have final norms in either placement
        theirs.encoder.norm = theirs.decoder.norm = None
    with_weights(theirs, torch_names(dict(ours.named_parameters())))
    theirs.train()  # not the fused inference path; there is no dropout
    read = tokens(9, 2)
    ctx = ours.encoder.context(TOKENS)
    source, target = ours.encoder.embed(TOKENS, ctx), ours.decoder.embed(read, ours.decoder.context(read))
    y = theirs(
        source.detach(),
        target.detach(),
        tgt_mask=nn.Transformer.generate_square_subsequent_mask(9, dtype=torch.float64),
        src_key_padding_mask=~VALID,
        memory_key_padding_mask=~VALID,
        tgt_is_causal=True,
    )
    x = ours(TOKENS, read, valid_BS=VALID)[0]
    assert error(x, y) < EXACT
    weigh = torch.randn(x.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    (x * weigh).sum().backward()
    (y * weigh).sum().backward()
    same_gradients(ours, theirs, torch_names)


def test_refusals() -> None:
    with pytest.raises(UserError, match="segments -1 must be at least 0"):
        our_model({**SIZES, "embedding": {"name": "bert", "segments": -1}}, VOCAB, LENGTH)
