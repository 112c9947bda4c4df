"""Fine-tuning: it begins from the parent's weights, and every option does what its definition says."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import job, plan_of, spec, train
from torch import Tensor, nn

from ablate import registry
from ablate.build import build_model
from ablate.errors import SpecError, UserError
from ablate.run.ledger import Ledger
from ablate.spec import ArchSpec, Component, TrialSpec
from ablate.train.finetune import DecayToStart, Mixout, distances, mixed, top_layers
from ablate.train.optim import decay_groups
from ablate.train.run import TrainingRun
from ablate.train.start import load_weights
from ablate.train.trial import run_trial

CPU = torch.device("cpu")
BASE = {"arch.depth": 3}
OPTIONS: dict[str, dict[str, Any]] = {
    "layer_decay": {"layer_decay": 0.5},
    "reinit_layers": {"reinit_layers": 2},
    "decay_to": {"decay_to": "start", "weight_decay": 0.5},
    "mixout": {"mixout": 0.3},
    "bias_correction": {"optimizer": Component("adamw", (("bias_correction", False),))},
    "L2 bias_correction": {"optimizer": Component("adam", (("bias_correction", False),))},
    "all": {"layer_decay": 0.9, "reinit_layers": 1, "decay_to": "start", "mixout": 0.2, "accumulate": 2, "ema": 0.9},
}


def fine(parent: TrialSpec, **options: Any) -> TrialSpec:
    """A second stage of a trial, with these training options."""
    return replace(parent, seed=5, parent=parent.trial_id, train=replace(parent.train, **options))


def start_of(ledger: Ledger, trial: TrialSpec) -> TrainingRun:
    return TrainingRun(trial, CPU, ledger.cache, ledger.trial(trial.parent or "").weights)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_stopped_stage_goes_on_with_the_same_numbers(
    options: dict[str, Any], ledger: Ledger, other_ledger: Ledger
) -> None:
    parent = spec(BASE)
    for each in (ledger, other_ledger):
        train(each, parent)
    trial = fine(parent, **options)
    whole = train(ledger, trial)
    stopped = 0
    while other_ledger.trial(trial.trial_id).record() is None and stopped < 9:
        under_way = run_trial(job(other_ledger, trial, progress_every_s=0))
        for _ in range(3):
            next(under_way, None)
        under_way.close()
        stopped += 1
    assert stopped > 3
    again = other_ledger.trial(trial.trial_id)
    assert again.metrics.read_bytes() == whole.metrics.read_bytes()
    mine, theirs = load_weights(again.weights), load_weights(whole.weights)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_every_option_changes_what_is_learned(ledger: Ledger) -> None:
    parent = spec(BASE)
    train(ledger, parent)
    plain = train(ledger, fine(parent)).metrics.read_bytes()
    for options in OPTIONS.values():
        trial = fine(parent, **options)
        assert trial.trial_id != fine(parent).trial_id
        assert train(ledger, trial).metrics.read_bytes() != plain


def test_training_begins_from_exactly_the_weights_of_its_parent(ledger: Ledger) -> None:
    parent = spec(BASE)
    end = [row for row in train(ledger, parent).rows() if row["split"] == "valid"][-1]
    folder = train(ledger, fine(parent, eval_tokens=128))  # as many as the parent's last evaluation has
    first = next(row for row in folder.rows() if row["split"] == "valid")
    assert first["step"] == 0 and first["loss"] == end["loss"]
    weights = load_weights(ledger.trial(parent.trial_id).weights)
    for options in ({}, OPTIONS["mixout"], OPTIONS["layer_decay"], OPTIONS["decay_to"]):
        run = start_of(ledger, fine(parent, **options))
        assert all(torch.equal(value, weights[name]) for name, value in run.model.state_dict().items())


def test_the_top_layers_begin_afresh(ledger: Ledger) -> None:
    parent = spec(BASE)
    train(ledger, parent)
    trial = fine(parent, reinit_layers=2)
    run = start_of(ledger, trial)
    weights = load_weights(ledger.trial(parent.trial_id).weights)
    fresh = build_model(trial.arch, run.task.vocab, run.task.max_len, seed=trial.seed).state_dict()
    afresh = set()
    for name, value in run.model.state_dict().items():
        from_top = name.startswith(("tower.functions.1.", "tower.functions.2.", "tower.residuals.1."))
        from_top = from_top or name.startswith(("tower.residuals.2.", "tower.final_norm."))
        assert torch.equal(value, fresh[name] if from_top else weights[name]), name
        afresh |= {name} if from_top else set()
    assert any("functions.0" in name for name in weights) and run.begun is not None
    assert set(run.begun["fresh"]) == afresh == top_layers(run.model, 2)
    assert not top_layers(run.model, 0)


def test_both_towers_of_an_encoder_decoder_get_fresh_tops() -> None:
    model = build_model(ArchSpec(d_model=8, n_heads=2, depth=2, encoder=True, encoder_depth=3), 11, 6)
    tops = {name.split(".residuals")[0].split(".functions")[0] for name in top_layers(model, 1)}
    assert {"encoder.tower", "decoder.tower"} <= tops
    layers = {tuple(name.split(".")[:4]) for name in top_layers(model, 1) if "functions" in name}
    assert layers == {("encoder", "tower", "functions", "2"), ("decoder", "tower", "functions", "1")}


# ---- rates by depth


def named_distances(model: nn.Module) -> dict[str, int]:
    found = distances(model)
    return {name: found[parameter] for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("head", ["softmax", "classify"])
def test_rates_fall_from_the_head_to_the_embeddings(head: str) -> None:
    classes = {"classes": 4} if head == "classify" else {}
    head_part = Component(head, () if classes else (("tied", False),))
    model = build_model(ArchSpec(d_model=8, n_heads=2, depth=3, head=head_part), 11, 6, **classes)
    for name, below in named_distances(model).items():
        part, *rest = name.split(".")
        expected = {"embedding": 4, "position": 4, "head": 0, "tower": 1}[part]
        if part == "tower" and rest[0] in ("functions", "residuals"):
            expected = 3 - int(rest[1])
        assert below == expected, name


def test_each_tower_of_an_encoder_decoder_counts_its_own_layers() -> None:
    arch = ArchSpec(d_model=8, n_heads=2, depth=2, encoder=True, encoder_depth=3)
    found = named_distances(build_model(arch, 11, 6))
    assert found["decoder.embedding.table.weight"] == 3  # shared by both
    assert found["encoder.position.table"] == 4 and found["decoder.position.table"] == 3
    tops = [name for name, below in found.items() if below == 1 and "functions" in name]
    assert {tuple(name.split(".")[:4]) for name in tops} == {
        ("encoder", "tower", "functions", "2"),
        ("decoder", "tower", "functions", "1"),
    }
    assert {found[name] for name in found if name.startswith("encoder.tower.functions.0.")} == {3}


def test_a_step_of_sgd_goes_as_far_as_the_layer_says(token_cache: Path) -> None:
    sgd = {"train.optimizer": {"name": "sgd", "momentum": 0.0}, "train.schedule": "constant", "train.clip": None}
    made = {
        rate: TrainingRun(
            spec({**BASE, **sgd, "train.weight_decay": 0.0, "train.layer_decay": rate}), CPU, token_cache
        )
        for rate in (1.0, 0.5)
    }
    start = {name: value.detach().clone() for name, value in made[1.0].model.named_parameters()}
    for run in made.values():
        run.train_step()
    whole, slow = (dict(run.model.named_parameters()) for run in made.values())
    below = named_distances(made[0.5].model)
    assert set(below.values()) == {1, 2, 3, 4}
    for name, value in start.items():
        torch.testing.assert_close(
            slow[name] - value, (whole[name] - value) * 0.5 ** below[name], rtol=2e-2, atol=1e-7
        )


# ---- mixout


def test_mixout_is_the_paper_s_equation() -> None:
    w, w0 = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([5.0, 6.0, 7.0])
    kept = torch.tensor([True, False, True])
    p = 0.25
    by_hand = torch.tensor([(1 - p * 5) / (1 - p), (6 - p * 6) / (1 - p), (3 - p * 7) / (1 - p)])
    torch.testing.assert_close(mixed(w, w0, kept, p), by_hand)
    torch.testing.assert_close(by_hand[1], w0[1])  # a weight that is replaced is the pre-trained one


def test_mixout_gives_the_gradient_of_its_definition() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    mixout = Mixout(model, {"0.weight", "0.bias"}, 0.4, seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, dtype=torch.float64))  # what training did since
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    x = torch.randn(6, 5, dtype=torch.float64)
    mixout.mix(7)
    (kept,) = mixout.kept
    assert 0 < kept.sum() < kept.numel()
    model(x).square().mean().backward()
    mixout.unmix()
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    leaves = {name: value.clone().requires_grad_() for name, value in before.items()}
    put = {**leaves, "0.weight": mixed(leaves["0.weight"], mixout.start[0], kept, 0.4)}
    torch.func.functional_call(model, put, (x,)).square().mean().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, leaves[name].grad)
    assert (parameter_grad(model, "0.weight")[~kept] == 0).all()


def parameter_grad(model: nn.Module, name: str) -> Tensor:
    grad = dict(model.named_parameters())[name].grad
    assert grad is not None
    return grad


def test_masks_depend_on_the_seed_and_the_step_alone() -> None:
    def masks(seed: int, step: int) -> Tensor:
        mixout = Mixout(nn.Sequential(nn.Linear(40, 50)), {"0.weight"}, 0.3, seed)
        torch.rand(seed + step + 1)
        mixout.mix(step)
        return mixout.kept[0]

    assert torch.equal(masks(1, 2), masks(1, 2))
    assert not torch.equal(masks(1, 2), masks(1, 3)) and not torch.equal(masks(1, 2), masks(2, 2))
    assert masks(1, 2).float().mean() == pytest.approx(0.7, abs=0.04)  # 2,000 draws: four deviations


def test_mixout_is_on_the_matrices_of_the_parent_and_never_in_evaluation(ledger: Ledger) -> None:
    parent = spec(BASE)
    train(ledger, parent)
    run = start_of(ledger, fine(parent, mixout=0.5, reinit_layers=1))
    assert run.mixout is not None
    names = {id(value): name for name, value in run.model.named_parameters()}
    mixed_names = {names[id(weight)] for weight in run.mixout.weights}
    assert mixed_names == {
        name
        for name, value in run.model.named_parameters()
        if name.startswith(("tower.functions.0.", "tower.functions.1.")) and value.ndim == 2
    }
    plain = start_of(ledger, fine(parent, reinit_layers=1))
    assert run.evaluate("valid", False) == plain.evaluate("valid", False)


# ---- decay to the start


def test_decay_to_the_start_is_decoupled_from_any_optimizer() -> None:
    for name in ("adamw", "adam", "sgd"):
        torch.manual_seed(0)
        model = nn.Linear(3, 2).double()
        other = copy.deepcopy(model)
        groups = decay_groups(model, 0.5)
        decay = DecayToStart(groups)
        start = [parameter.detach().clone() for parameter in model.parameters()]
        pair = [
            registry.make("optimizer", Component(name)).build(each, 0.1)
            for each in (groups, decay_groups(other, 0.0))
        ]
        x = torch.randn(4, 3, dtype=torch.float64)
        for step in range(3):
            for each, optimizer in zip((model, other), pair, strict=True):
                optimizer.zero_grad()
                with torch.no_grad():
                    each.weight.copy_(each.weight)
                each(x).square().sum().backward()
            before = model.weight.detach().clone()
            own = model.weight.grad
            for theirs, mine in zip(other.parameters(), model.parameters(), strict=True):
                theirs.grad = None if mine.grad is None else mine.grad.clone()
                theirs.data.copy_(mine.data)
            decay.pull(0.1)
            for optimizer in pair:
                optimizer.step()
            pulled = 0.1 * 0.5 * (before - start[0])
            torch.testing.assert_close(model.weight, other.weight - pulled)
            torch.testing.assert_close(model.bias, other.bias)  # vectors are left alone
            assert own is not None and (step == 0) == bool((pulled == 0).all())


# ---- Adam without bias correction


@pytest.mark.parametrize("name", ["adamw", "adam"])
def test_adam_without_bias_correction_by_hand(name: str) -> None:
    lr, decay, beta1, beta2, eps = 0.1, 0.3, 0.8, 0.9, 1e-3
    options = (("beta1", beta1), ("beta2", beta2), ("bias_correction", False), ("eps", eps))
    w = nn.Parameter(torch.tensor([[2.0, -1.0]], dtype=torch.float64))
    idle = nn.Parameter(torch.ones(1, 1))
    groups = [{"params": [w, idle], "weight_decay": decay}]
    optimizer = registry.make("optimizer", Component(name, options)).build(groups, lr)
    value, m, v = w.detach().clone(), torch.zeros(1, 2).double(), torch.zeros(1, 2).double()
    for step in range(3):
        gradient = torch.tensor([[1.0, -0.5]], dtype=torch.float64) * (step + 1)
        w.grad = gradient.clone()
        optimizer.step()
        g = gradient + decay * value if name == "adam" else gradient
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        value = value * (1 - lr * decay if name == "adamw" else 1) - lr * m / (v.sqrt() + eps)
        torch.testing.assert_close(w.detach(), value)
    assert torch.equal(idle, torch.ones(1, 1))  # without a gradient


# ---- what is refused


@pytest.mark.parametrize(
    "settings, problem",
    [
        ({"train.reinit_layers": 1}, "train.reinit_layers: 1 is for a stage that begins"),
        ({"train.mixout": 0.1}, "train.mixout: 0.1 is for a stage that begins"),
        ({"train.decay_to": "start"}, "train.decay_to: 'start' is for a stage that begins"),
        ({"train.mixout": 1.0}, "train.mixout: 1.0 must be at least 0 and below 1"),
        ({"train.layer_decay": 0.0}, "train.layer_decay: 0.0 must be above 0"),
        ({"train.layer_decay": 1.1}, "train.layer_decay: 1.1 must be above 0"),
        ({"train.reinit_layers": -1}, "train.reinit_layers: -1 must not be negative"),
        ({"train.decay_to": "zeros"}, "train.decay_to: unknown value 'zeros'"),
        ({"train.layer_decay": 0.9, "arch.model": "nnlm"}, "model 'nnlm' is not made of layers"),
    ],
)
def test_what_cannot_be_is_refused_by_name(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(SpecError) as raised:
        spec(settings)
    assert problem in str(raised.value)


def test_more_layers_than_there_are_and_shared_ones_are_refused() -> None:
    parent = spec(BASE)
    with pytest.raises(SpecError, match="4 is more than the tower's 3 layers"):
        fine(parent, reinit_layers=4)
    shared = spec({**BASE, "arch.sharing": "all"})
    with pytest.raises(SpecError, match="share weights"):
        fine(shared, reinit_layers=1)


GRID = """\
study: tuned
base:
  arch: {d_model: 16, n_heads: 2, depth: 2, position: learned}
  data: {corpus: kjv, tokenizer: bytes, seq_len: 16}
  train: {tokens: 1024, batch_tokens: 256}
variants: {plain: {}}
stages:
  first: {%s}
  second: {axes: {train.layer_decay: [1.0, 0.9], train.mixout: [0.0, 0.1]}, train.decay_to: start}
"""


def test_options_are_axes_of_a_stage_that_has_a_parent(tmp_path: Path, token_cache: Path) -> None:
    rows = [row for row in plan_of(GRID % "", tmp_path, token_cache).rows if row.stage == "second"]
    found = {(row.spec.train.layer_decay, row.spec.train.mixout, row.spec.train.decay_to) for row in rows}
    assert found == {(a, b, "start") for a in (1.0, 0.9) for b in (0.0, 0.1)}
    with pytest.raises(UserError, match=r"first\.train\.mixout.* for a stage that begins from a trained model"):
        plan_of(GRID % "train.mixout: 0.2", tmp_path, token_cache)
