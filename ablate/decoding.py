"""How the next tokens are chosen from what a model says of them: greedily, at random, by beam search."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ablate.errors import UserError, within

if TYPE_CHECKING:
    from ablate.generate import Reading


class Decoding:
    """A way to decode. `search` is given sequences whose prompts were read."""

    def search(self, reading: Reading, stop: int | None, at_most: int, numbers: Sequence[int]) -> list[list[int]]:
        """What follows each sequence, without `stop`. `numbers` are the rows' numbers among all."""
        raise NotImplementedError


class Stepwise(Decoding):
    """One token after the other, of which none is taken back."""

    def choose(self, log_p_BV: Tensor, draws: list[torch.Generator]) -> Tensor:
        """The next token of every row, (B,)."""
        raise NotImplementedError

    def generators(self, numbers: Sequence[int]) -> list[torch.Generator]:
        """What each row's random numbers come from; nothing where none are needed."""
        return []

    def search(self, reading: Reading, stop: int | None, at_most: int, numbers: Sequence[int]) -> list[list[int]]:
        found: list[list[int]] = [[] for _ in numbers]
        alive, draws = list(range(len(numbers))), self.generators(numbers)
        for step in range(1, at_most + 1):
            tokens_B = self.choose(reading.log_p_BV, draws)
            words = tokens_B.tolist()
            going = [place for place, word in enumerate(words) if word != stop]
            for place in going:
                found[alive[place]].append(words[place])
            if not going or step == at_most:
                break
            reading.keep(going)
            alive, draws = [alive[place] for place in going], [draws[place] for place in going if draws]
            if not reading.go_on(tokens_B[going]):
                break
        return found


@dataclass(frozen=True)
class Greedy(Stepwise):
    """The most probable token, of several the first."""

    def choose(self, log_p_BV: Tensor, draws: list[torch.Generator]) -> Tensor:
        return log_p_BV.argmax(-1)


@dataclass(frozen=True)
class Sample(Stepwise):
    """A token drawn from p(w)^(1 / temperature), restricted in this order, each time normalised anew:

    top_k   the k most probable tokens (Fan, Lewis and Dauphin 2018)
    top_p   the fewest of the most probable tokens that have p together (Holtzman et al. 2020, arXiv:1904.09751)
    min_p   the tokens that are min_p times as probable as the most probable one, or more (Nguyen et al. 2024,
            arXiv:2407.01082)

    Of equally probable tokens the first come first. Each row has random numbers of its own, by the seed and the row's
    number, so that what is drawn for it does not depend on the rows beside it.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise UserError(
                f"temperature {self.temperature:g} must be above 0: to take the best token, decode greedily"
            )
        if self.top_k is not None:
            within("top_k", self.top_k, 1)
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p {self.top_p:g} must be above 0 and at most 1")
        if self.min_p is not None:
            within("min_p", self.min_p, 0, 1)

    def generators(self, numbers: Sequence[int]) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(row_seed(self.seed, number)) for number in numbers]

    def choose(self, log_p_BV: Tensor, draws: list[torch.Generator]) -> Tensor:
        p_BV = self.probabilities(log_p_BV)
        u_B = torch.stack([torch.rand((), generator=draw, dtype=torch.float64) for draw in draws]).to(p_BV)
        below_BV = p_BV.cumsum(-1)
        drawn_B = torch.searchsorted(below_BV, (u_B * below_BV[:, -1])[:, None], right=True)[:, 0]
        last_B = p_BV.shape[-1] - 1 - (p_BV > 0).flip(-1).int().argmax(-1)  # where rounding would go beyond it
        return torch.minimum(drawn_B, last_B)

    def probabilities(self, log_p_BV: Tensor) -> Tensor:
        """The distribution that is drawn from, (B, V)."""
        log_p_BV, order_BV = (log_p_BV / self.temperature).sort(dim=-1, descending=True, stable=True)
        p_BV = log_p_BV.softmax(-1)
        if self.top_k is not None:
            p_BV = p_BV * (torch.arange(p_BV.shape[-1], device=p_BV.device) < self.top_k)
        if self.top_p is not None:
            p_BV = p_BV / p_BV.sum(-1, keepdim=True)
            before_BV = p_BV.cumsum(-1) - p_BV
            within_BV = before_BV < self.top_p
            within_BV[:, 0] = True
            p_BV = p_BV * within_BV
        if self.min_p is not None:
            p_BV = p_BV * (p_BV >= self.min_p * p_BV[:, :1])
        p_BV = p_BV / p_BV.sum(-1, keepdim=True)
        return torch.zeros_like(p_BV).scatter(-1, order_BV, p_BV)


def row_seed(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=7).digest())


@dataclass(frozen=True)
class Beam(Decoding):
    """The sequence Y with the highest log p(Y) / lp(Y) among those that a search of this width meets.

    lp(Y) = ((5 + |Y|) / 6)^length_penalty, as in Wu et al. 2016 (arXiv:1609.08144, section 7, without the coverage
    penalty); |Y| counts the stop. The defaults are those of Vaswani et al. 2017. In every step the `width` best
    continuations by log p are taken, of all that goes on: those with the stop have ended, the others go on. What
    is not ended at the limit of length counts as it is. A width of 1 is greedy decoding.

    The search for a prompt ends before the limit when nothing that goes on can become better than what has ended:
    when max log p(Y) / lp(at_most) is not above the best score. No search would find a better one by going on.
    """

    width: int = 4
    length_penalty: float = 0.6

    def __post_init__(self) -> None:
        within("the beam's width", self.width, 1)
        within("length_penalty", self.length_penalty, 0)

    def penalty(self, length: int) -> float:
        return float(((5 + length) / 6) ** self.length_penalty)

    def search(self, reading: Reading, stop: int | None, at_most: int, numbers: Sequence[int]) -> list[list[int]]:
        return [found[0].tokens for found in self.ranked(reading, stop, at_most, best=1)]

    def ranked(self, reading: Reading, stop: int | None, at_most: int, best: int) -> list[list[Hypothesis]]:
        """The `best` sequences found for each prompt, the best one first; fewer where there are not as many."""
        beams = [_Search(self, stop, at_most, best) for _ in reading.tokens_BT]
        for step in range(1, at_most + 1):
            log_p_NW, token_NW = reading.log_p_BV.topk(min(self.width, reading.log_p_BV.shape[-1]))
            log_p, tokens = log_p_NW.tolist(), token_NW.tolist()
            rows: list[int] = []
            start = 0
            for beam in beams:
                stop_row = start + len(beam.live)
                rows += [start + row for row in beam.extend(log_p[start:stop_row], tokens[start:stop_row])]
                start = stop_row
            if not rows or step == at_most:
                break
            reading.keep(rows)
            words = [hypothesis.tokens[-1] for beam in beams for hypothesis in beam.live]
            if not reading.go_on(torch.tensor(words, device=reading.tokens_BT.device)):
                break
        return [beam.result() for beam in beams]


@dataclass
class Hypothesis:
    """A sequence, without its stop: its log-probability in nats, and the score that it is ranked by."""

    tokens: list[int]
    log_p: float
    score: float = float("nan")


@dataclass
class _Search:
    """The search for one prompt: what goes on, and the best of what has ended."""

    how: Beam
    stop: int | None
    at_most: int
    best: int
    live: list[Hypothesis] = field(default_factory=lambda: [Hypothesis([], 0.0)])
    ended: list[Hypothesis] = field(default_factory=list)

    def extend(self, log_p: list[list[float]], tokens: list[list[int]]) -> list[int]:
        """Go on with the best continuations; the rows that they continue."""
        found = [
            (hypothesis.log_p + each, row, token)
            for row, hypothesis in enumerate(self.live)
            for each, token in zip(log_p[row], tokens[row], strict=True)
            if each > -float("inf")
        ]
        found.sort(key=lambda each: -each[0])
        rows, live = [], []
        for total, row, token in found[: self.how.width]:
            words = self.live[row].tokens
            if token == self.stop:
                self.end(Hypothesis(words, total), len(words) + 1)
            else:
                rows.append(row)
                live.append(Hypothesis([*words, token], total))
        if live and len(self.ended) == self.best:
            if max(each.log_p for each in live) / self.how.penalty(self.at_most) <= self.ended[-1].score:
                rows, live = [], []
        self.live = live
        return rows

    def end(self, hypothesis: Hypothesis, length: int) -> None:
        hypothesis.score = hypothesis.log_p / self.how.penalty(length)
        self.ended.append(hypothesis)
        self.ended.sort(key=lambda each: -each.score)
        del self.ended[self.best :]

    def result(self) -> list[Hypothesis]:
        for hypothesis in self.live:
            self.end(hypothesis, len(hypothesis.tokens))
        return self.ended
