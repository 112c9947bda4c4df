"""What training has shown since the last row of a curve: means and maxima of the loss and of the gradient's norm."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

KEYS = ("loss_sum", "norm_sum", "loss_max", "norm_max")


class Sums:
    """Kept on the device, in float64: nothing waits for it until they are taken."""

    def __init__(self, device: torch.device):
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.norm_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.loss_max = torch.full_like(self.loss_sum, -math.inf)
        self.norm_max = torch.full_like(self.norm_sum, -math.inf)
        self.summed = 0

    def add(self, loss: Tensor, norm: Tensor) -> None:
        """One step."""
        self.loss_sum += loss
        self.norm_sum += norm
        torch.maximum(self.loss_max, loss, out=self.loss_max)
        torch.maximum(self.norm_max, norm, out=self.norm_max)
        self.summed += 1

    def take_means(self) -> tuple[float, float]:
        """Mean loss and norm since the last call."""
        means = self.loss_sum.item() / self.summed, self.norm_sum.item() / self.summed
        self.loss_sum.zero_()
        self.norm_sum.zero_()
        self.summed = 0
        return means

    def take_maxima(self) -> dict[str, float]:
        """`loss_max` and `grad_norm_max` of a step since the last call."""
        maxima = {"loss_max": self.loss_max.item(), "grad_norm_max": self.norm_max.item()}
        self.loss_max.fill_(-math.inf)
        self.norm_max.fill_(-math.inf)
        return maxima

    def state(self) -> dict[str, Any]:
        return {**{key: getattr(self, key) for key in KEYS}, "summed": self.summed}

    def restore(self, state: dict[str, Any]) -> None:
        for key in KEYS:
            getattr(self, key).copy_(state[key])
        self.summed = state["summed"]
