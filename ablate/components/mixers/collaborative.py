"""Attention whose heads share one set of features of queries and keys."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from ablate.components.mixers.attention import Attention
from ablate.contracts import Context, Linear, Position, Site
from ablate.errors import UserError, within
from ablate.registry import register


@register("mixer", "collaborative", paper="Cordonnier, Loukas and Jaggi 2020, arXiv:2006.16362, section 3")
class CollaborativeAttention(Attention):
    """softmax((x W_Q diag(m_h)) (x W_K)^T / sqrt(d_head) + bias + mask) V_h for each head h.

    W_Q and W_K (d_model, `shared`) are the same for all heads, which mix their features by M (n_heads, `shared`);
    `shared` is n_heads d_head unless given. Values are the heads' own. Decoding keeps one head of keys.
    `start` of M: `normal` N(0, 0.2^2), the default of the authors' code; `heads` ones where head h would have its
    features, a share of `shared` each, so that it starts as plain attention; `ones`.
    Differs from the paper: sqrt(d_head) whatever `shared` is, where the authors' code has sqrt(shared / n_heads);
    where the architecture has biases, queries and keys have plain ones, not the code's content bias.
    """

    def __init__(
        self,
        site: Site,
        *,
        shared: int | None = None,
        start: Literal["normal", "heads", "ones"] = "normal",
        d_value: int | None = None,
        dropout: float = 0.0,
    ):
        super().__init__(site, d_value=d_value, dropout=dropout)
        shared = site.n_heads * site.d_head if shared is None else shared
        within("mixer 'collaborative': shared", shared, 1)
        if start == "heads" and shared < site.n_heads:
            raise UserError(
                f"mixer 'collaborative': start heads needs a feature for each of n_heads {site.n_heads}, and "
                f"shared is {shared}; make it larger, or start normal or ones"
            )
        self.d_head, self.shared, self.start = site.d_head, shared, start
        self.q = Linear(site.d_model, shared, bias=site.bias, role="score")
        self.k = Linear(site.d_model, shared, bias=site.bias, role="score")
        self.mixing = nn.Parameter(torch.empty(site.n_heads, shared))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.start == "normal":
            nn.init.normal_(self.mixing, std=0.2)
        elif self.start == "ones":
            nn.init.ones_(self.mixing)
        else:
            owner = torch.arange(self.shared, device=self.mixing.device) * self.n_heads // self.shared
            head = torch.arange(self.n_heads, device=self.mixing.device)
            with torch.no_grad():
                self.mixing.copy_(owner[None] == head[:, None])

    def queries(self, x_BTD: Tensor) -> Tensor:
        return self.q(x_BTD)[:, None] * self.mixing[:, None]

    def keys_values(self, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
        return self.k(x_BSD)[:, None], self.split(self.v(x_BSD))

    def rotate(self, q_BHTK: Tensor, k_BHTK: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        if type(ctx.position).rotate is not Position.rotate:
            self.need_heads("rotates", ctx)
        return super().rotate(q_BHTK, k_BHTK, ctx)

    def position_bias(self, q_BHTK: Tensor, k_BHSK: Tensor, pos_S: Tensor, ctx: Context) -> Tensor | None:
        try:
            return super().position_bias(q_BHTK, k_BHSK, pos_S, ctx)
        except RuntimeError:
            self.need_heads("reads", ctx)  # a position that knows heads of d_head features has met others
            raise

    def need_heads(self, does: str, ctx: Context) -> None:
        """Raise `UserError` where the shared features are not those of a head, which the position is made for."""
        if self.shared != self.d_head:
            position = ctx.position.component.split("/")[-1]
            raise UserError(
                f"position {position!r} {does} heads of d_head {self.d_head} features, and mixer 'collaborative' "
                f"shares {self.shared}: set shared to {self.d_head}, or use another position"
            )

    def attend(self, q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, ctx: Context) -> Tensor:
        return super().attend(q_BHTK, k_BHSK.expand(-1, self.n_heads, -1, -1), v_BHSK, ctx)
