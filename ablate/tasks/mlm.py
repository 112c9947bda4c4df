"""Masked language modelling."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ablate.data.batches import TrainBatches, eval_windows
from ablate.data.corruption import generator, masked, places
from ablate.data.tokenizers import Specials
from ablate.errors import UserError, within
from ablate.registry import register
from ablate.spec import DataSpec, TrainSpec
from ablate.tasks.base import Batch, Meter
from ablate.tasks.lm import TextStream


class MaskedText(TextStream):
    """A task on windows of seq_len tokens in which `rate` of the places, exactly, are to be restored."""

    causal = False

    def __init__(self, name: str, rate: float) -> None:
        within(f"task {name!r}: rate", rate, 0, 1)
        self.rate = rate

    def open(self, data: DataSpec, cache: Path) -> None:
        super().open(data, cache)
        self.specials = Specials(self.tokens.vocab)
        self.masked = round(self.rate * data.seq_len)
        if not self.masked:
            raise UserError(f"rate {self.rate:g} of seq_len {data.seq_len} is less than one token: raise one of them")

    @property
    def vocab(self) -> int:
        return self.specials.vocab

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"masked_per_row": self.masked}

    def corrupted(self, windows: np.ndarray, key: str) -> Batch:
        """What is made of windows (B, T + 1), whose last tokens are left out; the key says what is drawn."""
        raise NotImplementedError

    def batches(self, train: TrainSpec, seed: int) -> DrawnBatches:
        return DrawnBatches(self.windows(train, seed), self.corrupted)

    def held_out(self, split: str, at_most: int, rows: int) -> Iterable[Batch]:
        windows = eval_windows(self.tokens.splits[split], self.data.seq_len, at_most)
        return self.corrupted(windows, f"{self.tokens.fingerprint}/{split}").split(rows)


class DrawnBatches:
    """Windows as batches: `make(windows, key)` draws what is random by the data, the seed and the step."""

    def __init__(self, windows: TrainBatches, make: Callable[[np.ndarray, str], Batch]):
        self.windows, self.make = windows, make

    def __getitem__(self, step: int) -> Batch:
        return self.make(self.windows[step], f"{self.windows.key}/{step}")


@register("task", "mlm", paper="Devlin et al. 2019, arXiv:1810.04805, section 3.1, task 1")
class MaskedLanguageModelling(MaskedText):
    """Restore masked tokens from both sides: loss = -log p(w_t | corrupted w), mean over the selected places.

    `rate` of a window's places are selected, round(rate seq_len) of them; each becomes [MASK] with probability
    `mask`, a random token of the tokenizer with probability `random`, and stays as it is otherwise.
    Differs from the paper: the same number of places in every window, windows of running text without [CLS] and
    [SEP], no sentence pairs, masks drawn anew in every epoch.
    """

    def __init__(self, *, rate: float = 0.15, mask: float = 0.8, random: float = 0.1):
        super().__init__("mlm", rate)
        within("task 'mlm': mask", mask, 0, 1)
        within("task 'mlm': random", random, 0, 1 - mask + 1e-9)
        self.mask_share, self.random_share = mask, random

    def corrupted(self, windows: np.ndarray, key: str) -> Batch:
        draw, windows = generator(key), windows[:, :-1]
        at_BM = places(draw, windows.shape, self.masked)
        chosen_BM = np.take_along_axis(windows, at_BM, 1)
        new_BM = masked(draw, chosen_BM, self.specials.mask, self.tokens.vocab, self.mask_share, self.random_share)
        seen_BT, counts_BT = windows.copy(), np.zeros(windows.shape, dtype=bool)
        np.put_along_axis(seen_BT, at_BM, new_BM, 1)
        np.put_along_axis(counts_BT, at_BM, True, 1)
        return Batch((torch.from_numpy(seen_BT),), torch.from_numpy(windows), torch.from_numpy(counts_BT))

    def facts(self) -> dict[str, Any]:
        facts = super().facts()
        counts = np.bincount(self.tokens.splits["valid"])
        frequent = {"name": "most frequent token", "metric": "accuracy", "value": float(counts.max() / counts.sum())}
        return facts | {"baselines": [*facts["baselines"], frequent]}

    def meter(self, split: str, final: bool) -> Meter:
        return TokenMeter()


class TokenMeter(Meter):
    """Loss, and accuracy: the share of the scored targets that the model holds most likely."""

    def __init__(self) -> None:
        super().__init__()
        self.right = torch.zeros((), dtype=torch.long)

    def add(self, model: nn.Module, batch: Batch) -> None:
        log_p_BTV: Tensor = model.log_probs(*batch.inputs, **batch.marks)  # type: ignore[operator]
        self.add_loss(-log_p_BTV.gather(-1, batch.targets[..., None])[..., 0], batch)
        right_BT = log_p_BTV.argmax(-1) == batch.targets
        if batch.counts is not None:
            right_BT = right_BT & batch.counts
        self.right = self.right.to(right_BT.device) + right_BT.sum()

    def result(self) -> dict[str, float]:
        return {**super().result(), "accuracy": self.right.item() / max(1, self.count)}
