"""Optimizers. Weight decay is on matrices; norms, biases and other vectors are left alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ablate.registry import register


class OptimizerChoice:
    """Builds a torch optimizer over parameter groups; the learning rate is set anew before every step."""

    def build(self, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        raise NotImplementedError


@register("optimizer", "adamw", paper="Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2")
class AdamW(OptimizerChoice):
    """Adam; the decay lr weight_decay w is subtracted beside the adaptive step.

    Without `bias_correction` the step is lr m / (sqrt(v) + eps), m and v as they are, as in BERT's released code
    (Mosbach et al. 2021, arXiv:2006.04884). Differs from the paper: beta2 is 0.95 unless given, as in GPT-3.
    """

    def __init__(self, *, beta1: float = 0.9, beta2: float = 0.95, eps: float = 1e-8, bias_correction: bool = True):
        self.settings: dict[str, Any] = {"betas": (beta1, beta2), "eps": eps}
        self.bias_correction = bias_correction

    def build(self, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        if not self.bias_correction:
            return UncorrectedAdam(groups, lr=lr, decoupled_weight_decay=True, **self.settings)
        return torch.optim.AdamW(groups, lr=lr, fused=True, **self.settings)


@register("optimizer", "adam", paper="Kingma and Ba 2015, arXiv:1412.6980, algorithm 1")
class Adam(OptimizerChoice):
    """Weight decay, where there is any, is added to the gradient (L2).

    Without `bias_correction` the step is lr m / (sqrt(v) + eps), m and v as they are.
    """

    def __init__(self, *, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8, bias_correction: bool = True):
        self.settings: dict[str, Any] = {"betas": (beta1, beta2), "eps": eps}
        self.bias_correction = bias_correction

    def build(self, groups: list[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        if not self.bias_correction:
            return UncorrectedAdam(groups, lr=lr, **self.settings)
        return torch.optim.Adam(groups, lr=lr, fused=True, **self.settings)


class UncorrectedAdam(torch.optim.Adam):
    """Adam without its bias correction.

    m = beta1 m + (1 - beta1) g; v = beta2 v + (1 - beta2) g^2; w = w - lr m / (sqrt(v) + eps). Decoupled weight
    decay takes lr weight_decay w off before that; the other is added to g.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            params: list[Tensor] = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not params:
                continue
            grads: list[Tensor] = [parameter.grad for parameter in params if parameter.grad is not None]
            lr, decay, (beta1, beta2) = group["lr"], group["weight_decay"], group["betas"]
            for parameter in params:
                if not self.state[parameter]:  # torch asks for a step where it loads a state
                    zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                    self.state[parameter] = {"step": torch.zeros(()), **zeros}
            means, squares = ([self.state[each][name] for each in params] for name in ("exp_avg", "exp_avg_sq"))
            if decay and group["decoupled_weight_decay"]:
                torch._foreach_mul_(params, 1 - lr * decay)
            elif decay:
                grads = list(torch._foreach_add(grads, params, alpha=decay))
            torch._foreach_lerp_(means, grads, 1 - beta1)
            torch._foreach_mul_(squares, beta2)
            torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
            roots = torch._foreach_sqrt(squares)
            torch._foreach_add_(roots, group["eps"])
            torch._foreach_addcdiv_(params, means, roots, -lr)


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


def decay_groups(
    model: nn.Module,
    weight_decay: float,
    depths: Mapping[nn.Parameter, float] | None = None,
    widths: Mapping[nn.Parameter, float] | None = None,
) -> list[dict[str, Any]]:
    """Parameter groups: matrices with weight decay, vectors and scalars without.

    `rate` of a group multiplies the learning rate: the parameter's factor in `depths` times that in `widths`, each 1
    where it has none. A factor of `widths` divides the weight decay, so that rate x decay is that of any width.
    """
    groups: dict[tuple[bool, float, float], dict[str, Any]] = {}
    parameters = list(model.parameters())
    for parameter in sorted(parameters, key=lambda parameter: parameter.ndim < 2):
        depth, width = (each.get(parameter, 1.0) if each else 1.0 for each in (depths, widths))
        decay = weight_decay / width if parameter.ndim >= 2 else 0.0
        key = parameter.ndim >= 2, decay, depth * width
        group = groups.setdefault(key, {"params": [], "weight_decay": decay, "rate": depth * width})
        group["params"].append(parameter)
    return list(groups.values())
