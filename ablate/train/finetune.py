"""What fine-tuning does to a model that was trained before: rates by depth, fresh top layers, mixout, decay to the
start."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ablate.models import Reader


def distances(model: nn.Module) -> dict[nn.Parameter, int]:
    """How far below the head each parameter stands: the head 0, layer i of n (from 0) n - i, embeddings and positions
    n + 1.

    Layer-wise decay gives it lr xi^distance (Howard and Ruder 2018, arXiv:1801.06146, section 3.2): with the
    embeddings numbered 0, layer i i + 1 and the head L = n + 1, that is lr xi^(L - l). The final norm and what the
    stack learns count as the top layer, weights that layers share as the lowest of them. Each tower of an
    encoder-decoder counts its own layers, so that the tops of both are at 1; embeddings that they share are the
    decoder's. A parameter that stands in none of these has distance 0.
    """
    found: dict[nn.Parameter, int] = dict.fromkeys(model.parameters(), 0)
    for reader in (module for module in model.modules() if isinstance(module, Reader)):
        top = reader.tower.site.n_layers
        head = getattr(reader, "head", None)
        found.update(dict.fromkeys(reader.parameters(), top + 1))
        found.update(dict.fromkeys(head.parameters() if head is not None else (), 0))
        found.update(dict.fromkeys(reader.tower.parameters(), 1))
        for layers in (reader.tower.functions, reader.tower.residuals):
            for index, layer in layers.items():
                found.update(dict.fromkeys(layer.parameters(), top - int(index)))
    return found


def top_layers(model: nn.Module, count: int) -> frozenset[str]:
    """The names in the state of the top `count` layers of every tower, and of its final norm and stack.

    They keep fresh values (Zhang et al. 2021, arXiv:2006.05987, section 4). The head is left as it is: a stage with
    another task has a new one anyway.
    """
    names: set[str] = set()
    for path, reader in model.named_modules():
        if not isinstance(reader, Reader) or not count:
            continue
        prefix = f"{path}.tower." if path else "tower."
        first = reader.tower.site.n_layers - count
        for name in reader.tower.state_dict():
            part, _, rest = name.partition(".")
            index = rest.partition(".")[0]
            if part not in ("functions", "residuals") or int(index) >= first:
                names.add(prefix + name)
    return frozenset(names)


class Mixout:
    """u = ((1 - M) w + M w0 - p w0) / (1 - p), M ~ Bernoulli(p) for each number: the loss is of u, and w is trained.

    Lee, Cho and Kang 2020, arXiv:1909.11299, equation 5: dropout that goes to the pre-trained w0. It is on the
    matrices of `Linear` modules, as in the authors' code, that were taken from the parent: the head of a new task has
    no w0. Differs from the paper: one M serves a step and all its micro-batches. M depends on (seed, step) alone.
    """

    def __init__(self, model: nn.Module, taken: Collection[str], p: float, seed: int):
        self.p, self.seed = p, seed
        linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        self.weights = [module.weight for name, module in linear if f"{name}.weight" in taken]
        self.start = [weight.detach().clone() for weight in self.weights]
        self.own: list[Tensor] = []
        self.kept: list[Tensor] = []

    @torch.no_grad()
    def mix(self, step: int) -> None:
        """Put u in the place of w, until `unmix`."""
        key = hashlib.blake2b(f"mixout/{self.seed}/{step}".encode(), digest_size=7).digest()
        generator = torch.Generator()  # on the CPU: the same on all devices
        generator.manual_seed(int.from_bytes(key, "little"))
        self.own = [weight.clone() for weight in self.weights]
        self.kept = [
            (torch.rand(weight.shape, generator=generator) >= self.p).to(weight.device) for weight in self.weights
        ]
        for weight, start, kept in zip(self.weights, self.start, self.kept, strict=True):
            weight.copy_(mixed(weight, start, kept, self.p))

    @torch.no_grad()
    def unmix(self) -> None:
        """Put w back, and make the gradients those of w: du/dw = (1 - M) / (1 - p)."""
        for weight, own, kept in zip(self.weights, self.own, self.kept, strict=True):
            weight.copy_(own)
            if weight.grad is not None:
                weight.grad.mul_(kept).div_(1 - self.p)
        self.own, self.kept = [], []


def mixed(weight: Tensor, start: Tensor, kept: Tensor, p: float) -> Tensor:
    """u, from w, w0 and 1 - M."""
    return (torch.where(kept, weight, start) - p * start) / (1 - p)


class DecayToStart:
    """w = w - lr wd (w - w0) beside the optimizer's step, in place of its weight decay: w0 are the values that this
    training began from, fresh ones too (Chelba and Acero 2004; Lee, Cho and Kang 2020, arXiv:1909.11299, section 2).

    Decoupled whatever the optimizer. It is on the same parameters as weight decay.
    """

    def __init__(self, groups: Sequence[dict[str, Any]]):
        self.parts = []
        for group in groups:
            if group["weight_decay"]:
                start = [parameter.detach().clone() for parameter in group["params"]]
                self.parts.append((group["params"], start, group["rate"] * group["weight_decay"]))
                group["weight_decay"] = 0.0

    @torch.no_grad()
    def pull(self, lr: float) -> None:
        """One step, at the learning rate of parameters whose own rate is 1."""
        for parameters, start, decay in self.parts:
            torch._foreach_lerp_(parameters, start, lr * decay)


def taken_from(model: nn.Module, begun: Mapping[str, Any]) -> set[str]:
    """The names of the parameters that `begin_from` took whole from the parent."""
    return {name for name, _ in model.named_parameters()} - {*begun["rows"], *begun["fresh"]}
