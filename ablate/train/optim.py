"""Optimizers. Weight decay is on matrices; norms, biases and other vectors are left alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ablate.registry import register


class OptimizerChoice:
    """Builds a torch optimizer over parameter groups; the learning rate is set anew before every step."""

    def build(self, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        raise NotImplementedError


@register("optimizer", "adamw", paper="Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2")
class AdamW(OptimizerChoice):
    """Adam with bias correction; the decay lr weight_decay w is subtracted beside the adaptive step.

    Differs from the paper: beta2 is 0.95 unless given, as in GPT-3.
    """

    def __init__(self, *, beta1: float = 0.9, beta2: float = 0.95, eps: float = 1e-8):
        self.settings: dict[str, Any] = {"betas": (beta1, beta2), "eps": eps}

    def build(self, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, lr=lr, fused=True, **self.settings)


@register("optimizer", "adam", paper="Kingma and Ba 2015, arXiv:1412.6980, algorithm 1")
class Adam(OptimizerChoice):
    """Adam with bias correction; weight decay, where there is any, is added to the gradient (L2)."""

    def __init__(self, *, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8):
        self.settings: dict[str, Any] = {"betas": (beta1, beta2), "eps": eps}

    def build(self, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(groups, lr=lr, fused=True, **self.settings)


@register("optimizer", "sgd", paper="Sutskever et al. 2013, PMLR 28 (momentum)")
class SGD(OptimizerChoice):
    """v = momentum v + g; w = w - lr v, or Nesterov's form; weight decay is added to the gradient."""

    def __init__(self, *, momentum: float = 0.9, nesterov: bool = False):
        self.settings: dict[str, Any] = {"momentum": momentum, "nesterov": nesterov}

    def build(self, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr=lr, fused=True, **self.settings)


@register("optimizer", "radam", paper="Liu et al. 2020, arXiv:1908.03265, algorithm 2")
class RAdam(OptimizerChoice):
    """Adam whose step is rectified while the variance estimate is young; decoupled weight decay."""

    def __init__(self, *, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8):
        self.settings: dict[str, Any] = {"betas": (beta1, beta2), "eps": eps}

    def build(self, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        return torch.optim.RAdam(groups, lr=lr, decoupled_weight_decay=True, foreach=True, **self.settings)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: matrices with weight decay, vectors and scalars without."""
    parameters = list(model.parameters())
    matrices = [parameter for parameter in parameters if parameter.ndim >= 2]
    others = [parameter for parameter in parameters if parameter.ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
