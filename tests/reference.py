"""What the reference tests share: a site, components in float64, comparison."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ablate import registry
from ablate.contracts import Cache, Context, Position, Site
from ablate.spec import Component

SITE = Site(d_model=12, n_heads=4, d_head=6, d_ff=20, vocab=11, max_len=16, n_layers=2, sublayers=4)
T, B = 9, 2
EXACT = 1e-12  # sums of some dozens of float64 products
TABLE = 5e-7  # tables of sines and slopes are held in float32: 2^-24 of values up to 8


def make(slot: str, name: str, *args: Any, **options: Any) -> Any:
    """A component in float64, the same at every call; its parameters moved away from zeros and ones."""
    torch.manual_seed(0)
    made = registry.make(slot, Component(name, tuple(options.items())), *args)
    if isinstance(made, nn.Module):
        made.double().eval()
        jitter(made, seed=5)
    return made


def jitter(module: nn.Module, seed: int = 0, scale: float = 0.2) -> None:
    """Move every parameter away from where it is."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data += scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def context(position: Position | None = None, length: int = T) -> Context:
    return Context(position or make("position", "none", SITE), torch.arange(length))


def array(tensor: Tensor | None) -> Any:
    return 0.0 if tensor is None else tensor.detach().numpy()


def near(one: Any, other: Any, atol: float = EXACT) -> None:
    np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=0, atol=atol)


def layer_norm(x: np.ndarray, norm: Any) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * array(norm.gain) + array(norm.shift)


def decoded(mixer: Any, x_BTD: Tensor, pieces: list[int]) -> Tensor:
    """What a mixer makes of a sequence in pieces, with a cache."""
    cache, outputs, start = Cache(), [], 0
    for piece in pieces:
        ctx = Context(make("position", "none", SITE), torch.arange(start, start + piece), cache)
        outputs.append(mixer(x_BTD[:, start : start + piece], ctx))
        cache.length = start = start + piece
    return torch.cat(outputs, 1)


def torch_attention(mixer: Any) -> nn.MultiheadAttention:
    """PyTorch's, with the matrices of ours."""
    theirs = nn.MultiheadAttention(12, 4, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat((mixer.q.weight, mixer.k.weight, mixer.v.weight)))
        theirs.in_proj_bias.copy_(torch.cat((mixer.q.bias, mixer.k.bias, mixer.v.bias)))
        theirs.out_proj.load_state_dict(mixer.out.state_dict())
    return theirs
