"""Checks of what runs along time: causality, decoding, padding, lengths."""

from __future__ import annotations

from dataclasses import replace

import torch

from ablate.build import build_model
from ablate.contracts import Cache
from ablate.errors import MaxLenError, UserError
from ablate.generate import reorder
from ablate.spec import Component
from ablate.subject import EXACT, VOCAB, B, CheckFailed, Subject, T, tokens


def check_lengths(subject: Subject) -> None:
    """A sequence of one token is read; one that is longer than the model's limit is refused by name."""
    model = subject.model()
    inputs = subject.inputs(model)
    y = subject.outputs(model, *inputs[:-1], inputs[-1][:, :1])
    if tuple(y.shape) != (B, 1, VOCAB) or not y.isfinite().all():
        raise CheckFailed(f"gives shape {tuple(y.shape)} or no numbers for a single token")
    try:
        subject.outputs(model, *inputs[:-1], torch.cat((inputs[-1], inputs[-1]), 1))
    except MaxLenError:
        return
    raise CheckFailed(f"reads {2 * T} tokens, where it was built for {T}")


def check_causal(subject: Subject) -> None:
    """A causal component shows no output before a changed token, in evaluation and in training mode; one that is
    declared `causal=False` does."""
    model = subject.model()
    inputs = subject.inputs(model)
    leak = 0.0
    for place in (T // 2, T - 1):
        changed = inputs[-1].clone()
        changed[:, place] = (changed[:, place] + 1) % VOCAB
        for training in (False, True):
            model.train(training)
            with torch.no_grad():
                difference = subject.outputs(model, *inputs[:-1], changed) - subject.outputs(model, *inputs)
            leak = max(leak, difference[:, :place].abs().max().item())
    if subject.entry.causal and leak > EXACT:
        raise CheckFailed(f"sees the future: a change of a later token moves earlier outputs by {leak:.2g}")
    if not subject.entry.causal and leak <= EXACT:
        raise CheckFailed("is declared causal=False, but no output depends on a later token")


def check_mixes(subject: Subject) -> None:
    """A mixer carries information forward in time; cross-attention carries it over from the source."""
    model = subject.model()
    inputs = subject.inputs(model)
    changed = [each.clone() for each in inputs]
    changed[0][:, 0] = (changed[0][:, 0] + 1) % VOCAB
    with torch.no_grad():
        difference = (subject.outputs(model, *changed) - subject.outputs(model, *inputs)).abs()
    if difference[:, 1:].max().item() <= EXACT:
        raise CheckFailed("no output depends on an earlier token: it is a channel, not a mixer")


def check_pointwise(subject: Subject) -> None:
    """A channel's output at a time depends on its input at that time alone, in either mode."""
    arch = subject.arch
    letter = next(letter for letter, part in arch.sublayers if part == subject.component)
    model = build_model(replace(arch, order=letter, position=Component("none")), VOCAB, T).double().eval()
    changed = tokens()
    changed[:, 3] = (changed[:, 3] + 1) % VOCAB
    for training in (False, True):
        model.train(training)
        with torch.no_grad():
            difference = (subject.outputs(model, changed) - subject.outputs(model, tokens())).abs().amax((0, 2))
        others = torch.cat((difference[:3], difference[4:])).max().item()
        if others > EXACT:
            raise CheckFailed(f"is not pointwise in time: a change at 3 moves other times by {others:.2g}")


def check_cache(subject: Subject) -> None:
    """Decoding step by step gives what the full forward pass gives; in pieces of several tokens too, and after
    rows of the cache were put in another order, repeated and left out."""
    model = subject.model()
    *source, read = subject.inputs(model)
    with torch.no_grad():
        full = subject.outputs(model, *source, read)
        for piece in (1, 5):
            cache = Cache()
            parts = [
                subject.outputs(model, *source, read[:, start : start + piece], cache=cache)
                for start in range(0, T, piece)
            ]
            difference = (torch.cat(parts, 1) - full).abs().max().item()
            if not difference <= EXACT:
                raise CheckFailed(f"decoding {piece} tokens at a time differs from the full pass by {difference:.2g}")
        rows = torch.tensor([2, 0, 0, 1])
        subject.outputs(model, *source, read[:, : T // 2], cache=(cache := Cache()))
        try:
            reorder(cache, rows)
        except IndexError:
            raise CheckFailed("keeps a tensor in the cache that does not have the batch's rows first") from None
        rest = subject.outputs(model, *(each[rows] for each in source), read[rows, T // 2 :], cache=cache)
        difference = (rest - full[rows, T // 2 :]).abs().max().item()
        if not difference <= EXACT:
            raise CheckFailed(f"with the cache's rows in another order decoding differs by {difference:.2g}")


def check_padding(subject: Subject) -> None:
    """Where both sides are seen, what stands at padding moves nothing else; or padding is refused, saying why."""
    try:
        model = subject.model(causal=False)
    except UserError as error:
        if "causal" in str(error):
            return  # it cannot see both sides, and says so
        raise
    lengths = (T, 7, 3)
    valid_BT = torch.arange(T)[None] < torch.tensor(lengths)[:, None]
    source, other = tokens(), torch.where(valid_BT, tokens(), tokens(60))

    def read(padded: torch.Tensor) -> torch.Tensor:
        if subject.form == "pair":
            return model.log_probs(padded, tokens(1), valid_BS=valid_BT)
        return model.log_probs(padded, valid_BT=valid_BT)

    with torch.no_grad():
        try:
            one, two = read(source), read(other)
        except UserError as error:
            if "padding" in str(error):
                return
            raise
        for row, length in enumerate(lengths):
            alone = slice(row, row + 1)
            if subject.form == "pair":
                short = model.log_probs(source[alone, :length], tokens(1)[alone])
                both = [each[alone] for each in (one, two)]
            else:
                short = model.log_probs(source[alone, :length])
                both = [each[alone, :length] if each.ndim == 3 else each[alone] for each in (one, two)]
            for each in both:
                if not (each - short).abs().max() <= EXACT:
                    raise CheckFailed(f"padding moves outputs by {(each - short).abs().max().item():.2g}")
