"""Counts of words after contexts."""

from __future__ import annotations

import itertools
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ablate.components.models.words import advance
from ablate.contracts import Cache, Model, Site
from ablate.errors import UserError, within
from ablate.registry import register

MISSING = -1  # the number of a gram that was not seen


@register(
    "model", "ngram", paper="Ney, Essen and Kneser 1994; Kneser and Ney 1995; Chen and Goodman 1999, equation 11"
)
class NGram(Model):
    """p(w | h) from the counts c of grams of up to `order` words, h being the last `order` - 1 words read so far.

    kneser_ney: p(w | h) = max(c(hw) - D, 0) / c(h.) + D N(h.) / c(h.) p(w | h'), interpolated; h' is h without its
    first word, N(h.) the number of different words after h, c(h.) the sum of c(hw) over w; below the highest order
    c(hw) is the number of different words before hw. The unigrams are interpolated with 1/V.
    backoff: (c(hw) - D) / c(h.) for words seen after h, else a(h) p(w | h') with the a(h) that makes the sum 1; no
    discount where all words were seen after h.
    Both: D = n1 / (n1 + 2 n2) for each order, n_i the number of its grams with c = i, or 1/2 where n1 or n2 is 0;
    p(w | h) = p(w | h') where h was not seen.
    add_delta: (c(hw) + delta) / (c(h.) + delta V), delta 1 unless given.

    Before it is fitted everything is uniform. Grams are counted across line ends, as the text runs.
    Differs from the papers: a sequence's first words have the contexts there are, and no mark of the beginning.
    """

    fitted = True

    def __init__(
        self,
        site: Site,
        *,
        order: int = 3,
        smoothing: Literal["kneser_ney", "add_delta", "backoff"] = "kneser_ney",
        delta: float | None = None,
    ):
        super().__init__(site)
        within("model 'ngram': order", order, 1)
        if delta is not None and smoothing != "add_delta":
            raise UserError(f"model 'ngram': delta {delta:g} has no effect with smoothing {smoothing!r}")
        if delta is not None and not delta > 0:
            raise UserError(f"model 'ngram': delta {delta:g} must be positive")
        self.order, self.smoothing, self.delta = order, smoothing, 1.0 if delta is None else delta
        # gram g of m words is gram keys[g] // V of m - 1 words, and then word keys[g] % V; the keys are sorted
        for m in range(1, order + 1):
            for name in ("keys", "counts"):
                self.register_buffer(f"{name}{m}", torch.zeros(0, dtype=torch.long))
        self.derive()

    def held(self, name: str) -> list[Tensor]:
        """The buffers of that name, of grams of one word first."""
        return [getattr(self, f"{name}{m}") for m in range(1, self.order + 1)]

    @torch.no_grad()
    def fit(self, tokens: Tensor) -> None:
        """Count a stream of tokens, and forget what was counted before."""
        words = tokens.flatten().to(self.get_buffer("keys1"))
        numbers = torch.zeros_like(words)
        for m in range(1, self.order + 1):
            grams = numbers[: max(0, len(words) - m + 1)] * self.site.vocab + words[m - 1 :]
            keys, numbers, counts = grams.unique(return_inverse=True, return_counts=True)
            setattr(self, f"keys{m}", keys)
            setattr(self, f"counts{m}", counts)
        self.derive()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Counts of any number of grams are taken over."""
        for name, buffer in list(self.named_buffers(recurse=False)):
            if isinstance(saved := state_dict.get(prefix + name), Tensor):
                setattr(self, name, buffer.new_empty(saved.shape))
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.derive()

    @torch.no_grad()
    def derive(self) -> None:
        """What scoring reads, from the counts, for each order: `probs`, p(w | h) of every gram hw; `left`, by which
        p(w | h') is multiplied for words not seen after h; `begins`, where a context's grams begin in the keys."""
        keys, V = self.held("keys"), self.site.vocab
        counts, suffixes = self.adjusted()
        lower = torch.full((1,), 1 / V, dtype=torch.float64, device=keys[0].device)
        kept = different = torch.zeros_like(lower)
        for m, count in enumerate(counts):
            of, below, context_suffix = keys[m] // V, lower[suffixes[m]], suffixes[m - 1] if m else suffixes[0][:0]
            total, followers, covered = (
                lower.new_zeros(len(keys[m - 1]) if m else 1).index_add_(0, of, each)
                for each in (count, (count > 0).double(), below)
            )
            # p(w | h') summed over the words not seen after h; by differences where there are any, lest it drown
            rest = 1 - followers / V
            if m:
                kept, fewer = kept[context_suffix], different[context_suffix]
                rest = kept + torch.where(followers == fewer, 0.0, 1 - kept - covered)
            probs, left = self.smoothed(count, of, total, followers, below, rest)
            seen, different = total > 0, followers
            lower, left = torch.where(seen[of], probs, below), torch.where(seen, left, 1.0)
            kept = left * rest
            begins = torch.searchsorted(keys[m], torch.arange(len(left) + 1, device=of.device) * V)
            for name, values in (("probs", lower), ("left", left), ("begins", begins)):
                self.register_buffer(f"{name}{m + 1}", values, persistent=False)

    def adjusted(self) -> tuple[list[Tensor], list[Tensor]]:
        """For each order: what counts for every gram, and the number of the gram that lacks its first word."""
        keys, V = self.held("keys"), self.site.vocab
        suffixes = [torch.zeros_like(keys[0])]
        for shorter, longer in itertools.pairwise(keys):
            suffixes.append(find(shorter, suffixes[-1][longer // V] * V + longer % V))
        counts = self.held("counts")
        if self.smoothing == "kneser_ney":
            for m, longer in enumerate(suffixes[1:]):
                counts[m] = torch.zeros_like(counts[m]).index_add_(0, longer, torch.ones_like(longer))
        return [count.double() for count in counts], suffixes

    def smoothed(
        self, counts: Tensor, of: Tensor, total: Tensor, followers: Tensor, below: Tensor, rest: Tensor
    ) -> tuple[Tensor, Tensor]:
        """p(w | h) of every gram hw, and the factor on p(w | h') of the words not seen after h. `of` numbers the
        context of every gram, `below` is its p(w | h'); c(h.), N(h.) and `rest` are of contexts."""
        V = self.site.vocab
        if self.smoothing == "add_delta":
            mass = total + self.delta * V
            return (counts + self.delta) / mass[of], self.delta * V / mass
        D = discount(counts)
        left = D * followers / total
        if self.smoothing == "kneser_ney":
            return (counts - D).clamp(min=0) / total[of] + left[of] * below, left
        every = followers == V  # nothing to keep mass for
        return (counts - D * (~every)[of].double()) / total[of], torch.where(every, 0.0, left / rest)

    def contexts(self, tokens_BT: Tensor, cache: Cache | None) -> list[Tensor]:
        """The numbers of the last 0, 1, ..., order - 1 words read at every position, (B, T) each, or MISSING."""
        T, V = tokens_BT.shape[1], self.site.vocab
        past_BT = None if cache is None else cache.states.get(0)
        words_BT = tokens_BT if past_BT is None else torch.cat((past_BT, tokens_BT), 1)
        if cache is not None:
            cache.states[0] = words_BT[:, max(0, words_BT.shape[1] - self.order + 1) :]
        numbers = [torch.zeros_like(words_BT)]
        for m, keys in enumerate(self.held("keys")[:-1]):
            before_BT = F.pad(numbers[-1][:, :-1], (1, 0), value=MISSING if m else 0)
            numbers.append(find(keys, before_BT * V + words_BT))
        if self.smoothing == "add_delta":  # the longest context there is room for alone
            room_T = torch.arange(1, words_BT.shape[1] + 1, device=words_BT.device).clamp(max=self.order - 1)
            numbers = [torch.where(room_T == m, each, MISSING) for m, each in enumerate(numbers)]
        return [each[:, -T:] for each in numbers]

    @torch.no_grad()
    def log_probs(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:
        B, T = tokens_BT.shape
        advance(self, T, cache)
        first, *longer = (each.flatten() for each in self.contexts(tokens_BT, cache))
        p_NV = self.get_buffer("probs1").new_full((1, self.site.vocab), 1 / self.site.vocab)
        if tokens_BT.is_meta:
            return p_NV.expand(B * T, -1).unflatten(0, (B, T))
        p_NV = self.refine(p_NV, first[:1], 1).repeat(B * T, 1)  # the empty context is the same everywhere
        for m, contexts_N in enumerate(longer, 2):
            p_NV = self.refine(p_NV, contexts_N, m)
        return p_NV.log().unflatten(0, (B, T))

    def refine(self, p_NV: Tensor, contexts_N: Tensor, m: int) -> Tensor:
        """p(. | h) from p(. | h'), for grams of m words."""
        keys, probs, left, begins = (self.get_buffer(f"{name}{m}") for name in ("keys", "probs", "left", "begins"))
        rows_N = (contexts_N != MISSING).nonzero()[:, 0]
        of_N = contexts_N[rows_N]
        p_NV[rows_N] *= left[of_N, None]
        begin_N = begins[of_N]
        several_N = begins[of_N + 1] - begin_N
        shift_N = begin_N - several_N.cumsum(0) + several_N
        grams = torch.arange(int(several_N.sum()), device=keys.device) + shift_N.repeat_interleave(several_N)
        rows = rows_N.repeat_interleave(several_N)
        p_NV.view(-1).scatter_(0, rows * self.site.vocab + keys[grams] % self.site.vocab, probs[grams])
        return p_NV

    @torch.no_grad()
    def nll(self, *batch: Tensor, **marks: Tensor) -> Tensor:
        """-log p(target) in nats at every position, (B, T): as from `log_probs`, without the other words."""
        tokens_BT, targets_BT = batch
        advance(self, tokens_BT.shape[1], None)
        p_BT = self.get_buffer("probs1").new_full(tokens_BT.shape, 1 / self.site.vocab)
        if tokens_BT.is_meta:
            return p_BT
        for m, contexts_BT in enumerate(self.contexts(tokens_BT, None), 1):
            keys, probs, left = (self.get_buffer(f"{name}{m}") for name in ("keys", "probs", "left"))
            if not len(keys):
                break
            grams_BT = find(keys, contexts_BT * self.site.vocab + targets_BT)
            unseen_BT = torch.where(contexts_BT == MISSING, p_BT, left[contexts_BT.clamp(min=0)] * p_BT)
            p_BT = torch.where(grams_BT == MISSING, unseen_BT, probs[grams_BT.clamp(min=0)])
        return -p_BT.log()


def discount(counts: Tensor) -> float:
    """D = n1 / (n1 + 2 n2), or 1/2 where n1 or n2 is 0."""
    if not len(counts):
        return 0.5
    once, twice = (int((counts == times).sum()) for times in (1, 2))
    return once / (once + 2 * twice) if once and twice else 0.5


def find(keys: Tensor, wanted: Tensor) -> Tensor:
    """The places of `wanted` among the sorted keys, or MISSING. A negative one is never found."""
    if not len(keys):
        return torch.full_like(wanted, MISSING)
    places = torch.searchsorted(keys, wanted.contiguous()).clamp(max=len(keys) - 1)
    return torch.where(keys[places] == wanted, places, MISSING)
