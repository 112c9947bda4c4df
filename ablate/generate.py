"""Generation: from a prompt, token by token, what a model says comes next.

All that is asked of a model is `log_probs(*source, tokens_BT, cache=cache, **marks)` -> (B, T, V): of causal models
of tokens, of encoder-decoders, of whole models of either form.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.context import Cache, Memory
from ablate.decoding import Decoding, Greedy
from ablate.errors import MaxLenError, UserError


def generate(
    model: nn.Module,
    prompt_BT: Tensor,
    *,
    source: tuple[Tensor, ...] = (),
    marks: Mapping[str, Tensor] | None = None,
    stop: int | None = None,
    at_most: int,
    how: Decoding = Greedy(),  # noqa: B008 - it is frozen
    slide: bool = False,
    cached: bool = True,
    numbers: Sequence[int] | None = None,
) -> list[list[int]]:
    """What follows each row of the prompt: at most `at_most` tokens, up to `stop`, which is not among them.

    An encoder-decoder is given its `source` and `marks` (`valid_BS`), and a column of start tokens as the prompt.
    Marks named `_BT` (`prefix_BT`) are of the prompt, and False at what follows. A row that has ended is read no
    further. Rows are decoded together and do not depend on each other; they have no
    padding, so prompts of different lengths are decoded by groups of one length: see `generate_each`.

    A model reads `max_len` tokens, the prompt included. Where it is full, a row ends; with `slide` it goes on with
    the later half of what it has read in its place, read anew as if nothing had been before. A prompt that is too
    long by itself raises `MaxLenError`.

    `cached=False` reads everything again for every token: slower, for the same tokens. `numbers` are the rows'
    numbers in a larger batch, which a sampled row's random numbers go by.
    """
    if prompt_BT.ndim != 2 or not prompt_BT.shape[1]:
        raise UserError("a prompt needs at least one token")
    if slide and any(name.endswith("_BT") for name in marks or {}):
        raise UserError("a prompt with marks of its tokens cannot slide")
    if at_most < 1 or not len(prompt_BT):
        return [[] for _ in prompt_BT]
    with evaluating(model):
        reading = Reading(model, prompt_BT, source, marks or {}, slide, cached)
        return how.search(reading, stop, at_most, range(len(prompt_BT)) if numbers is None else numbers)


def generate_each(
    model: nn.Module, prompts: Sequence[Sequence[int]], *, rows: int = 64, **settings: Any
) -> list[list[int]]:
    """`generate` for prompts of any lengths, in batches of at most `rows` prompts of one length. No source."""
    found: list[list[int]] = [[] for _ in prompts]
    device = next((each.device for each in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    for length in sorted({len(prompt) for prompt in prompts}):
        group = [number for number, prompt in enumerate(prompts) if len(prompt) == length]
        for start in range(0, len(group), rows):
            numbers = group[start : start + rows]
            prompt_BT = torch.tensor([list(prompts[number]) for number in numbers], device=device).reshape(-1, length)
            for number, tokens in zip(numbers, generate(model, prompt_BT, numbers=numbers, **settings), strict=True):
                found[number] = tokens
    return found


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's mode is as before afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


class Reading:
    """Sequences that a model reads in step: all have the same length, and each has a row of the cache."""

    def __init__(
        self,
        model: Any,
        tokens_BT: Tensor,
        source: tuple[Tensor, ...] = (),
        marks: Mapping[str, Tensor] | None = None,
        slide: bool = False,
        cached: bool = True,
    ):
        self.model, self.source, self.marks = model, source, dict(marks or {})
        self.slide, self.cached = slide, cached
        self.tokens_BT = tokens_BT  # of which the model has before it those from `first` on
        self.first = 0
        self.cache = Cache()
        self.log_p_BV: Tensor = self._read(tokens_BT)

    def _read(self, new_BT: Tensor) -> Tensor:
        """What the model says of the token after all, having read the last ones."""
        if self.cached:
            began = self.cache.length > 0
            marks = {name: mark for name, mark in self.marks.items() if not (began and name.endswith("_BT"))}
            log_p_BTV = self.model.log_probs(*self.source, new_BT, cache=self.cache, **marks)
        else:
            read_BT = self.tokens_BT[:, self.first :]
            marks = {
                name: F.pad(mark, (0, read_BT.shape[1] - mark.shape[1])) if name.endswith("_BT") else mark
                for name, mark in self.marks.items()
            }
            log_p_BTV = self.model.log_probs(*self.source, read_BT, **marks)
        return log_p_BTV[:, -1].double()  # type: ignore[no-any-return]

    def go_on(self, tokens_B: Tensor) -> bool:
        """Read one more token of every sequence. False where the model is full."""
        read = self.tokens_BT.shape[1] - self.first
        self.tokens_BT = torch.cat((self.tokens_BT, tokens_B[:, None]), 1)
        try:
            self.log_p_BV = self._read(tokens_B[:, None])
        except MaxLenError:
            if not self.slide or read < 2:
                return False
            self.first = self.tokens_BT.shape[1] - read // 2
            self.cache = Cache()
            self.log_p_BV = self._read(self.tokens_BT[:, self.first :])
        return True

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows in this order; a row may come more than once, or not at all."""
        if list(rows) == list(range(len(self.tokens_BT))):
            return
        rows_B = torch.tensor(rows, device=self.tokens_BT.device)
        self.tokens_BT = self.tokens_BT[rows_B]
        self.source = tuple(each[rows_B] for each in self.source)
        self.marks = {name: mark[rows_B] for name, mark in self.marks.items()}
        reorder(self.cache, rows_B)


def reorder(cache: Cache, rows_B: Tensor) -> None:
    """Give every row of the cache the past of the row `rows_B[row]`; there may be more rows than before, or fewer.

    Every tensor in a state has the rows first, inside whatever tuples and lists.
    """
    cache.states = {call: _chosen(state, rows_B) for call, state in cache.states.items()}
    if cache.memory is not None:
        memory = cache.memory
        cache.memory = Memory(
            memory.x_BSD[rows_B],
            None if memory.valid_BS is None else memory.valid_BS[rows_B],
            RowsOf(memory.at.at, memory.at.rows_B[rows_B])
            if isinstance(memory.at, RowsOf)
            else RowsOf(memory.at, rows_B),
        )


@dataclass(frozen=True)
class RowsOf:
    """Rows of what a memory's `at` gives. Of rows of rows, only the rows are kept."""

    at: Any
    rows_B: Tensor

    def __call__(self, layer: int) -> Tensor:
        return self.at(layer)[self.rows_B]  # type: ignore[no-any-return]


def _chosen(state: Any, rows_B: Tensor) -> Any:
    if isinstance(state, Tensor):
        return state[rows_B]
    if isinstance(state, tuple | list):
        return type(state)(_chosen(each, rows_B) for each in state)
    if isinstance(state, dict):
        return {key: _chosen(each, rows_B) for key, each in state.items()}
    return state
