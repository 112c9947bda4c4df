"""Initialisations. They know `Linear` (by its role) and `Table`; other modules keep their own values."""

from __future__ import annotations

import math

from torch import nn

from ablate.components.embeddings import Table
from ablate.contracts import Init, Linear, Site
from ablate.errors import within
from ablate.registry import register


@register("init", "vaswani", paper="Vaswani et al. 2017, arXiv:1706.03762, as its reference code initialises")
class VaswaniInit(Init):
    """Matrices Xavier-uniform, U(+-sqrt(6 / (d_in + d_out))); biases 0; embeddings N(0, 1/d_model)."""

    draw = staticmethod(nn.init.xavier_uniform_)

    def __call__(self, module: nn.Module) -> None:
        if isinstance(module, Linear):
            self.draw(module.weight, gain=module.gain)
            zero_bias(module)
        elif isinstance(module, Table):
            nn.init.normal_(module.weight, std=module.gain * module.width**-0.5)


@register("init", "t5", paper="Raffel et al. 2020, arXiv:1910.10683, as the authors' mesh code initialises")
class T5Init(Init):
    """Matrices N(0, 1/d_in); biases 0; embeddings N(0, 1).

    With attention's `score: dot` the queries carry the missing 1/sqrt(d_head): N(0, 1/(d_model d_head)).
    """

    def __call__(self, module: nn.Module) -> None:
        if isinstance(module, Linear):
            nn.init.normal_(module.weight, std=module.gain * module.in_features**-0.5)
            zero_bias(module)
        elif isinstance(module, Table):
            nn.init.normal_(module.weight, std=module.gain)


@register("init", "lecun", paper="LeCun, Bottou, Orr and Müller 1998, Efficient BackProp, section 4.6")
class LeCunInit(Init):
    """Matrices N(0, 1/d_in); biases 0; embeddings N(0, 1/d_model): the same activations at every width.

    Differs from the paper: matrices that write to the residual stream N(0, 1/(d_in n)), n the number of
    residual branches in the tower, as GPT-2 does.
    """

    def __call__(self, module: nn.Module) -> None:
        if isinstance(module, Linear):
            branches = self.site.sublayers if module.role == "write" else 1
            nn.init.normal_(module.weight, std=module.gain / math.sqrt(module.in_features * branches))
            zero_bias(module)
        elif isinstance(module, Table):
            nn.init.normal_(module.weight, std=module.gain * module.width**-0.5)


@register("init", "gpt2", paper="Radford et al. 2019 (GPT-2), section 2.3, and its released code")
class GPT2Init(Init):
    """Matrices and embeddings N(0, std^2); biases 0.

    Matrices that write to the residual stream N(0, std^2 / n), n the number of residual branches in the tower
    (2 depth for attention and ffn).
    """

    def __init__(self, site: Site, *, std: float = 0.02):
        super().__init__(site)
        within("init 'gpt2': std", std, 0)
        self.std = std

    def __call__(self, module: nn.Module) -> None:
        if isinstance(module, Linear):
            scale = 1 / math.sqrt(self.site.sublayers) if module.role == "write" else 1.0
            nn.init.normal_(module.weight, std=self.std * scale * module.gain)
            zero_bias(module)
        elif isinstance(module, Table):
            nn.init.normal_(module.weight, std=self.std * module.gain)


def zero_bias(module: Linear) -> None:
    """Where it has one."""
    if module.bias is not None:
        nn.init.zeros_(module.bias)
