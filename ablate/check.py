"""Contract checks: what every component must satisfy, run by `ablate check` and by the tests over the registry.

A component is put into its slot of a small model and the model is probed. Parameters are jittered first and
outputs are weighed with random numbers, because a sum after a LayerNorm has no gradient, and zero-initialised
branches hide everything behind them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ablate import registry
from ablate.build import TokenModel, build_model, build_on_meta
from ablate.contracts import Cache
from ablate.errors import UserError
from ablate.probe import probe, unused_parameters
from ablate.spec import ArchSpec, Component
from ablate.subject import VOCAB, B, Subject, T, subjects, tokens
from ablate.train.optim import decay_groups

EXACT = 1e-9  # in float64: larger differences are information, not rounding
LEARNED = 0.1  # nats that 30 steps on one batch must gain; a random guesser is at ln 13 = 2.56


class CheckFailed(AssertionError):
    """A component breaks a contract; the message says how."""


def check_documented(subject: Subject) -> None:
    """A docstring says what it computes, the decorator where that comes from."""
    if not subject.entry.doc.strip():
        raise CheckFailed("has no docstring")
    if not subject.entry.paper.strip():
        raise CheckFailed("names no paper")


def check_shape(subject: Subject) -> None:
    """log_probs is (B, T, V) and finite, at full length and at length 1."""
    model = subject.model()
    for length in (T, 1):
        y = model.log_probs(tokens()[:, :length])
        if tuple(y.shape) != (B, length, VOCAB):
            raise CheckFailed(f"gives shape {tuple(y.shape)} for {(B, length, VOCAB)}")
        if not y.isfinite().all():
            raise CheckFailed("gives values that are not finite")


def check_gradient(subject: Subject) -> None:
    """Every parameter gets a gradient, and the gradient is finite."""
    model = subject.model()
    y = model.log_probs(tokens())
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=y.dtype)
    (y * weights).sum().backward()
    silent = unused_parameters(model)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            if not parameter.grad.isfinite().all():
                raise CheckFailed(f"the gradient of {name} is not finite")
            if not parameter.grad.any():
                silent.append(name)
    if silent:
        raise CheckFailed(f"no gradient reaches {', '.join(silent)}")


def check_causal(subject: Subject) -> None:
    """A causal component shows no output before a changed token, in evaluation and in training mode; one that is
    declared `causal=False` does."""
    model = subject.model()
    middle = T // 2
    changed = tokens()
    changed[:, middle] = (changed[:, middle] + 1) % VOCAB
    leak = 0.0
    for mode in (False, True):
        model.train(mode)
        with torch.no_grad():
            difference = (model.log_probs(changed) - model.log_probs(tokens())).abs()
        leak = max(leak, difference[:, :middle].max().item())
    if subject.entry.causal and leak > EXACT:
        raise CheckFailed(f"sees the future: a change of token {middle} moves earlier outputs by {leak:.2g}")
    if not subject.entry.causal and leak <= EXACT:
        raise CheckFailed("is declared causal=False, but no output depends on a later token")


def check_mixes(subject: Subject) -> None:
    """A mixer carries information forward in time."""
    model = subject.model()
    changed = tokens()
    changed[:, 0] = (changed[:, 0] + 1) % VOCAB
    with torch.no_grad():
        difference = (model.log_probs(changed) - model.log_probs(tokens())).abs()
    if difference[:, 1:].max().item() <= EXACT:
        raise CheckFailed("no output depends on an earlier token: it is a channel, not a mixer")


def check_pointwise(subject: Subject) -> None:
    """A channel's output at a time depends on its input at that time alone, in either mode."""
    arch = subject.arch
    letter = next(letter for letter, part in arch.sublayers if part == subject.component)
    model = build_model(replace(arch, order=letter, position=Component("none")), VOCAB, T).double().eval()
    changed = tokens()
    changed[:, 3] = (changed[:, 3] + 1) % VOCAB
    for mode in (False, True):
        model.train(mode)
        with torch.no_grad():
            difference = (model.log_probs(changed) - model.log_probs(tokens())).abs().amax((0, 2))
        others = torch.cat((difference[:3], difference[4:])).max().item()
        if others > EXACT:
            raise CheckFailed(f"is not pointwise in time: a change at 3 moves other times by {others:.2g}")


def check_rows(subject: Subject) -> None:
    """A sequence's output does not depend on the other sequences of its batch, in either mode."""
    model = subject.model()
    changed = tokens()
    changed[1:] = (changed[1:] + 1) % VOCAB
    for mode in (False, True):
        model.train(mode)
        with torch.no_grad():
            difference = (model.log_probs(changed) - model.log_probs(tokens()))[0].abs().max().item()
        if difference > EXACT:
            raise CheckFailed(f"rows of a batch are not independent: the others move the first by {difference:.2g}")


def check_meta(subject: Subject) -> None:
    """The model built without values, which is what costs are counted on, has the same parameters."""
    meta = build_on_meta(subject.arch, VOCAB, T, subject.entry.causal)
    real = {name: tuple(parameter.shape) for name, parameter in subject.model().named_parameters()}
    counted = {name: tuple(parameter.shape) for name, parameter in meta.named_parameters()}
    if real != counted:
        names = sorted(set(real.items()) ^ set(counted.items()))
        raise CheckFailed(f"parameters differ between meta and CPU: {names[:3]}")


def check_deterministic(subject: Subject) -> None:
    """Two builds with one seed are equal bit for bit, and so are two forward passes; another seed differs."""
    one, two = (build_model(subject.arch, VOCAB, T, seed=7, causal=subject.entry.causal).eval() for _ in range(2))
    for (name, p), q in zip(one.named_parameters(), two.parameters(), strict=True):
        if not torch.equal(p, q):
            raise CheckFailed(f"two builds with one seed differ in {name}")
    with torch.no_grad():
        if not torch.equal(one.log_probs(tokens()), two.log_probs(tokens())):
            raise CheckFailed("two forward passes differ")
    if not all(bool(parameter.isfinite().all()) for parameter in one.parameters()):
        raise CheckFailed("some parameter is not finite when built")
    other = build_model(subject.arch, VOCAB, T, seed=8, causal=subject.entry.causal)
    if all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True)):
        raise CheckFailed("another seed gives the same parameters")


def check_state_dict(subject: Subject) -> None:
    """Saved and loaded parameters give the same outputs."""
    model = subject.model()
    other = build_model(subject.arch, VOCAB, T, seed=9, causal=subject.entry.causal).double().eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        if not torch.equal(model.log_probs(tokens()), other.log_probs(tokens())):
            raise CheckFailed("saved and loaded parameters give other outputs")


def check_bf16(subject: Subject) -> None:
    """Forward and backward run under bfloat16 autocast, stay finite, and agree with float32 coarsely."""
    model = subject.model(torch.float32, jitter=False)
    with torch.no_grad():
        expected = model.nll(tokens(), tokens(1)).mean().item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.nll(tokens(), tokens(1)).mean()
    loss.backward()
    if not all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None):
        raise CheckFailed("gradients are not finite under bfloat16")
    if not abs(loss.item() - expected) < 0.05:
        raise CheckFailed(f"the loss is {loss.item():.4f} under bfloat16, {expected:.4f} in float32")


def check_learns(subject: Subject) -> None:
    """Thirty steps on one batch lower the loss."""
    model = subject.model(torch.float32, jitter=False).train()
    first, last = train_steps(model, torch.optim.AdamW(decay_groups(model, 0.0), lr=1e-2))
    if not last < first - LEARNED:
        raise CheckFailed(f"30 steps on one batch take the loss from {first:.3f} to {last:.3f}")


def train_steps(model: TokenModel, optimizer: torch.optim.Optimizer, steps: int = 30) -> tuple[float, float]:
    """Loss before and after so many steps on one batch."""
    losses = []
    for _ in range(steps + 1):
        optimizer.zero_grad()
        loss = model.nll(tokens(), tokens(1)).mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    return losses[0], losses[-1]


def check_effect(subject: Subject) -> None:
    """Nothing that is configured goes unused: position hooks are called, parameters count."""
    probe(subject.arch, VOCAB, T, subject.entry.causal)


def check_cache(subject: Subject) -> None:
    """Decoding step by step gives what the full forward pass gives; in pieces of several tokens too."""
    model = subject.model()
    with torch.no_grad():
        full = model.log_probs(tokens())
        for piece in (1, 5):
            cache = Cache()
            parts = [model.log_probs(tokens()[:, start : start + piece], cache) for start in range(0, T, piece)]
            difference = (torch.cat(parts, 1) - full).abs().max().item()
            if not difference <= EXACT:
                raise CheckFailed(f"decoding {piece} tokens at a time differs from the full pass by {difference:.2g}")


def check_normalised(subject: Subject) -> None:
    """A head's probabilities sum to 1, nll is their negative logarithm, and the objective without extras is nll."""
    model = subject.model()
    x, _ = model(tokens())
    y = tokens(1)
    log_probs = model.head.log_probs(x)
    total = log_probs.exp().sum(-1)
    if not torch.allclose(total, torch.ones_like(total), atol=1e-6):
        raise CheckFailed("probabilities do not sum to 1")
    nll = model.head.nll(x, y)
    expected = -log_probs.gather(-1, y[..., None])[..., 0]
    if not torch.allclose(nll.double(), expected.double(), atol=1e-5):
        raise CheckFailed("nll is not -log_probs of the target")
    loss, plain = model.head.objective(x, y, 0.0, 0.0)
    if not (torch.equal(loss, plain) and torch.allclose(plain.double(), nll.double(), atol=1e-6)):
        raise CheckFailed("the objective without label smoothing and z-loss is not nll")


def check_optimises(subject: Subject) -> None:
    """An optimizer lowers the loss of a small model in thirty steps on one batch."""
    model = build_model(ArchSpec(d_model=16, depth=2), VOCAB, T).train()
    optimizer = registry.make("optimizer", subject.component).build(decay_groups(model, 0.1), 3e-2)
    first, last = train_steps(model, optimizer)
    if not last < first - LEARNED:
        raise CheckFailed(f"30 steps on one batch take the loss from {first:.3f} to {last:.3f}")


def check_factors(subject: Subject) -> None:
    """A schedule's factors lie in [0, 1] and reach 1, in a run of any length."""
    schedule = registry.make("schedule", subject.component)
    for steps in (1, 2, 10, 1000):
        factors = [schedule.factor(step, steps) for step in range(steps)]
        if not all(0 <= factor <= 1 + 1e-12 for factor in factors):
            raise CheckFailed(f"factors leave [0, 1] in a run of {steps} steps")
        if steps > 2 and max(factors) < 1 - 1e-9:
            raise CheckFailed(f"the factor never reaches 1 in a run of {steps} steps")


def check_round_trip(subject: Subject) -> None:
    """A tokenizer's ids lie in its vocabulary, what it decodes encodes to the same ids, its state is all of it."""
    if any(option.name == "path" for option in subject.entry.options):
        return  # cannot be made without a user's file
    tokenizer = registry.make("tokenizer", subject.component)
    text = "In the beginning, é 語 was\nthe  word; and the word was.\n"
    tokenizer.train([text, text])
    restored = registry.make("tokenizer", subject.component)
    restored.restore(tokenizer.state())
    for made in (tokenizer, restored):
        ids = made.encode(text)
        if not (0 <= ids.min() and ids.max() < made.vocab):
            raise CheckFailed(f"ids {ids.min()}..{ids.max()} leave the vocabulary of {made.vocab}")
        if made.encode(made.decode(ids.tolist())).tolist() != ids.tolist():
            raise CheckFailed("what it decodes does not encode to the same ids")
    if restored.encode(text).tolist() != tokenizer.encode(text).tolist():
        raise CheckFailed("restored from its state, it encodes to other ids")


Check = Callable[[Subject], None]
EVERYWHERE: tuple[Check, ...] = (
    check_documented,
    check_shape,
    check_gradient,
    check_causal,
    check_rows,
    check_meta,
    check_deterministic,
    check_state_dict,
    check_bf16,
    check_learns,
    check_effect,
)
BY_SLOT: dict[str, tuple[Check, ...]] = {
    "mixer": (check_mixes,),
    "channel": (check_pointwise,),
    "head": (check_normalised,),
    "optimizer": (check_optimises,),
    "schedule": (check_factors,),
    "tokenizer": (check_round_trip,),
}


def checks_for(subject: Subject) -> tuple[Check, ...]:
    """The checks that apply to a component."""
    if subject.entry.slot not in registry.SLOTS:
        return (check_documented, *BY_SLOT.get(subject.entry.slot, ()))
    cached = (check_cache,) if subject.entry.causal else ()
    return EVERYWHERE + cached + BY_SLOT.get(subject.entry.slot, ())


def check_components(name: str | None = None, say: Callable[[str], None] | None = None) -> list[dict[str, Any]]:
    """Run all checks on every component, or on those of one name. Raises `UserError` for an unknown name."""
    results = []
    torch.set_num_threads(1)
    for subject in subjects(name):
        failed: dict[str, str] = {}
        passed = []
        for check in checks_for(subject):
            label = check.__name__.removeprefix("check_")
            try:
                check(subject)
                passed.append(label)
            except (CheckFailed, UserError) as problem:
                failed[label] = str(problem)
            except Exception as error:  # a component may raise anything
                failed[label] = f"raises {type(error).__name__}: {error}"
        results.append(
            {
                "slot": subject.entry.slot,
                "name": subject.entry.name,
                "subject": subject.name,
                "passed": passed,
                "failed": failed,
            }
        )
        if say:
            verdict = "ok" if not failed else "FAILED " + "; ".join(f"{key}: {each}" for key, each in failed.items())
            say(f"{subject.name:<40} {len(passed):>2} passed  {verdict}")
    return results


def print_results(results: list[dict[str, Any]]) -> None:
    """The last line: how many components pass, and which do not."""
    bad = [result["subject"] for result in results if result["failed"]]
    print(
        f"{len(results) - len(bad)} of {len(results)} components pass all checks"
        + (f"; not {', '.join(bad)}" if bad else "")
    )
