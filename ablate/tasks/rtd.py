"""Replaced-token detection."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ablate.data.corruption import generator, places
from ablate.errors import within
from ablate.registry import register
from ablate.spec import TrainSpec
from ablate.tasks.base import Batch, Meter
from ablate.tasks.mlm import MaskedText


@register("task", "rtd", paper="Clark et al. 2020 (ELECTRA), arXiv:2003.10555, section 2")
class ReplacedTokenDetection(MaskedText):
    """Say of every token whether a small masked language model put it there: loss = L_MLM + `weight` L_Disc.

    `rate` of a window's places, round(rate seq_len) of them, become [MASK]; the generator, `generator` as wide as the
    model, samples a token for each, and the discriminator, the architecture as it is configured, reads the result.
    L_MLM = -log p_G(w_t | masked), mean over these places; L_Disc the binary cross-entropy, mean over all tokens,
    where a sample that is the text's own token counts as the text's. Both networks train together; their token
    embedding is one: see `ReplacedTokenModel`. A classifier that begins from it takes the discriminator.

    detection_loss is L_Disc: one in seven tokens is replaced, so that f1, of the tokens that are called replaced with
    more than 1/2, stays at 0 long after it has begun to fall. A better generator makes it harder.
    """

    metric = "detection_loss"

    def __init__(self, *, rate: float = 0.15, generator: float = 0.3333, weight: float = 50.0):
        super().__init__("rtd", rate)
        within("task 'rtd': generator", generator, 0.01, 1)
        within("task 'rtd': weight", weight, 0)
        self.share, self.weight = generator, weight

    @property
    def shape(self) -> dict[str, Any]:
        return {"causal": False, "generator": self.share, "masked": self.masked / self.data.seq_len}

    def corrupted(self, windows: np.ndarray, key: str) -> Batch:
        draw, windows = generator(key), windows[:, :-1]
        at_BM = places(draw, windows.shape, self.masked)
        seen_BT = windows.copy()
        np.put_along_axis(seen_BT, at_BM, self.specials.mask, 1)
        noise_BM = draw.random(at_BM.shape, dtype=np.float32)
        inputs = tuple(map(torch.from_numpy, (seen_BT, at_BM, noise_BM)))
        return Batch(inputs, torch.from_numpy(windows))

    def facts(self) -> dict[str, Any]:
        facts = super().facts()
        unigram = [{**each, "metric": "mlm_loss"} for each in facts["baselines"]]
        p = self.masked / self.data.seq_len
        kept = {"name": "no token replaced", "metric": "accuracy", "value": 1 - p}
        rate = -p * math.log(p) - (1 - p) * math.log1p(-p)
        share = {"name": "entropy of the masked share", "metric": "detection_loss", "value": rate}
        return facts | {"baselines": [share, *unigram, kept]}

    def objective(self, model: Any, batch: Batch, train: TrainSpec) -> tuple[Tensor, Tensor]:
        loss, nll, aux = model.objective(
            *batch.inputs,
            batch.targets,
            label_smoothing=train.label_smoothing,
            z_loss=train.z_loss,
            weight=self.weight,
        )
        return sum(aux.values(), loss.mean()), nll.detach().mean()

    def meter(self, split: str, final: bool) -> Meter:
        return DetectionMeter(self.weight)


class DetectionMeter(Meter):
    """Both losses, and how the tokens that are called replaced compare with those that were."""

    def __init__(self, weight: float):
        super().__init__()
        self.weight = weight
        self.sums: Mapping[str, float] = {}

    def add(self, model: nn.Module, batch: Batch) -> None:
        found = model(*batch.inputs, batch.targets)
        called_BT, so_BT = found.logits_BT > 0, found.replaced_BT
        counted: dict[str, Tensor] = {
            "places": torch.tensor(found.nll_BM.numel()),
            "tokens": torch.tensor(so_BT.numel()),
            "mlm": found.nll_BM.double().sum(),
            "bce": found.bce_BT.double().sum(),
            "called": called_BT.sum(),
            "replaced": so_BT.sum(),
            "found": (called_BT & so_BT).sum(),
            "right": (called_BT == so_BT).sum(),
        }
        self.sums = {name: self.sums.get(name, 0.0) + value.item() for name, value in counted.items()}

    def result(self) -> dict[str, float]:
        sums = self.sums
        mlm, detection = sums["mlm"] / sums["places"], sums["bce"] / sums["tokens"]
        return {
            "loss": mlm + self.weight * detection,
            "mlm_loss": mlm,
            "detection_loss": detection,
            "accuracy": sums["right"] / sums["tokens"],
            "precision": sums["found"] / max(1, sums["called"]),
            "recall": sums["found"] / max(1, sums["replaced"]),
            "f1": 2 * sums["found"] / max(1, sums["called"] + sums["replaced"]),
            "replaced_frac": sums["replaced"] / sums["tokens"],
        }
