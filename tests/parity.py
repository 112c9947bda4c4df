"""What the parity tests share: our model on jittered weights, theirs on the same, the comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.build import build_model
from ablate.spec import ArchSpec, parse

EXACT = 1e-12  # float64, two layers and back
KEY_BIASES = ("key.bias", "k_proj.bias")
Weights = Mapping[str, Tensor]
Mapped = Callable[[Weights], dict[str, Tensor]]


def our_model(tree: Mapping[str, Any], vocab: int, length: int, **how: Any) -> Any:
    """In float64, every parameter moved away from its initial value."""
    model = build_model(parse(ArchSpec, tree), vocab, length, **how).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def with_weights(theirs: nn.Module, weights: Mapping[str, Tensor]) -> Any:
    """Their model in float64 with these weights: all of them, and nothing else."""
    theirs.double().eval()
    assert dict(theirs.named_parameters()).keys() == weights.keys()
    theirs.load_state_dict({name: weight.detach() for name, weight in weights.items()}, strict=False)
    return theirs


def linear(weights: Weights, theirs: str, ours: str) -> dict[str, Tensor]:
    """A matrix, and its bias where it has one."""
    found = {f"{theirs}.weight": weights[f"{ours}.weight"]}
    if f"{ours}.bias" in weights:
        found[f"{theirs}.bias"] = weights[f"{ours}.bias"]
    return found


def norm(weights: Weights, theirs: str, ours: str) -> dict[str, Tensor]:
    """A norm's gain, and its shift where it has one."""
    found = {f"{theirs}.weight": weights[f"{ours}.gain"]}
    if f"{ours}.shift" in weights:
        found[f"{theirs}.bias"] = weights[f"{ours}.shift"]
    return found


def layer(
    weights: Weights, theirs: str, ours: str, index: int, linears: Mapping[str, str], norms: Mapping[str, str]
) -> dict[str, Tensor]:
    """One layer of our tower under the names of their block: sublayers' matrices, residuals' norms."""
    found: dict[str, Tensor] = {}
    for their_name, our_name in linears.items():
        found |= linear(weights, f"{theirs}.{their_name}", f"{ours}.functions.{index}.{our_name}")
    for their_name, our_name in norms.items():
        found |= norm(weights, f"{theirs}.{their_name}", f"{ours}.residuals.{index}.{our_name}.norm")
    return found


def error(one: Tensor, other: Tensor) -> float:
    """The largest difference, relative to the largest entry."""
    assert one.shape == other.shape and other.dtype == torch.float64
    return ((one - other).abs().max() / other.abs().max()).item()


def same_gradients(ours: nn.Module, theirs: nn.Module, names: Mapped, tolerance: float = EXACT) -> None:
    """After both have run backward."""
    gradients = names({key: p.grad for key, p in ours.named_parameters() if p.grad is not None})
    for key, p in theirs.named_parameters():
        assert p.grad is not None, key
        if key.endswith(KEY_BIASES):  # they shift all scores of a query alike: no gradient but rounding
            assert max(p.grad.abs().max(), gradients[key].abs().max()) < tolerance, key
            continue
        assert p.grad.abs().max() > 1e-6, key
        assert error(gradients[key], p.grad) < tolerance, key


def same_model(
    ours: nn.Module,
    theirs: nn.Module,
    names: Mapped,
    logits: tuple[Tensor, Tensor],
    nll: Tensor,
    targets: Tensor,
    tolerance: float = EXACT,
) -> None:
    """Logits (ours, theirs), loss, and every gradient."""
    assert error(*logits) < tolerance
    loss, expected = nll.mean(), F.cross_entropy(logits[1].flatten(0, -2), targets.flatten())
    assert abs(loss.item() - expected.item()) < tolerance * max(1.0, expected.item())
    loss.backward()
    expected.backward()
    same_gradients(ours, theirs, names, tolerance)
