"""What is computed in float32 whatever the type of its inputs: softmaxes, routers, statistics."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """x in float32 at least: 16-bit numbers are widened, others stay as they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
