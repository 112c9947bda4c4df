"""Diffusion transformers."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.components.embeddings import Table
from ablate.contracts import Linear, Model, Site
from ablate.errors import UserError, within
from ablate.registry import register

FREQUENCIES = 256  # features of the time's sines and cosines


class ZeroLinear(nn.Linear):
    """y = W x + b that starts from zeros, whatever the architecture's init."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


@register(
    "model", "dit", paper="Peebles and Xie 2023, arXiv:2212.09748, sections 3.1 and 3.2", form="denoise", causal=False
)
class DiT(Model):
    """The noise in an image at time t: patches of `patch` x `patch` pixels, `depth` adaLN-Zero blocks.

    c = MLP(sincos(t)) + E[class]; (b1, g1, a1, b2, g2, a2) = W silu(c) + b for each block;
    x = x + a1 MHA(LN(x) (1 + g1) + b1); x = x + a2 MLP(LN(x) (1 + g2) + b2), LN without parameters, eps 1e-6,
    MLP one hidden layer of d_ff with GELU (tanh); the last layer is W (LN(x) (1 + g) + b), its (b, g) from c as well.
    Every W that makes (b, g, a), and the last one, start from 0: blocks start as the identity, the output as 0.
    Positions are fixed sines and cosines of column and row. In training a row's class is dropped with probability
    `class_dropout`, replaced by class number `site.classes`, which classifier-free guidance asks for.
    6 d^2 + 6 d parameters in a block's modulation.
    Differs from the paper: no learned variance (C channels leave, not 2 C); other matrices start from `arch.init`;
    without classes c is of the time alone; the training's dropout is on what the branches add.
    """

    def __init__(self, site: Site, *, patch: int = 2, class_dropout: float = 0.1):
        super().__init__(site)
        within("model 'dit': patch", patch, 1)
        within("model 'dit': class_dropout", class_dropout, 0, 1)
        if site.image is None:
            raise UserError("model 'dit' reads images: its task must have some")
        channels, *sides = site.image
        if any(side % patch for side in sides):
            raise UserError(f"model 'dit': patch {patch} must divide the image's {sides[0]} x {sides[1]} pixels")
        if site.d_model % 4:
            raise UserError(f"model 'dit': arch.d_model {site.d_model} must be a multiple of 4, for its positions")
        self.patch, self.class_dropout = patch, class_dropout
        self.rows, self.columns = (side // patch for side in sides)
        d = site.d_model
        self.patches = Linear(channels * patch**2, d, bias=site.bias)
        self.register_buffer("places_TD", places(self.rows, self.columns, d), persistent=False)
        self.time_in, self.time_out = Linear(FREQUENCIES, d, bias=site.bias), Linear(d, d, bias=site.bias)
        self.classes = Table(site.classes + 1, d) if site.classes else None
        self.blocks = nn.ModuleList(Block(site) for _ in range(site.n_layers))
        self.modulation = ZeroLinear(d, 2 * d, bias=site.bias)
        self.output = ZeroLinear(d, channels * patch**2, bias=site.bias)

    def forward(self, images_BCHW: Tensor, t_B: Tensor, classes_B: Tensor) -> Tensor:
        """The noise, (B, C, H, W)."""
        C, P = images_BCHW.shape[1], self.patch
        patches_BRQX = images_BCHW.unflatten(3, (-1, P)).unflatten(2, (-1, P)).permute(0, 2, 4, 1, 3, 5).flatten(3)
        x_BTD = self.patches(patches_BRQX.flatten(1, 2))
        x_BTD = x_BTD + self.get_buffer("places_TD").to(x_BTD.dtype)
        c_BD = F.silu(self.condition(t_B, classes_B))
        for block in self.blocks:
            x_BTD = block(x_BTD, c_BD)
        shift_B1D, scale_B1D = self.modulation(c_BD)[:, None].chunk(2, -1)
        patches_BTX = self.output(normed(x_BTD) * (1 + scale_B1D) + shift_B1D)
        patches = patches_BTX.unflatten(1, (self.rows, self.columns)).unflatten(3, (P, P, C))
        return patches.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)

    def condition(self, t_B: Tensor, classes_B: Tensor) -> Tensor:
        """c, (B, D)."""
        weight = self.time_in.weight
        half = FREQUENCIES // 2
        rates = torch.exp(-math.log(10_000) / half * torch.arange(half, device=t_B.device, dtype=torch.float64))
        angles_BX = t_B[:, None].double() * rates
        waves_BX = torch.cat((angles_BX.cos(), angles_BX.sin()), -1).to(weight.dtype)
        c_BD = self.time_out(F.silu(self.time_in(waves_BX)))
        if self.classes is None:
            return c_BD
        if self.training and self.class_dropout:
            dropped_B = torch.rand(classes_B.shape, device=classes_B.device) < self.class_dropout
            classes_B = torch.where(dropped_B, self.site.classes, classes_B)
        return c_BD + self.classes(classes_B)

    def nll(self, *batch: Tensor, **marks: Tensor) -> Tensor:
        """The mean squared error of the noise that is seen in noised images, (B,)."""
        *inputs, noise = batch
        return (self(*inputs).to(noise.dtype) - noise).square().flatten(1).mean(1)

    def example(self, rows: int, length: int) -> tuple[Tensor, ...]:
        """Noised images, times, classes, noise."""
        assert self.site.image is not None
        images, numbers = torch.zeros(rows, *self.site.image), torch.zeros(rows, dtype=torch.long)
        return images, numbers, numbers, images


class Block(nn.Module):
    """One adaLN-Zero block."""

    def __init__(self, site: Site):
        super().__init__()
        d, inner = site.d_model, site.n_heads * site.d_head
        self.heads, self.rate = site.n_heads, site.dropout
        self.modulation = ZeroLinear(d, 6 * d, bias=site.bias)
        self.query, self.key = (Linear(d, inner, bias=site.bias, role="score") for _ in range(2))
        self.value = Linear(d, inner, bias=site.bias)
        self.project = Linear(inner, d, bias=site.bias, role="write")
        self.widen = Linear(d, site.d_ff, bias=site.bias)
        self.narrow = Linear(site.d_ff, d, bias=site.bias, role="write")

    def forward(self, x_BTD: Tensor, c_BD: Tensor) -> Tensor:
        b1, g1, a1, b2, g2, a2 = self.modulation(c_BD)[:, None].chunk(6, -1)
        y_BTD = self.attend(normed(x_BTD) * (1 + g1) + b1)
        x_BTD = x_BTD + a1 * F.dropout(y_BTD, self.rate, self.training)
        hidden_BTF = F.gelu(self.widen(normed(x_BTD) * (1 + g2) + b2), approximate="tanh")
        return x_BTD + a2 * F.dropout(self.narrow(hidden_BTF), self.rate, self.training)

    def attend(self, x_BTD: Tensor) -> Tensor:
        q_BHTK, k_BHTK, v_BHTK = (
            matrix(x_BTD).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for matrix in (self.query, self.key, self.value)
        )
        y_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK)
        return self.project(y_BHTK.transpose(1, 2).flatten(2))


def normed(x_BTD: Tensor) -> Tensor:
    """LayerNorm without parameters."""
    return F.layer_norm(x_BTD, x_BTD.shape[-1:], eps=1e-6)


def places(rows: int, columns: int, d: int) -> Tensor:
    """Sines and cosines of the column, then of the row: (rows columns, d)."""
    rates = 10_000 ** -(torch.arange(d // 4, dtype=torch.float64) / (d / 4))

    def waves(places: Tensor) -> Tensor:
        angles = places.flatten()[:, None] * rates
        return torch.cat((angles.sin(), angles.cos()), -1)

    row, column = torch.meshgrid(
        torch.arange(rows, dtype=torch.float64), torch.arange(columns, dtype=torch.float64), indexing="ij"
    )
    return torch.cat((waves(column), waves(row)), -1).float()
