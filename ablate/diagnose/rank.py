"""How far the tokens of a sequence have become one, layer by layer.

Dong, Cordonnier and Loukas 2021, arXiv:2103.03404: attention alone drives all tokens of a sequence to the same
vector, doubly exponentially with depth. res(X) = X - 1 x^T is what is left of X without the vector x that all rows
have in common, and the ratio of its norm to that of X falls to 0 where the rank collapses to 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ablate.models import EncoderDecoder, Reader


def rank_residual(x_BTD: Tensor) -> Tensor:
    """||res(X)|| / ||X|| of each sequence, (B,), with ||A|| = sqrt(||A||_1 ||A||_inf), section 2 of the paper.

    Differs from the paper: x is the mean of the tokens, where the paper takes the x that makes the norm least.
    """
    x_BTD = x_BTD.double()
    return composite_norm(x_BTD - x_BTD.mean(1, keepdim=True)) / composite_norm(x_BTD)


def rank_residual_frobenius(x_BTD: Tensor) -> Tensor:
    """The same ratio in Frobenius norms, for which the mean of the tokens is the best x."""
    x_BTD = x_BTD.double()
    return torch.linalg.matrix_norm(x_BTD - x_BTD.mean(1, keepdim=True)) / torch.linalg.matrix_norm(x_BTD)


def composite_norm(x_BTD: Tensor) -> Tensor:
    """sqrt(||X||_1 ||X||_inf): the largest column sum and the largest row sum of absolute values."""
    return (x_BTD.abs().sum(1).amax(-1) * x_BTD.abs().sum(2).amax(-1)).sqrt()


@torch.no_grad()
def by_layer(
    model: nn.Module, inputs: tuple[Tensor, ...], marks: Mapping[str, Tensor] | None = None
) -> dict[str, list[float | None]] | None:
    """Both ratios before the first layer and after each, means over the batch; None where there are no layers.

    Under a causal mask the first token attends to itself alone, and what tokens collapse towards is its value:
    such figures are not comparable with those of attention that sees both sides. A ratio that is no number is None.
    """
    if not isinstance(model, Reader | EncoderDecoder):
        return None
    training = model.training
    trace: list[Tensor] = []
    model.eval()
    model(*inputs, **(marks or {}), trace=trace)
    model.train(training)
    ratios: dict[str, Any] = {"rank_residual": rank_residual, "rank_residual_frobenius": rank_residual_frobenius}
    found = {name: [ratio(x_BTD).mean().item() for x_BTD in trace] for name, ratio in ratios.items()}
    return {name: [each if math.isfinite(each) else None for each in values] for name, values in found.items()}
