"""Maximal update parametrisation: values and learning rates with which the best learning rate holds at any width."""

from __future__ import annotations

import math

from torch import nn

from ablate.components.embeddings import Table
from ablate.components.heads import SoftmaxHead
from ablate.components.inits import zero_bias
from ablate.contracts import Channel, Embedding, Head, Init, Linear, Mixer, Model, Site
from ablate.errors import UserError, within
from ablate.registry import register


@register("init", "mup", paper="Yang et al. 2022 (Tensor Programs V), arXiv:2203.03466, table 3 (Adam) and section 4")
class MaximalUpdate(Init):
    """Hidden matrices N(0, 1/d_in) at the rate lr/m, m = d_model / `base`; outputs N(0, 1/(d_in m)) at lr/m, 1/m^2 of
    the variance at `base`; embeddings N(0, 1/base) at lr; biases 0 and norms at lr.

    Hidden are all `Linear` matrices outside the embedding, outputs those of role `logits`; an embedding's own are
    N(0, 1/d_in) at lr. A tied head has the embedding's values and rate and multiplies its logits by 1/m, which is the
    other way to write the same (table 8). d_ff and n_heads d_head are taken to grow with d_model. Where d_head grows
    too, attention needs `score: mup`. Weight decay is divided by the multiplier of the rate, so that a step takes the
    same part off a weight at every width. The rates are those for Adam.

    Differs from the paper: neither queries nor untied outputs start from 0, as it recommends. Positions keep their
    own values; sublayers with matrices in no `Linear` are refused.
    """

    def __init__(self, site: Site, *, base: int = 64):
        super().__init__(site)
        within("init 'mup': base", base, 1)
        self.base = base
        self.times = site.d_model / base  # m

    def __call__(self, module: nn.Module) -> None:
        if isinstance(module, Linear):
            output = math.sqrt(self.times) if module.role == "logits" else 1.0
            nn.init.normal_(module.weight, std=module.gain / math.sqrt(module.in_features) / output)
            zero_bias(module)
        elif isinstance(module, Table):
            nn.init.normal_(module.weight, std=module.gain * self.base**-0.5)
        elif isinstance(module, Embedding) and getattr(module, "scale", 1.0) != 1.0:
            raise UserError("init 'mup' keeps embeddings at one size: set arch.embedding.scaled to false")
        elif isinstance(module, Head) and getattr(module, "tied", None):
            self.tie(module)
        elif isinstance(module, Mixer | Channel | Model):
            refuse_own_matrices(module)

    def tie(self, head: Head) -> None:
        """Multiply a tied head's logits by 1/m."""
        if not isinstance(head, SoftmaxHead):
            raise UserError(f"init 'mup' has no rule for {head.component} when it is tied: use softmax")
        if head.scale != 1.0:
            raise UserError("init 'mup' scales the logits by itself: set arch.head.scaled to false")
        head.scale = 1 / self.times

    def rates(self, model: nn.Module) -> dict[str, float]:
        embeddings = [module for module in model.modules() if isinstance(module, Embedding)]
        inside = {id(part) for embedding in embeddings for part in embedding.modules()}
        return {
            f"{path}.weight": 1 / self.times
            for path, module in model.named_modules()
            if isinstance(module, Linear) and id(module) not in inside
        }


def refuse_own_matrices(sublayer: Mixer | Channel | Model) -> None:
    """Raise `UserError` where a matrix is in no `Linear` and no `Table`: how it grows with the width is unknown."""
    for path, module in sublayer.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim > 1 and not isinstance(module, Linear | Table):
                where = f"{path}.{name}".lstrip(".")
                raise UserError(f"init 'mup' has no rule for {where} of {sublayer.component}: it is in no Linear")
