"""Gradients by layer and by distance in time: whether they vanish or explode on their way back."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ablate.build import Tower
from ablate.diagnose.inside import Losses, plain, towers, undisturbed
from ablate.tasks.base import Batch


def gradients(model: nn.Module, batch: Batch, losses: Losses = plain) -> dict[str, Any] | None:
    """Norms of the gradient of the loss, without auxiliary terms and smoothing. None where there are no layers.

    `layers`: ||dL / dtheta_l||, theta_l all parameters of layer l of a tower, L the mean over the batch's targets;
    None where a layer borrows all of them. `rest`: of the parameters outside of the layers.

    `distance` and `norm`: ||dL_T / dx_{T-k}|| for k = 0, 1, 2, 4, ..., as Pascanu, Mikolov and Bengio 2013,
    arXiv:1211.5063, section 2, ask of a recurrent network; L_T is the loss of a row's last scored target (of the
    row's class, with T its last token), x what enters the tower of the decoder, or the only one. Means over the
    rows that are long enough. None where a target has no token of its own.
    Differs from the paper: x is the embedded input, where the paper has the state; the last target alone.
    """
    found = towers(model)
    if not found:
        return None
    with undisturbed(model), torch.enable_grad():
        return {**_by_layer(model, found, batch, losses), **_by_distance(model, found, batch, losses)}


def _by_layer(model: nn.Module, found: dict[str, Tower], batch: Batch, losses: Losses) -> dict[str, Any]:
    parameters = list(model.parameters())
    grads = torch.autograd.grad(batch.mean(losses(model, batch)), parameters, allow_unused=True)
    square = {
        id(parameter): 0.0 if grad is None else grad.double().square().sum().item()
        for parameter, grad in zip(parameters, grads, strict=True)
    }
    layers: dict[str, list[float | None]] = {}
    for name, tower in found.items():
        layers[name] = []
        for layer in map(str, range(tower.site.n_layers)):
            parts = [each[layer] for each in (tower.functions, tower.residuals) if layer in each]
            mine = [id(parameter) for part in parts for parameter in part.parameters()]
            squares = [square.pop(each) for each in mine if each in square]  # one may be in two parts
            layers[name].append(math.fsum(squares) ** 0.5 if squares else None)
    return {"layers": layers, "rest": math.fsum(square.values()) ** 0.5}


def _by_distance(model: nn.Module, found: dict[str, Tower], batch: Batch, losses: Losses) -> dict[str, Any]:
    tower = found.get("decoder") or found.get("only")
    entered: list[Tensor] = []

    def look(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x_BTD = args[0] if args[0].requires_grad else args[0].requires_grad_()
        entered.append(x_BTD)
        return (x_BTD, *args[1:])

    nothing = {"distance": None, "norm": None}
    if tower is None:
        return nothing
    hook = tower.register_forward_pre_hook(look)
    try:
        nll = losses(model, batch)
    finally:
        hook.remove()
    if len(entered) != 1 or len(nll) != len(entered[0]):
        return nothing
    x_BTD = entered[0]
    ends = _ends(batch, nll, x_BTD.shape[1])
    if ends is None:
        return nothing
    last_B, scored_B = ends
    losses_B = nll if nll.ndim == 1 else nll.gather(1, last_B[:, None])[:, 0]
    (grad_BTD,) = torch.autograd.grad((losses_B * scored_B).sum(), x_BTD)
    norm_BT = torch.linalg.vector_norm(grad_BTD.double(), dim=-1)
    distances, norms = [], []
    for k in (0, *(2**i for i in range(x_BTD.shape[1].bit_length()))):
        reaches_B = scored_B & (last_B >= k)
        if reaches_B.any():
            distances.append(k)
            norms.append(norm_BT[reaches_B, last_B[reaches_B] - k].mean().item())
    return {"distance": distances, "norm": norms}


def _ends(batch: Batch, nll: Tensor, length: int) -> tuple[Tensor, Tensor] | None:
    """Each row's T, and whether it is scored; None where targets are not the tower's tokens."""
    if nll.ndim == 2 and nll.shape[1] == length:
        counts_BT = torch.ones_like(nll, dtype=torch.bool) if batch.counts is None else batch.counts.bool()
        place_T = torch.arange(length, device=nll.device)
        return (counts_BT * place_T).amax(1), counts_BT.any(1)
    if nll.ndim != 1:
        return None
    scored_B = torch.ones_like(nll, dtype=torch.bool) if batch.counts is None else batch.counts.bool()
    valid_BT = batch.marks.get("valid_BT")
    if valid_BT is None:
        return torch.full_like(scored_B, length - 1, dtype=torch.long), scored_B
    return (valid_BT.sum(1) - 1).clamp(min=0), scored_B
