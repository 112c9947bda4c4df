"""Looks inside a model: against loops and known cases, and without a trace in what is looked at."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from reference import near
from runs import job, spec, train
from torch import Tensor

from ablate.build import build_model
from ablate.components.mixers.attention import Attention
from ablate.diagnose.activations import activations
from ablate.diagnose.attention import attention
from ablate.diagnose.gradients import gradients
from ablate.diagnose.heads import heads
from ablate.diagnose.inside import undisturbed
from ablate.diagnose.record import LOOKS
from ablate.errors import SpecError
from ablate.models import EncoderDecoder
from ablate.recipe import DIAGNOSTICS
from ablate.run.ledger import Ledger
from ablate.spec import ArchSpec, TrainSpec, parse, to_tree
from ablate.tasks.base import Batch
from ablate.train.trial import run_trial

TOKENS = torch.randint(0, 50, (4, 21), generator=torch.Generator().manual_seed(0))
TARGETS = TOKENS.roll(1, 1)
VALID = torch.arange(21) < torch.tensor([21, 15, 9, 2])[:, None]
RELU = {"f": {"name": "ffn", "activation": "relu"}}


def model_of(tree: dict[str, Any], causal: bool = True, max_len: int = 24, **others: Any) -> Any:
    sizes = {"d_model": 16, "n_heads": 4, "depth": 2, "position": "none"}
    made = build_model(parse(ArchSpec, sizes | tree), 50, max_len, causal=causal, **others).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # away from the start, where some parameters are zero
        for parameter in made.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return made


def batch_of(rows: int = 4, length: int = 21, valid: Tensor | None = None) -> Batch:
    tokens, targets = TOKENS[:rows, :length], TARGETS[:rows, :length]
    return Batch((tokens,), targets, counts=valid, marks={} if valid is None else {"valid_BT": valid})


# ---- gradients


def test_gradient_norms_of_layers_are_those_of_backward() -> None:
    model = model_of({"sharing": {"name": "groups", "groups": 2}, "depth": 3})
    found = gradients(model, batch_of(valid=VALID))
    assert found is not None
    nll = model.nll(TOKENS, TARGETS, valid_BT=VALID)
    (nll[VALID].mean()).backward()
    owned: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        layer = parts[2] if parts[0] == "tower" and parts[1] in ("functions", "residuals") else "rest"
        owned[layer] = owned.get(layer, 0.0) + parameter.grad.square().sum().item()
    expected = [owned[str(layer)] ** 0.5 if str(layer) in owned else None for layer in range(3)]
    assert None in expected and expected[0] is not None
    for ours, theirs in zip(found["layers"]["only"], expected, strict=True):
        assert ours == (theirs if theirs is None else pytest.approx(theirs, rel=1e-12))
    assert found["rest"] == pytest.approx(owned["rest"] ** 0.5, rel=1e-12)


@pytest.mark.parametrize("causal", [True, False])
def test_gradients_by_distance_are_finite_differences(causal: bool) -> None:
    """Of the last scored target's loss, by the input k tokens before it; the second row has 15 tokens."""
    model = model_of({}, causal)
    found = gradients(model, batch_of(valid=VALID))
    assert found is not None and found["distance"] == [0, 1, 2, 4, 8, 16]
    ends = [20, 14, 8, 1]
    norms: dict[int, list[float]] = {k: [] for k in found["distance"]}
    for row, last in enumerate(ends):
        length = last + 1
        x_1TD = model.embedding(TOKENS[row : row + 1, :length]).detach()

        def loss(x_1TD: Tensor, row: int = row, last: int = last, length: int = length) -> float:
            ctx = model.context(TOKENS[row : row + 1, :length])
            out_1TD = model.tower(x_1TD, ctx)
            return model.head.nll(out_1TD, TARGETS[row : row + 1, :length])[0, last].item()

        for k in norms:
            if k <= last:
                partial = []
                for d in range(16):
                    up, down = x_1TD.clone(), x_1TD.clone()
                    up[0, last - k, d] += 1e-6
                    down[0, last - k, d] -= 1e-6
                    partial.append((loss(up) - loss(down)) / 2e-6)
                norms[k].append(math.hypot(*partial))
    for k, norm in zip(found["distance"], found["norm"], strict=True):
        assert norm == pytest.approx(sum(norms[k]) / len(norms[k]), rel=1e-5)


def test_a_window_s_gradients_vanish_beyond_it() -> None:
    """Two layers that see 3 tokens each reach 4 back."""
    found = gradients(model_of({"sublayers": {"s": {"name": "sliding_window", "window": 3}}}), batch_of())
    assert found is not None
    norms = dict(zip(found["distance"], found["norm"], strict=True))
    assert norms[4] > 0 and norms[8] == norms[16] == 0.0


def test_gradients_of_every_kind_of_model() -> None:
    pair = model_of({"encoder": True})
    assert isinstance(pair, EncoderDecoder)
    found = gradients(pair, Batch((TOKENS, TOKENS), TARGETS, VALID, {"valid_BS": VALID}))
    assert found is not None and set(found["layers"]) == {"encoder", "decoder"}
    assert found["distance"] == [0, 1, 2, 4, 8, 16] and min(found["norm"]) > 0
    classifier = model_of({"head": "classify"}, causal=False, classes=3)
    found = gradients(classifier, Batch((TOKENS,), torch.tensor([0, 1, 2, 0]), None, {"valid_BT": VALID}))
    assert found is not None and found["distance"] == [0, 1, 2, 4, 8, 16]
    assert gradients(model_of({"model": "cbow"}), batch_of()) is None
    recurrent = gradients(model_of({"sublayers": {"s": "lstm"}}), batch_of())
    assert recurrent is not None and min(recurrent["norm"]) > 0


# ---- activations


def entering(model: Any, valid: Tensor | None = None) -> Tensor:
    """What enters the ReLU of the only feed-forward network, (4, 21, 64)."""
    seen: list[Tensor] = []
    hook = model.tower.functions["0"][1].up.register_forward_hook(lambda module, args, z: seen.append(z))
    with torch.no_grad():
        model(TOKENS, valid_BT=valid)
    hook.remove()
    return seen[0]


def test_dead_units_are_counted() -> None:
    """Of 64 units all are on but 10; one is on in the first two rows alone, and one at padding alone."""
    model = model_of({"sublayers": RELU, "depth": 1})
    up, z = model.tower.functions["0"][1].up, entering(model, VALID)
    first_BT = (torch.arange(4) < 2)[:, None].expand_as(VALID)
    shift = 100 * torch.ones(64, dtype=torch.float64)
    shift[:10] = -100
    for here, there, units in ((first_BT & VALID, ~first_BT & VALID, slice(10, 30)), (~VALID, VALID, slice(30, 64))):
        most, least = (z[each][:, units].amax(0) for each in (here, there))
        unit = units.start + int((most - least).argmax())
        assert (most - least).max() > 0
        shift[unit] = -(most + least)[unit - units.start] / 2
    with torch.no_grad():
        up.bias += shift
    marks = {"valid_BT": VALID}
    halves = [Batch((TOKENS[a:b],), TARGETS[a:b], None, {"valid_BT": VALID[a:b]}) for a, b in ((0, 2), (2, 4))]
    for batches in ([Batch((TOKENS,), TARGETS, None, marks)], halves, halves[::-1]):
        (row,) = activations(model, batches) or []
        assert (row["layer"], row["activation"], row["units"], row["dead"]) == (0, "relu", 64, 11 / 64)
        off = (entering(model, VALID)[VALID] <= 0).double().mean().item()
        assert row["zero"] == pytest.approx(off, abs=1e-12)


def test_activations_that_are_not_relu_have_no_dead_units() -> None:
    rows = activations(model_of({}), [batch_of()])
    assert (
        rows is not None
        and [(row["activation"], row["dead"], row["zero"]) for row in rows] == [("gelu", None, None)] * 2
    )
    assert activations(model_of({"order": "s"}), [batch_of()]) is None


def test_gates_and_experts_count_too() -> None:
    gated = model_of({"sublayers": {"f": {"name": "glu", "activation": "relu"}}, "depth": 1})
    with torch.no_grad():
        gated.tower.functions["0"][1].gate.bias[:] = -1e6
    (row,) = activations(gated, [batch_of()]) or []
    assert row["dead"] == row["zero"] == 1.0
    experts = model_of({"sublayers": {"f": {"name": "switch", "activation": "relu"}}, "depth": 1})
    with torch.no_grad():
        experts.tower.functions["0"][1].router.weight[0] = 1e3 * experts.tower.functions["0"][1].router.weight[1]
        experts.tower.functions["0"][1].router.weight[2:] = 0
    (row,) = activations(experts, [batch_of()]) or []
    assert row["units"] in (64, 128, 192, 256) and 0 <= row["dead"] < 1
    shared = activations(model_of({"sharing": "all", "sublayers": RELU}), [batch_of()])
    assert shared is not None and [row["layer"] for row in shared] == [0, 1]


# ---- attention


def test_even_attention_by_hand() -> None:
    """Queries of zero: H = log n, relative 1, and the mean distance from t to 0..t is t / 2."""
    model = model_of({"depth": 1})
    mixer = model.tower.functions["0"][0]
    with torch.no_grad():
        mixer.q.weight.zero_()
        mixer.q.bias.zero_()
    (row,) = attention(model, batch_of(2, 5)) or []
    assert row["entropy"] == pytest.approx([math.log(120) / 5] * 4, rel=1e-12)  # log 1 + ... + log 5
    assert row["relative"] == pytest.approx([1.0] * 4, rel=1e-12)
    assert row["distance"] == pytest.approx([1.0] * 4, rel=1e-12)  # (0 + 1 + 2 + 3 + 4) / 2 / 5


def test_weights_are_those_of_the_definition() -> None:
    """With padding, in a tower that sees both sides."""
    model = model_of({"depth": 1}, causal=False)
    (row,) = attention(model, batch_of(valid=VALID)) or []
    seen: list[Tensor] = []
    hook = model.tower.functions["0"][0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(TOKENS, valid_BT=VALID)
    hook.remove()
    mixer: Attention = model.tower.functions["0"][0]
    sums, n = torch.zeros(3, 4), 0
    for b, length in enumerate((21, 15, 9, 2)):
        q, k = (project(seen[0][b, :length]).unflatten(-1, (4, 4)).detach() for project in (mixer.q, mixer.k))
        for t in range(length):
            n += 1
            for h in range(4):
                w = F.softmax(k[:, h] @ q[t, h] / 2, 0)
                H = -(w * w.log()).sum()
                far = (w * (torch.arange(length) - t).abs()).sum()
                sums[:, h] += torch.stack((H, H / math.log(length), far))
    for name, total in zip(("entropy", "relative", "distance"), sums, strict=True):
        near(torch.tensor(row[name]), total / n, 1e-5)


MIXERS = (
    "attention", "additive", "bigbird", "bilinear", "collaborative", "concat", "disentangled", "evolved_self",
    "fixup_attention", "gaussian", "grouped_query", "longformer", "rsa", "sliding_window", "synthesizer_dense",
    "synthesizer_dense_plus", "synthesizer_random", "transformer_xl", "weighted",
)  # fmt: skip


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("name", [*MIXERS, "linformer"])
def test_every_kind_of_softmax_attention_is_seen(name: str, padded: bool) -> None:
    """And what a padded batch has is what its rows have alone."""
    model = model_of({"sublayers": {"s": name}, "depth": 1}, causal=name != "linformer", max_len=64)
    found = attention(model, batch_of(valid=VALID if padded else None))
    assert found is not None
    (row,) = found
    heads = 8 if name == "evolved_self" else 4
    for values in (row["entropy"], row["relative"]):
        assert len(values) == heads and all(value > 0 for value in values)
    assert max(row["relative"]) <= 1 + 1e-12
    assert (row["distance"] is None) == (name == "linformer")
    if padded and name not in ("linformer", "bigbird"):
        lengths = VALID.sum(1).tolist()
        alone = [
            attention(model, Batch((TOKENS[b : b + 1, :n],), TARGETS[b : b + 1, :n])) for b, n in enumerate(lengths)
        ]
        skipped = int(name == "longformer")  # its first token is global
        counts = [n - skipped for n in lengths]
        for head in range(heads):
            mean = sum(each[0]["entropy"][head] * n for each, n in zip(alone, counts, strict=True)) / sum(counts)  # type: ignore[index]
            assert row["entropy"][head] == pytest.approx(mean, rel=1e-9)


def test_a_window_in_blocks_is_seen_whole() -> None:
    """Long rows are computed in blocks; even attention over a window of 4 has entropy log 4 and distance 1.5."""
    model = model_of({"sublayers": {"s": {"name": "sliding_window", "window": 4}}, "depth": 1}, max_len=300)
    mixer = model.tower.functions["0"][0]
    with torch.no_grad():
        mixer.q.weight.zero_()
        mixer.q.bias.zero_()
    tokens = TOKENS.repeat(1, 15)[:, :300]
    (row,) = attention(model, Batch((tokens,), tokens)) or []
    full, first = 297 * math.log(4), math.log(2) + math.log(3)
    assert row["entropy"] == pytest.approx([(full + first) / 300] * 4, rel=1e-12)
    assert row["distance"] == pytest.approx([(297 * 1.5 + 0.5 + 1.0) / 300] * 4, rel=1e-12)


def test_two_towers_and_repeated_layers_have_a_row_each() -> None:
    found = attention(model_of({"encoder": True}), Batch((TOKENS, TOKENS), TARGETS, VALID, {"valid_BS": VALID}))
    assert found is not None
    rows = [(row["tower"], row["layer"], row["component"]) for row in found]
    encoder = [("encoder", layer, "attention") for layer in (0, 1)]
    assert rows == encoder + [("decoder", layer, name) for layer in (0, 1) for name in ("attention", "cross")]
    assert [row["distance"] is None for row in found] == [False, False, False, True, False, True]
    shared = attention(model_of({"sharing": "all"}), batch_of())
    assert shared is not None and [row["layer"] for row in shared] == [0, 1]
    assert attention(model_of({"sublayers": {"s": "gru"}}), batch_of()) is None


# ---- in a trial


def test_a_model_is_left_as_it_was() -> None:
    """Modes and what is trained module by module, gradients, random state, attributes; whatever is raised."""
    model = model_of({"sublayers": RELU}, dropout=0.3).train()
    frozen, still = model.tower.functions["0"], model.tower.functions["1"][1]
    frozen.requires_grad_(False)
    still.eval()
    model.nll(TOKENS, TARGETS).mean().backward()

    def state() -> list[Any]:
        modules = [
            (module.training, set(module.__dict__), len(module._forward_pre_hooks)) for module in model.modules()
        ]
        parameters = [
            (each.requires_grad, None if each.grad is None else each.grad.sum()) for each in model.parameters()
        ]
        return [modules, parameters, torch.get_rng_state().tolist()]

    before, values = state(), [each.clone() for each in model.parameters()]
    batch = batch_of(valid=VALID)
    assert attention(model, batch) and gradients(model, batch) and activations(model, [batch])
    assert heads(model, [batch], [batch])
    broken = Batch((TOKENS,), TARGETS, None, {"valid_BT": VALID[:, :3]})
    for look in (attention, gradients, lambda model, batch: activations(model, [batch])):
        with pytest.raises((RuntimeError, IndexError)):
            look(model, broken)
    with undisturbed(model):
        torch.rand(3)
    assert state() == before
    assert all(torch.equal(one, other) for one, other in zip(values, model.parameters(), strict=True))


def test_the_specification_knows_them_by_name() -> None:
    assert set(LOOKS) == set(DIAGNOSTICS)
    one = parse(TrainSpec, {"diagnostics": ["heads", "gradients", "heads"]})
    assert one.diagnostics == ("gradients", "heads") and parse(TrainSpec, to_tree(one)) == one
    with pytest.raises(SpecError, match=r"unknown diagnostic 'head'; did you mean 'heads'.*known: activations,"):
        parse(TrainSpec, {"diagnostics": ["head"]})
    with pytest.raises(SpecError, match="'heads' is text"):
        parse(TrainSpec, {"diagnostics": "heads"})
    assert (
        spec().trial_id == spec({"train.diagnostics": []}).trial_id != spec({"train.diagnostics": ["heads"]}).trial_id
    )


@pytest.mark.parametrize(
    "settings", [{}, {"train.ema": 0.9}, {"train.precision": "bf16"}], ids=["fp32", "ema", "bf16"]
)
def test_looking_changes_no_number(settings: dict[str, Any], ledger: Ledger, other_ledger: Ledger) -> None:
    settings = {"train.dropout": 0.2, "arch.sublayers": RELU, **settings}
    plain = train(ledger, spec(settings))
    seen = train(other_ledger, spec({**settings, "train.diagnostics": list(DIAGNOSTICS)}))
    on_the_way = [row for row in seen.rows() if row["split"] == "train" and row["step"] < 12]
    assert [row["step"] for row in on_the_way] == [0, 1, 3]
    assert [row for row in seen.rows() if row not in on_the_way] == list(plain.rows())
    ours, theirs = (torch.load(each.weights)["model"] for each in (seen, plain))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    before, after = plain.record(), seen.record()
    assert before is not None and after is not None
    assert before["diagnostics"] == {} and before["metrics"] == after["metrics"]
    found = after["diagnostics"]
    assert set(found) == set(DIAGNOSTICS)
    for name in ("activations", "attention", "gradients"):
        assert found[name]["initial"] and found[name]["final"] and found[name]["initial"] != found[name]["final"]
    assert found["heads"]["initial"] is None and found["train_curve"]["initial"] is None
    assert set(found["train_curve"]["final"]) == {"train", "valid"}


def test_what_was_seen_at_first_survives_a_stop(ledger: Ledger, other_ledger: Ledger) -> None:
    trial = spec({"train.diagnostics": list(DIAGNOSTICS)})
    whole = train(ledger, trial)
    folder = other_ledger.trial(trial.trial_id)
    while folder.record() is None:
        under_way = run_trial(job(other_ledger, trial, progress_every_s=0))
        next(under_way)
        under_way.close()
    ours, theirs = folder.record(), whole.record()
    assert ours is not None and theirs is not None and len(folder.history()) > 10
    assert ours["diagnostics"] == theirs["diagnostics"]
    assert folder.metrics.read_bytes() == whole.metrics.read_bytes()


def test_models_without_layers_have_none(ledger: Ledger) -> None:
    record = train(ledger, spec({"arch.model": "ngram", "train.diagnostics": list(DIAGNOSTICS)})).record()
    assert record is not None and record["status"] == "finished"
    for name in ("activations", "attention", "gradients", "heads"):
        assert record["diagnostics"][name] == {"initial": None, "final": None}
