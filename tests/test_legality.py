"""The legality matrix: which component may stand in an encoder, a decoder, an encoder-decoder, and why not.

Every row is probed in all three before anything trains: built without values, run forward and backward.
"""

from __future__ import annotations

import re
from typing import Any

import pytest

from ablate.build import build_model
from ablate.errors import UserError
from ablate.probe import probe
from ablate.registry import SLOTS, catalogue
from ablate.spec import ArchSpec, parse

BASE = {"d_model": 16, "n_heads": 4, "d_ff": 24, "depth": 3}
AHEAD = "sees the future and cannot be used in a causal model"
PAIR = "is for an encoder-decoder"
OK = ""
S, F = "sublayers.s", "sublayers.f"

# what is set -> what is said of it in an encoder, a decoder, an encoder-decoder; OK where it is legal
MATRIX: list[tuple[dict[str, Any], str, str, str]] = [
    *(({S: name}, OK, OK, OK) for name in ("attention", "additive", "gaussian", "bilinear", "concat")),
    *(
        ({"position": name}, OK, OK, OK)
        for name in ("none", "learned", "sinusoidal", "learned_sinusoidal", "shaw", "t5", "rope", "alibi")
    ),
    ({F: "glu"}, OK, OK, OK),
    ({"norm": "rmsnorm"}, OK, OK, OK),
    ({"sharing": "all"}, OK, OK, OK),
    ({"order": "sandwich(1)"}, OK, OK, OK),
    ({"stack": "universal"}, OK, OK, OK),
    ({"stack": "universal", "position": "t5"}, OK, OK, OK),  # one table anyway
    ({"order": "w", "sublayers.w": "weighted", "sublayers.c": "weighted_cross"}, OK, OK, OK),
    ({"norm": "batchnorm"}, OK, AHEAD, AHEAD),
    ({"norm": {"name": "batchnorm", "train_stats_leak": True}}, OK, OK, OK),
    ({"norm": "batchnorm_running"}, OK, OK, OK),
    ({F: "product_key"}, OK, OK, OK),
    *(({S: f"synthesizer_{name}"}, OK, OK, OK) for name in ("dense", "random", "factorized", "random_plus_alpha")),
    *(({S: name}, OK, OK, OK) for name in ("lightweight_conv", "dynamic_conv", "gated_conv")),
    ({S: "fnet", "position": "learned"}, OK, AHEAD, AHEAD),
    ({S: "linformer"}, OK, AHEAD, AHEAD),
    ({"sublayers.m": "fnet", "encoder_order": "mf"}, "needs an encoder", "needs an encoder", OK),  # its encoder side
    ({"sublayers.m": "linformer", "encoder_order": "mf"}, "needs an encoder", "needs an encoder", OK),
    *(({S: name}, OK, OK, OK) for name in ("fnet_causal", "linformer_block_causal", "longformer", "bigbird")),
    ({S: "sliding_window"}, OK, OK, OK),
    ({"stack": "funnel"}, OK, AHEAD, OK),
    ({"stack": "funnel_causal"}, OK, OK, OK),
    ({"stack": "transparent"}, PAIR, PAIR, OK),
    ({"sharing": "encoder"}, PAIR, PAIR, OK),
    ({"sharing": "decoder"}, PAIR, PAIR, OK),
    ({"order": "scf"}, PAIR, PAIR, OK),
    ({F: "switch"}, OK, OK, OK),
    ({F: "mixture_of_experts"}, OK, OK, OK),
    ({"model": "cbow"}, OK, OK, "has no effect beside arch.model"),
    ({"model": "cbow_symmetric"}, OK, AHEAD, AHEAD),
    ({"position": "music"}, "is for causal models", OK, "is for causal models"),  # no distances ahead
    ({"residual": "fixup"}, *["contradicts it: set arch.norm to none"] * 3),
    ({"init": "fixup"}, *["contradicts it: set arch.norm to none"] * 3),
    (
        {"init": "fixup", "norm": "none", S: {"name": "attention", "score": "dot"}},
        *["contradicts score 'dot'"] * 3,
    ),
    ({"position": "rope", S: "lstm"}, *["position 'rope' has no effect"] * 3),
    ({"position": "alibi", "order": "f"}, *["position 'alibi' has no effect"] * 2, "has no effect"),
]
PLACES = {"encoder": 0, "decoder": 1, "encoder-decoder": 2}


def arch_of(settings: dict[str, Any], pair: bool) -> ArchSpec:
    tree: dict[str, Any] = {**BASE, **({"encoder": True} if pair else {}), "sublayers": {}}
    for path, value in settings.items():
        if path.startswith("sublayers."):
            tree["sublayers"][path[-1]] = value
        else:
            tree[path] = value
    return parse(ArchSpec, tree)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("row", MATRIX, ids=lambda row: ", ".join(f"{key} {value}" for key, value in row[0].items()))
def test_row(row: tuple[dict[str, Any], str, str, str], place: str) -> None:
    settings, expected = row[0], row[1 + PLACES[place]]
    try:
        probe(arch_of(settings, place == "encoder-decoder"), 13, 12, causal=place != "encoder")
    except UserError as error:
        assert expected, f"refused: {error}"
        assert re.search(re.escape(expected), str(error))
        return
    assert not expected, "is not refused"


def test_an_image_has_no_next_token() -> None:
    with pytest.raises(UserError, match="embedding 'patch' reads images, and head 'softmax' says something of every"):
        probe(arch_of({"embedding": "patch"}, False), 13, 17, causal=False, image=(2, 8, 8), classes=3)
    probe(arch_of({"embedding": "patch", "head": "classify"}, False), 13, 17, False, image=(2, 8, 8), classes=3)


def test_adaptive_softmax_has_no_label_smoothing() -> None:
    """The mass that smoothing gives to all words is not defined by clusters."""
    model = build_model(arch_of({"embedding": "adaptive", "head": "adaptive_softmax"}, False), 13, 12)
    tokens = model.example(2, 5)[0]
    with pytest.raises(UserError, match="label"):
        model.objective(tokens, tokens, label_smoothing=0.1, z_loss=0.0)


def test_every_component_that_sees_ahead_or_needs_an_encoder_is_in_the_matrix() -> None:
    named = {str(value["name"] if isinstance(value, dict) else value) for row in MATRIX for value in row[0].values()}
    elsewhere = {"gmlp", "mlp_mixer", "classify", "cross", "fixup_cross", "evolved_parallel", "patch"}
    parts = [each for slot in SLOTS for each in catalogue(slot)]
    special = {each.name for each in parts if not each.causal or each.form == "pair"}
    assert special - elsewhere <= named
