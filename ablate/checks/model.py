"""Checks of any model: shapes, gradients, building, saving, learning.

Parameters are jittered first and outputs are weighed with random numbers, because a sum after a LayerNorm has no
gradient, and zero-initialised branches hide everything behind them.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from ablate.build import build_on_meta
from ablate.contracts import Slot
from ablate.probe import probe, unused_parameters
from ablate.subject import CLASSES, EXACT, VOCAB, B, CheckFailed, Subject, T
from ablate.train.optim import decay_groups
from ablate.train.run import constrained

CHANCES = 8  # models in which a gradient may reach a parameter
LEARNED = 0.1  # of the loss that 30 steps on one batch must gain; a random guesser is at ln 13 = 2.56 nats


def check_documented(subject: Subject) -> None:
    """A docstring says what it computes, the decorator where that comes from."""
    if not subject.entry.doc.strip():
        raise CheckFailed("has no docstring")
    if not subject.entry.paper.strip():
        raise CheckFailed("names no paper")


def check_shape(subject: Subject) -> None:
    """The output has its form's shape and is finite; log-probabilities are normalised."""
    model = subject.model()
    y = subject.outputs(model)
    expected = {"tokens": (B, T, VOCAB), "pair": (B, T, VOCAB), "denoise": subject.inputs(model)[0].shape}
    if tuple(y.shape) != tuple(expected.get(subject.form, (B, CLASSES))):
        raise CheckFailed(f"gives shape {tuple(y.shape)} for {tuple(expected.get(subject.form, (B, CLASSES)))}")
    if not y.isfinite().all():
        raise CheckFailed("gives values that are not finite")
    total = y.double().exp().sum(-1)
    if subject.form != "denoise" and not torch.allclose(total, torch.ones_like(total), atol=1e-6):
        raise CheckFailed("probabilities do not sum to 1")


def check_gradient(subject: Subject) -> None:
    """Every parameter gets a gradient, and the gradient is finite.

    Those of a component that says that a token uses a part of them alone (`idle_parameters`) get a few more
    chances, with other values and inputs: an expert may find no token among so few.
    """
    silent = _silent(subject, 0)
    sparse = _sparse(subject.build())
    for seed in range(1, CHANCES):
        if not silent or not all(name.startswith(sparse) for name in silent):
            break
        also = _silent(subject, seed)
        silent = [name for name in silent if name in also]
    if silent:
        raise CheckFailed(f"no gradient reaches {', '.join(silent)}")


def _sparse(model: Any) -> tuple[str, ...]:
    """Where the parameters lie of components that use a part of them for a token."""
    parts = [(name, part) for name, part in model.named_modules() if isinstance(part, Slot)]
    return tuple(f"{name}." for name, part in parts if part.idle_parameters())


def _silent(subject: Subject, seed: int) -> list[str]:
    """The parameters that get no gradient, or a gradient of zeros."""
    model = subject.model(seed=seed)
    y = subject.outputs(model, *subject.inputs(model, seed))
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=y.dtype)
    (y * weights).sum().backward()
    silent = unused_parameters(model)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            if not parameter.grad.isfinite().all():
                raise CheckFailed(f"the gradient of {name} is not finite")
            if not parameter.grad.any():
                silent.append(name)
    return silent


def check_rows(subject: Subject) -> None:
    """A row's output does not depend on the other rows of its batch, in either mode. A component that is declared
    to couple rows does so in training, and never in evaluation."""
    model = subject.model()
    inputs = subject.inputs(model)
    others = subject.inputs(model, 50)
    changed = tuple(torch.cat((one[:1], other[1:])) for one, other in zip(inputs, others, strict=True))
    coupled = any(getattr(module, "couples_rows", False) for module in model.modules())
    for training in (False, True):
        model.train(training)
        with torch.no_grad():
            difference = (subject.outputs(model, *changed) - subject.outputs(model, *inputs))[0].abs().max().item()
        if difference > EXACT and not (coupled and training):
            raise CheckFailed(f"rows of a batch are not independent: the others move the first by {difference:.2g}")
    if coupled and difference <= EXACT:
        raise CheckFailed("is declared to couple rows in training, but none depends on another")


def check_meta(subject: Subject) -> None:
    """The model built without values, which is what costs are counted on, has the same parameters."""
    meta = build_on_meta(subject.arch, VOCAB, T, subject.entry.causal, **subject.shape)
    real = {name: tuple(parameter.shape) for name, parameter in subject.build().named_parameters()}
    counted = {name: tuple(parameter.shape) for name, parameter in meta.named_parameters()}
    if real != counted:
        names = sorted(set(real.items()) ^ set(counted.items()))
        raise CheckFailed(f"parameters differ between meta and CPU: {names[:3]}")


def check_deterministic(subject: Subject) -> None:
    """Two builds with one seed are equal bit for bit, and so are two forward passes; another seed differs."""
    one, two = (subject.build(seed=7).eval() for _ in range(2))
    if not all(bool(parameter.isfinite().all()) for parameter in one.parameters()):
        raise CheckFailed("some parameter is not finite when built")
    for (name, p), q in zip(one.named_parameters(), two.parameters(), strict=True):
        if not torch.equal(p, q):
            raise CheckFailed(f"two builds with one seed differ in {name}")
    for model in (one, two):
        _fit(model, subject)
    with torch.no_grad():
        if not torch.equal(subject.outputs(one), subject.outputs(two)):
            raise CheckFailed("two forward passes differ")
    parameters = list(one.parameters())
    other = subject.build(seed=8)
    if parameters and all(torch.equal(p, q) for p, q in zip(parameters, other.parameters(), strict=True)):
        raise CheckFailed("another seed gives the same parameters")


def check_state_dict(subject: Subject) -> None:
    """Saved and loaded parameters give the same outputs."""
    model = subject.model()
    other = subject.build(seed=9).double().eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        if not torch.equal(subject.outputs(model), subject.outputs(other)):
            raise CheckFailed("saved and loaded parameters give other outputs")


def check_bf16(subject: Subject) -> None:
    """Forward and backward run under bfloat16 autocast, stay finite, and agree with float32 coarsely."""
    model = subject.model(torch.float32, jitter=False)
    with torch.no_grad():
        expected = subject.nll(model).mean().item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = subject.nll(model).mean()
    loss.backward()
    if not all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None):
        raise CheckFailed("gradients are not finite under bfloat16")
    if not abs(loss.item() - expected) < 0.05:
        raise CheckFailed(f"the loss is {loss.item():.4f} under bfloat16, {expected:.4f} in float32")


def check_learns(subject: Subject) -> None:
    """Thirty steps on one batch lower the loss."""
    model = subject.model(torch.float32, jitter=False).train()
    losses = train_steps(model, torch.optim.AdamW(decay_groups(model, 0.0), lr=1e-2), subject)
    if not losses[-1] < losses[0] - LEARNED:
        raise CheckFailed(f"30 steps on one batch take the loss from {losses[0]:.3f} to {losses[-1]:.3f}")


def check_resume(subject: Subject) -> None:
    """Two steps, saved, loaded into a fresh model, and two more: bit for bit what four steps give."""
    model = subject.model(torch.float32, jitter=False).train()
    optimizer = torch.optim.AdamW(decay_groups(model, 0.0), lr=1e-2)
    train_steps(model, optimizer, subject, 2)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    expected = train_steps(model, optimizer, subject, 2)
    other = subject.build(seed=9).train()
    fresh = torch.optim.AdamW(decay_groups(other, 0.0), lr=1e-2)
    other.load_state_dict(saved[0])
    fresh.load_state_dict(saved[1])
    if train_steps(other, fresh, subject, 2) != expected:
        raise CheckFailed("a model that goes on from its saved state takes other steps")


def train_steps(model: Any, optimizer: torch.optim.Optimizer, subject: Subject, steps: int = 30) -> list[float]:
    """The loss before so many steps on one batch, and after them."""
    losses = []
    for step in range(steps + 1):
        optimizer.zero_grad()
        torch.manual_seed(step)
        loss: Tensor = subject.nll(model).mean()
        losses.append(loss.item())
        if step < steps:
            loss.backward()
            optimizer.step()
            for module in constrained(model):
                module.after_step((step + 1) / steps)
    return losses


def check_effect(subject: Subject) -> None:
    """Nothing that is configured goes unused: position hooks are called, parameters count."""
    probe(subject.arch, VOCAB, T, subject.entry.causal, **subject.shape)


def check_normalised(subject: Subject) -> None:
    """A head's nll is the negative logarithm of its probabilities, and its objective without extras is nll."""
    model = subject.model()
    x, ctx = model(*subject.inputs(model))
    y = subject.targets(model)
    given = (x, ctx) if subject.form == "classify" else (x,)
    log_probs, nll = model.head.log_probs(*given), model.head.nll(*given, y)
    expected = -log_probs.gather(-1, y[..., None])[..., 0]
    if not torch.allclose(nll.double(), expected.double(), atol=1e-5):
        raise CheckFailed("nll is not -log_probs of the target")
    loss, plain = model.head.objective(*given, y, 0.0, 0.0)
    if not (torch.equal(loss, plain) and torch.allclose(plain.double(), nll.double(), atol=1e-6)):
        raise CheckFailed("the objective without label smoothing and z-loss is not nll")


def check_fits(subject: Subject) -> None:
    """A model that is fitted by counting says something else, and better, of what it was fitted to."""
    model = subject.build().double().eval()
    read = subject.inputs(model)[-1]
    before = model.nll(read[:, :-1], read[:, 1:]).mean().item()
    _fit(model, subject)
    after = model.nll(read[:, :-1], read[:, 1:]).mean().item()
    if not after < before - LEARNED:
        raise CheckFailed(f"counting takes the loss from {before:.3f} to {after:.3f}")


def _fit(model: Any, subject: Subject) -> None:
    if getattr(model, "fitted", False):
        model.fit(torch.cat(subject.inputs(model), 1).flatten())
