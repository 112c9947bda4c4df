"""Costs against closed forms: parameters, FLOPs, memory. Integers, so equal and not near."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from own_plugins import own_plugins
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ablate import cost as cost_module
from ablate import registry
from ablate.build import build_model, build_on_meta
from ablate.cost import Cost, CostBook, count, params_by_slot, params_only
from ablate.errors import UserError
from ablate.registry import add_plugin
from ablate.spec import ArchSpec, parse

V, T = 50, 24
GPT = {"d_model": 16, "n_heads": 4, "depth": 3, "d_ff": 40}


@pytest.fixture(autouse=True)
def _own_plugins() -> Iterator[None]:
    with own_plugins():
        yield


def arch_of(**settings: Any) -> ArchSpec:
    return parse(ArchSpec, {**GPT, **settings})


def costs(causal: bool = True, **settings: Any) -> Cost:
    return count(arch_of(**settings), V, T, causal)


def attention_flops(d: int, length: int, H: int, K: int, Kv: int) -> int:
    """Per token: queries and keys, values, the way back, scores and weighted sum over `length` keys."""
    return 4 * d * H * K + 4 * d * H * Kv + 2 * length * H * (K + Kv)


# --- parameters


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("d", "H", "f", "L"), [(16, 4, 40, 3), (24, 2, 96, 1), (8, 8, 5, 4)])
def test_parameters_of_a_gpt(d: int, H: int, f: int, L: int, bias: bool) -> None:
    expected = {
        "channel": L * (2 * d * f + bias * (f + d)),
        "embedding": V * d,
        "mixer": L * (4 * d * d + bias * 4 * d),
        "norm": (2 * L + 1) * 2 * d,
        "position": T * d,
    }
    arch = parse(ArchSpec, {"d_model": d, "n_heads": H, "d_ff": f, "depth": L, "bias": bias})
    cost = count(arch, V, T)
    assert cost.params_by_slot == expected
    assert cost.params_total == cost.params_active == params_only(arch, V, T) == sum(expected.values())
    assert cost.params_non_embedding == sum(expected[slot] for slot in ("channel", "mixer", "norm"))
    assert cost.flops_6n == 6 * cost.params_non_embedding
    assert params_by_slot(build_model(arch, V, T)) == expected


PARAMETERS = {  # settings -> what they change in the parameters of the GPT above, by slot
    "an untied head": ({"head": {"name": "softmax", "tied": False}}, {"head": V * 16}),
    "a gated network of two thirds": (
        {"sublayers": {"f": "glu"}},
        {"channel": 3 * (3 * 16 * 26 + 2 * 26 + 16) - 3 * (2 * 16 * 40 + 40 + 16)},
    ),
    "a gated network of the full width": (
        {"sublayers": {"f": {"name": "glu", "hidden": "full"}}},
        {"channel": 3 * (16 * 40 + 40)},
    ),
    "wider heads": ({"d_head": 10}, {"mixer": 3 * (4 * 16 * 24 + 3 * 24)}),
    "narrower values": ({"sublayers": {"s": {"name": "attention", "d_value": 3}}}, {"mixer": -3 * (2 * 16 * 4 + 4)}),
    "rmsnorm": ({"norm": "rmsnorm"}, {"norm": -7 * 16}),
    "no norm": ({"norm": "none"}, {"norm": -7 * 32}),
    "post-norm": ({"residual": "post"}, {"norm": -32}),
    "sandwich norm": ({"residual": "sandwich"}, {"norm": 6 * 32}),
    "rope": ({"position": "rope"}, {"position": -T * 16}),
    "t5": ({"position": "t5"}, {"position": 32 * 4 - T * 16}),
    "sharing": ({"sharing": "all"}, {"mixer": -2 * 1088, "channel": -2 * 1336, "norm": -4 * 32}),
    "no ffn": ({"order": "s"}, {"channel": -3 * 1336, "norm": -3 * 32}),
    "lstm": ({"sublayers": {"s": "lstm"}}, {"mixer": 3 * (4 * (2 * 16 * 16 + 2 * 16) - 1088)}),
    "convolution": ({"sublayers": {"s": "convolution"}}, {"mixer": 3 * (3 * 16 * 16 + 16 - 1088)}),
}


@pytest.mark.parametrize("case", PARAMETERS)
def test_parameters_by_slot(case: str) -> None:
    settings, changes = PARAMETERS[case]
    before, after = (params_by_slot(build_on_meta(arch_of(**each), V, T)) for each in ({}, settings))
    expected = {slot: before.get(slot, 0) + changes.get(slot, 0) for slot in before.keys() | changes.keys()}
    assert after == {slot: number for slot, number in expected.items() if number}


def test_a_weight_in_two_places_counts_once() -> None:
    shared = nn.Linear(3, 5)
    assert params_by_slot(nn.Sequential(nn.Sequential(shared), nn.Sequential(shared))) == {"other": 20}


# --- FLOPs


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("d", "H", "f", "L", "length"), [(16, 4, 40, 3, 24), (24, 2, 96, 1, 7), (8, 8, 5, 4, 1)])
def test_flops_of_a_gpt(d: int, H: int, f: int, L: int, length: int, bias: bool) -> None:
    """2 a multiply-accumulate: 8 d^2 + 4 T d attention over all T keys, 4 d f, and the head's 2 d V.

    The definition needs (T + 1) / 2 keys in the mean. Backward is two products for each one forward.
    """
    arch = parse(ArchSpec, {"d_model": d, "n_heads": H, "d_ff": f, "depth": L, "bias": bias})
    cost = count(arch, V, length)
    assert cost.flops_forward == L * (8 * d * d + 4 * length * d + 4 * d * f) + 2 * d * V
    assert cost.flops_algorithmic == L * (8 * d * d + 4 * (length + 1) / 2 * d + 4 * d * f) + 2 * d * V
    assert cost.flops_backward == 2 * cost.flops_forward
    assert cost.flops_train == 3 * cost.flops_forward


FLOPS: dict[str, tuple[dict[str, Any], float]] = {  # settings -> forward FLOPs a token
    "an untied head": ({"head": {"name": "softmax", "tied": False}}, 3 * (2048 + 64 * T + 2560) + 1600),
    "a gated network of two thirds": ({"sublayers": {"f": "glu"}}, 3 * (2048 + 64 * T + 6 * 16 * 26) + 1600),
    "a gated network of the full width": (
        {"sublayers": {"f": {"name": "glu", "hidden": "full"}}},
        3 * (2048 + 64 * T + 6 * 16 * 40) + 1600,
    ),
    "wider heads": ({"d_head": 10}, 3 * (attention_flops(16, T, 4, 10, 10) + 2560) + 1600),
    "narrower values": (
        {"sublayers": {"s": {"name": "attention", "d_value": 3}}},
        3 * (attention_flops(16, T, 4, 4, 3) + 2560) + 1600,
    ),
    "shared weights": ({"sharing": "all"}, 3 * (2048 + 64 * T + 2560) + 1600),
    "more attention": ({"order": "ssf"}, 3 * (2 * (2048 + 64 * T) + 2560) + 1600),
    "no attention": ({"order": "f"}, 3 * 2560 + 1600),
    "convolution": ({"sublayers": {"s": {"name": "convolution", "kernel": 5}}}, 3 * (2 * 5 * 256 + 2560) + 1600),
    "lstm": ({"sublayers": {"s": "lstm"}}, 3 * (2 * 4 * 2 * 256 + 2560) + 1600),
    "lstm of another width": (
        {"sublayers": {"s": {"name": "lstm", "hidden": 10}}},
        3 * (2 * 4 * (160 + 100) + 2 * 160 + 2560) + 1600,
    ),
}


@pytest.mark.parametrize("case", FLOPS)
def test_flops(case: str) -> None:
    settings, forward = FLOPS[case]
    cost = costs(**settings)
    assert cost.flops_forward == forward
    assert cost.flops_backward == 2 * forward


@pytest.mark.parametrize("position", ["none", "learned", "sinusoidal", "rope", "alibi", "t5"])
def test_masks_and_positions_do_not_change_what_is_executed(position: str) -> None:
    """Plain kernels compute the whole T x T; the mask is part of the definition, which sees all in an encoder."""
    causal, both = costs(position=position), costs(causal=False, position=position)
    assert causal.flops_forward == both.flops_forward == both.flops_algorithmic == 3 * (2048 + 64 * T + 2560) + 1600
    assert causal.flops_forward - causal.flops_algorithmic == 3 * 64 * (T - (T + 1) / 2)


WINDOW = '''\
from ablate import Attention, register


@register("mixer", "window", paper="Beltagy et al. 2020")
class Window(Attention):
    """Sees so many keys."""

    def __init__(self, site, *, width: int = 4):
        super().__init__(site)
        self.width = width

    def allowed(self, pos_T, pos_S):
        return (pos_T[:, None] - pos_S[None]).abs() < self.width
'''


def test_algorithmic_flops_of_a_window(write: Callable[..., Path]) -> None:
    """A masked attention executes every score and needs those of its window: T w - w (w - 1) / 2 of them."""
    add_plugin(write(WINDOW, "window.py"))
    settings = {"sublayers": {"s": {"name": "window", "width": 4}}}
    cost = costs(**settings)
    assert cost.flops_forward == costs().flops_forward
    fixed = 3 * (2048 + 2560) + 1600
    assert cost.flops_algorithmic == pytest.approx(fixed + 3 * 64 * (T * 4 - 6) / T, rel=1e-12)
    both = costs(causal=False, **settings)
    assert both.flops_algorithmic == pytest.approx(fixed + 3 * 64 * (T * 7 - 12) / T, rel=1e-12)


def test_lstm_flops_are_those_of_its_steps() -> None:
    """On meta the products are counted in one go, on a CPU the fused kernel hides them: step by step they show."""
    arch = parse(ArchSpec, {**GPT, "sublayers": {"s": "lstm"}, "order": "s", "depth": 1})
    model = build_model(arch, V, T)
    w, u, b1, b2 = model.tower.functions["0"][0].cells.parameters()
    x, h, c = torch.randn(1, T, 16), torch.zeros(1, 16), torch.zeros(1, 16)
    with FlopCounterMode(display=False) as counter:
        for t in range(T):
            i, f, g, o = (F.linear(x[:, t], w, b1) + F.linear(h, u, b2)).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
    assert counter.get_total_flops() == T * (count(arch, V, T).flops_forward - 2 * 16 * V)


@pytest.mark.parametrize("settings", [{}, {"position": "t5"}, {"sublayers": {"f": "glu"}, "position": "rope"}])
def test_meta_counts_what_a_cpu_runs(settings: dict[str, Any]) -> None:
    arch = parse(ArchSpec, {**GPT, **settings})
    tokens = torch.zeros(1, T, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        with sdpa_kernel(SDPBackend.MATH):  # the counter does not know the fused kernel of a CPU
            build_model(arch, V, T).nll(tokens, tokens)
    assert counter.get_total_flops() == T * count(arch, V, T).flops_forward


# --- memory


def test_activations_of_a_chain_of_products() -> None:
    """relu networks without norms or biases keep each product's input and relu's output, and the softmax over V.

    Beside them the eight bytes of a token's number, and once for the sequence the four of the loss's denominator.
    """
    cost = costs(
        order="f", position="none", norm="none", bias=False, sublayers={"f": {"name": "ffn", "activation": "relu"}}
    )
    assert cost.activation_bytes * T == T * (4 * (3 * (16 + 40) + 16 + V) + 8) + 4


CACHES: dict[str, tuple[dict[str, Any], int, int]] = {  # settings -> bytes at length T, and the fixed part
    "attention": ({}, 4 * 3 * T * 2 * 16, 0),
    "attention, wider heads": ({"d_head": 10}, 4 * 3 * T * 2 * 40, 0),
    "attention, narrower values": (
        {"sublayers": {"s": {"name": "attention", "d_value": 3}}},
        4 * 3 * T * (16 + 12),
        0,
    ),
    "shared weights have states of their own": ({"sharing": "all"}, 4 * 3 * T * 2 * 16, 0),
    "lstm": ({"sublayers": {"s": "lstm"}}, 4 * 3 * 2 * 16, 4 * 3 * 2 * 16),
    "lstm of another width": ({"sublayers": {"s": {"name": "lstm", "hidden": 10}}}, 4 * 3 * 2 * 10, 4 * 3 * 2 * 10),
    "convolution": (
        {"sublayers": {"s": {"name": "convolution", "kernel": 4, "dilation": 2}}},
        4 * 3 * 6 * 16,
        4 * 3 * 6 * 16,
    ),
    "attention and a convolution": (
        {"order": "scf", "sublayers": {"c": "convolution"}},
        4 * 3 * (T * 2 * 16 + 2 * 16),
        4 * 3 * 2 * 16,
    ),
    "no mixer": ({"order": "f"}, 0, 0),
}


@pytest.mark.parametrize("case", CACHES)
def test_decoding_state(case: str) -> None:
    settings, full, fixed = CACHES[case]
    cost = costs(**settings)
    assert (cost.cache_bytes, cost.state_bytes) == (full, fixed)


# --- the cost book


def test_costs_are_remembered(tmp_path: Path) -> None:
    """A second book reads what the first has counted: a number changed in the file comes back changed."""
    counted = CostBook(tmp_path).cost(arch_of(), V, T)
    assert counted == count(arch_of(), V, T)
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text()) == asdict(counted)
    file.write_text(json.dumps({**asdict(counted), "cache_bytes": 1}))
    assert CostBook(tmp_path).cost(arch_of(), V, T) == replace(counted, cache_bytes=1)


def test_a_book_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    book = CostBook(None)
    assert book.cost(arch_of(), V, T) is book.cost(arch_of(), V, T)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("what", ["architecture", "vocabulary", "length", "source", "torch"])
def test_what_changes_is_counted_again(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CostBook(tmp_path).cost(arch_of(), V, T)
    (file,) = tmp_path.iterdir()
    file.write_text(json.dumps({**json.loads(file.read_text()), "params_total": -1}))
    assert CostBook(tmp_path).cost(arch_of(), V, T).params_total == -1
    arch = arch_of(position="rope") if what == "architecture" else arch_of()
    if what == "source":
        monkeypatch.setattr(cost_module, "source_hash", lambda: "other")
    if what == "torch":
        monkeypatch.setattr(torch, "__version__", "0.1")
    vocab, length = V + (what == "vocabulary"), T + (what == "length")
    cost = CostBook(tmp_path).cost(arch, vocab, length)
    assert cost == count(arch, vocab, length) and len(list(tmp_path.iterdir())) == 2


def test_a_plugin_s_code_is_part_of_the_key(write: Callable[..., Path], tmp_path: Path) -> None:
    book, costs_of = tmp_path / "book", []
    for width in (4, 5):
        add_plugin(write(WINDOW.replace("< self.width", f"< {width}"), "window.py"))
        costs_of.append(CostBook(book).cost(arch_of(sublayers={"s": "window"}), V, T))
    assert costs_of[0].flops_algorithmic < costs_of[1].flops_algorithmic


def test_the_source_hash_is_of_what_a_count_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any change of a component, of how they are put together, of the defaults or of the counting."""
    ignored = shutil.ignore_patterns("__pycache__")
    package = shutil.copytree(registry.PACKAGE, tmp_path / "ablate", ignore=ignored)
    monkeypatch.setattr(registry, "PACKAGE", package)
    hash_now = cost_module.source_hash.__wrapped__  # without its memory
    seen = {cost_module.source_hash(), hash_now()}
    assert len(seen) == 1
    names = [
        "components/mixers/attention.py",
        "components/heads.py",
        "build.py",
        "contracts.py",
        "cost.py",
        "arch.py",
    ]
    for name in names:
        (package / name).write_text((package / name).read_text() + "x = 1\n")
        seen.add(hash_now())
    assert len(seen) == 1 + len(names)
    (package / "grid.py").write_text("")
    assert hash_now() in seen


def test_an_architecture_is_probed_before_it_is_counted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="position 'rope' has no effect"):
        CostBook(tmp_path).cost(arch_of(position="rope", sublayers={"s": "lstm"}), V, T)
    assert not list(tmp_path.iterdir())


def test_counting_needs_no_memory() -> None:
    """175 billion parameters, none of them there."""
    arch = parse(ArchSpec, {"d_model": 12288, "n_heads": 96, "depth": 96})
    model = build_on_meta(arch, 50257, 2048)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(params_by_slot(model).values()) == params_only(arch, 50257, 2048) == 174_604_259_328
