"""Checks of what is not part of a model: optimizers, schedules, tokenizers."""

from __future__ import annotations

from ablate import registry
from ablate.build import build_model
from ablate.checks.model import LEARNED, train_steps
from ablate.spec import ArchSpec, Component
from ablate.subject import VOCAB, CheckFailed, Subject, T
from ablate.train.optim import decay_groups


def check_optimises(subject: Subject) -> None:
    """An optimizer lowers the loss of a small model in thirty steps on one batch."""
    model = build_model(ArchSpec(d_model=16, depth=2), VOCAB, T).train()
    optimizer = registry.make("optimizer", subject.component).build(decay_groups(model, 0.1), 3e-2)
    mixer = registry.find("mixer", "attention")  # any model of tokens will do
    losses = train_steps(model, optimizer, Subject(mixer, Component(mixer.name)))
    if not losses[-1] < losses[0] - LEARNED:
        raise CheckFailed(f"30 steps on one batch take the loss from {losses[0]:.3f} to {losses[-1]:.3f}")


def check_factors(subject: Subject) -> None:
    """A schedule's factors lie in [0, 1] and reach 1, in a run of any length."""
    schedule = registry.make("schedule", subject.component)
    for steps in (1, 2, 10, 1000):
        factors = [schedule.factor(step, steps) for step in range(steps)]
        if not all(0 <= factor <= 1 + 1e-12 for factor in factors):
            raise CheckFailed(f"factors leave [0, 1] in a run of {steps} steps")
        if steps > 2 and max(factors) < 1 - 1e-9:
            raise CheckFailed(f"the factor never reaches 1 in a run of {steps} steps")


def check_shared(subject: Subject) -> None:
    """In the first steps that a schedule says a run has in common with a longer one, its factors are the same."""
    schedule = registry.make("schedule", subject.component)
    for steps, more in ((1, 2), (2, 10), (10, 1000), (900, 1000), (1000, 1000)):
        shared = schedule.shared(steps, more)
        if not 0 <= shared <= steps:
            raise CheckFailed(f"{shared} steps in common are not from 0 to {steps}")
        for step in range(shared):
            if schedule.factor(step, steps) != schedule.factor(step, more):
                raise CheckFailed(f"runs of {steps} and {more} steps differ in step {step} of {shared} in common")


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


def check_unknown(subject: Subject) -> None:
    """A tokenizer says what its unknown tokens stand for: a part of the text for each, in their order."""
    if any(option.name == "path" for option in subject.entry.options):
        return
    tokenizer = registry.make("tokenizer", subject.component)
    tokenizer.train(["In the beginning was the word, and the word was. " * 2])
    text = "In the beginning é was  the 語 word,\nand zyx was."
    unknown, pieces = int((tokenizer.encode(text) == tokenizer.unk).sum()), tokenizer.unknown_pieces(text)
    if len(pieces) != unknown:
        raise CheckFailed(f"{unknown} tokens are unknown, and {len(pieces)} pieces of the text are said to be")
    at = 0
    for piece in pieces:
        at = text.find(piece, at)
        if at < 0 or not piece:
            raise CheckFailed(f"the unknown piece {piece!r} is not in the text, or not where it should be")
        at += len(piece)
