"""Operations that `torch.func.vmap` has no rule for, or not the right one, along the model axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import _add_batch_dim, current_level, get_unwrapped, is_batchedtensor, maybe_get_bdim
from torch._functorch.pyfunctorch import temporarily_pop_interpreter_stack
from torch.overrides import TorchFunctionMode


class Apart(Exception):
    """Trials that cannot be trained as one program; says why."""


class Along(TorchFunctionMode):
    """Within a `vmap` over K models: attention by one fused kernel over K batches (vmap would take one model after
    the other), and dropout whose masks each model draws for itself, from its own generator, as it would alone.

    vmap has no public way to say how an operation is batched that does not cost a third of a millisecond a call.
    """

    def __init__(self, generators: Sequence[torch.Generator]):
        super().__init__()
        self.generators = generators

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if function is F.scaled_dot_product_attention:
            return _attention(len(self.generators), *args, **(kwargs or {}))
        if function is F.dropout:
            return _dropout(self.generators, *args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def _attention(
    models: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    **others: Any,
) -> Tensor:
    if dropout_p:
        raise Apart("the weights of fused attention are dropped out")
    with temporarily_pop_interpreter_stack():
        q, k, v = (_whole(each, models).flatten(0, 1) for each in (query, key, value))
        mask = attn_mask
        if mask is not None and (is_batchedtensor(mask) or mask.ndim > 2):
            mask = _whole(mask, models)
            while mask.ndim < 5:  # (K, B, H, T, S)
                mask = mask.unsqueeze(1)
            mask = mask.expand(-1, len(q) // models, -1, -1, -1).flatten(0, 1)
        y = F.scaled_dot_product_attention(q, k, v, mask, 0.0, **others).unflatten(0, (models, -1))
    return _add_batch_dim(y, 0, current_level())


def _dropout(
    generators: Sequence[torch.Generator], input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    if not training or p == 0:
        return input
    with temporarily_pop_interpreter_stack():
        x = _whole(input, len(generators))
        kept = torch.stack([torch.empty_like(x[0]).bernoulli_(1 - p, generator=each) for each in generators])
        y = x * kept.div_(1 - p)
    return _add_batch_dim(y, 0, current_level())


def _whole(x: Tensor, models: int) -> Tensor:
    """The tensor of all models, their axis first; one that has no such axis is each model's."""
    if not is_batchedtensor(x):
        return x.expand(models, *x.shape)
    at = maybe_get_bdim(x)
    return get_unwrapped(x).movedim(at, 0) if at else get_unwrapped(x)
