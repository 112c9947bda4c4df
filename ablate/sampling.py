"""What a finished trial's model generates, when it is asked to: `ablate sample`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ablate import registry
from ablate.decoding import Beam, Decoding, Greedy, Sample
from ablate.errors import MaxLenError, UserError, within
from ablate.generate import Reading, evaluating, generate
from ablate.run.ledger import Ledger, TrialFolder

if TYPE_CHECKING:
    from ablate.data.tokenizers import Tokenizer
    from ablate.spec import TrialSpec
    from ablate.tasks.base import Task


@dataclass(frozen=True)
class SampleRequest:
    """What is asked of a task's `generate`. None stands for what was not said: the task decides."""

    prompt: str | None = None
    count: int = 1
    length: int | None = None  # tokens that are generated, at most
    how: Decoding | None = None
    seed: int = 0
    out: Path | None = None  # for a task that writes a file

    def continuations(
        self,
        model: nn.Module,
        prompt: Sequence[int],
        *,
        default: Decoding,
        at_most: int,
        source: Sequence[int] | None = None,
        marks: Mapping[str, Tensor] | None = None,
        stop: int | None = None,
        slide: bool = False,
    ) -> list[list[int]]:
        """`count` sequences of tokens that follow the prompt: the best ones of a beam, or independent samples.

        `default` is how, and `at_most` how many tokens there are, where the request does not say; `source` is the
        encoder's; `marks` have one row. Raises `UserError` for a prompt that the model cannot hold, or a count that
        does not fit.
        """
        how, at_most = self.how or default, self.length or at_most
        rows = self.count if isinstance(how, Sample) else 1
        if isinstance(how, Greedy) and self.count > 1:
            raise UserError(f"--count {self.count}: greedy decoding says one thing: give --temperature or --beam")
        if isinstance(how, Beam) and self.count > how.width:
            raise UserError(f"--count {self.count}: a beam of width {how.width} has no more than {how.width} to show")
        device = next((each.device for each in (*model.parameters(), *model.buffers())), torch.device("cpu"))
        prompt_BT = torch.tensor([list(prompt)] * rows, device=device)
        sources = () if source is None else (torch.tensor([list(source)] * rows, device=device),)
        marks = {name: mark.to(device).expand(rows, -1) for name, mark in (marks or {}).items()}
        try:
            if isinstance(how, Beam):
                with evaluating(model):
                    reading = Reading(model, prompt_BT, sources, marks, slide)
                    (found,) = how.ranked(reading, stop, at_most, self.count)
                return [each.tokens for each in found]
            return generate(
                model, prompt_BT, source=sources, marks=marks, stop=stop, at_most=at_most, how=how, slide=slide
            )
        except MaxLenError as error:
            raise UserError(f"the prompt is too long: {error}") from None


def known(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """The ids of a text that a person gave. Raises `UserError` naming what the tokenizer does not know."""
    ids = tokenizer.encode(text)
    if tokenizer.unk is not None and (ids == tokenizer.unk).any():
        strange: list[str] = []
        for word in text.split() or [text]:
            of_word = tokenizer.encode(word)
            parts = list(word) if len(of_word) == len(word) else [word]  # a token for each character, or of words
            strange += [part for part in parts if (tokenizer.encode(part) == tokenizer.unk).any()]
        shown = ", ".join(repr(each) for each in dict.fromkeys(strange or [text]))
        raise UserError(f"the trial's tokenizer does not know {shown}")
    return ids


def method(
    *,
    greedy: bool = False,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    beam: int | None = None,
    length_penalty: float | None = None,
    seed: int | None = None,
) -> Decoding | None:
    """The way to decode that options ask for, None where they ask for none. Raises `UserError` for contradictions."""
    sampling = {"--temperature": temperature, "--top-k": top_k, "--top-p": top_p, "--min-p": min_p}
    given = [name for name, value in sampling.items() if value is not None]
    searching = [
        name for name, value in (("--beam", beam), ("--length-penalty", length_penalty)) if value is not None
    ]
    others = [*(["--greedy"] if greedy else []), *searching]
    if given and others:
        raise UserError(f"{given[0]} is for sampling, and has no effect with {others[0]}: leave out one of them")
    if greedy and searching:
        raise UserError(f"--greedy and {searching[0]} contradict each other: leave out one of them")
    if length_penalty is not None and beam is None:
        raise UserError("--length-penalty has no effect without --beam")
    if seed is not None and others:
        raise UserError(f"--seed has no effect with {others[0]}, which draws nothing")
    if greedy:
        return Greedy()
    if beam is not None:
        return Beam(beam) if length_penalty is None else Beam(beam, length_penalty)
    if given:
        return Sample(1.0 if temperature is None else temperature, top_k, top_p, min_p, seed or 0)
    return None


def prompt_of(text: str | None, file: str | None) -> str | None:
    """The prompt of the options. Raises `UserError` for a file that cannot be read."""
    if file is None:
        return text
    try:
        return Path(file).read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"--prompt-file {file}: cannot be read: {reason}") from None


def sample_trial(ledger: Ledger, prefix: str, request: SampleRequest) -> dict[str, Any]:
    """The trial's id, its task, and what its model generates. Raises `UserError`."""
    within("--count", request.count, 1)
    if request.length is not None:
        within("--length", request.length, 1)
    folder = ledger.find_trial(prefix)
    spec = finished(folder)
    task: Task = registry.make("task", spec.data.task)
    name = spec.data.task.name
    if request.out is not None and not task.writes_file:
        raise UserError(f"--out has no effect: task {name!r} writes no file, what it generates is printed")
    task.open(spec.data, ledger.cache)
    samples = task.generate(trained(folder, spec, task), request)
    return {"id": folder.id, "task": name, "prompt": request.prompt, "samples": samples}


def finished(folder: TrialFolder) -> TrialSpec:
    """What a finished trial was asked to train. Raises `UserError` for any other."""
    status = folder.status()
    if status != "finished":
        raise UserError(f"trial {folder.id} is {status}: only the model of a finished trial can be sampled")
    spec = folder.read_spec()
    if spec.trial_id != folder.id:
        raise UserError(f"trial {folder.id} was trained with components that have changed since: train it again")
    return spec


def trained(folder: TrialFolder, spec: TrialSpec, task: Task) -> nn.Module:
    """The trial's model with the weights that it ended with, on the CPU."""
    from ablate.train import checkpoint

    state = checkpoint.load(folder.weights)
    if state is None:
        raise UserError(f"{folder.weights}: the trial's trained weights are missing or not whole")
    model = task.build(spec.arch, spec.seed, spec.train.dropout)
    try:
        model.load_state_dict(state["model"])
    except (RuntimeError, KeyError) as error:
        raise UserError(f"{folder.weights}: the weights do not fit the model: {str(error).splitlines()[0]}") from None
    return model.eval()


def print_samples(tree: dict[str, Any]) -> None:
    """For a person: the samples alone, with a line between them where there are more."""
    for number, text in enumerate(tree["samples"], 1):
        if len(tree["samples"]) > 1:
            print(f"--- {number}")
        print(text)
