"""Attention whose scores are not plain products of queries and keys."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ablate.components.mixers.attention import Attention
from ablate.contracts import Context, Position, Site
from ablate.precision import wide
from ablate.registry import register

PAIRS = 2**25  # numbers in the largest block of (B, H, T, S, K) that is held at a time


class PairwiseScores(Attention):
    """score(q, k) = w_h . f(q + k): a vector for every pair of a query and a key, weighed by one of the head's own.

    Queries are taken in blocks of bounded memory, and a block's vectors are computed again in the backward pass.
    """

    def __init__(self, site: Site, *, d_value: int | None = None, dropout: float = 0.0):
        super().__init__(site, d_value=d_value, dropout=dropout)
        self.w = nn.Parameter(torch.empty(site.n_heads, site.d_head))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        raise NotImplementedError

    def nonlinear(self, sum_BHTSK: Tensor) -> Tensor:
        raise NotImplementedError

    def scores(self, q_BHTK: Tensor, k_BHSK: Tensor) -> Tensor:
        B, H, T, K = q_BHTK.shape
        rows = max(1, PAIRS // (B * H * k_BHSK.shape[2] * K))
        if rows >= T or q_BHTK.is_meta:  # counting must not see a block twice
            return self.block(q_BHTK, k_BHSK)
        blocks = [checkpoint(self.block, q, k_BHSK, use_reentrant=False) for q in q_BHTK.split(rows, 2)]
        return torch.cat(blocks, 2)

    def block(self, q_BHTK: Tensor, k_BHSK: Tensor) -> Tensor:
        hidden_BHTSK = self.nonlinear(q_BHTK[:, :, :, None] + k_BHSK[:, :, None])
        return (hidden_BHTSK @ self.w[:, None, :, None])[..., 0]


@register("mixer", "additive", paper="Bahdanau, Cho and Bengio 2014, arXiv:1409.0473, section 3.1 and appendix A.1.2")
class AdditiveAttention(PairwiseScores):
    """softmax(w_h . tanh(q_t + k_s) + bias + mask) V for each head, with a learned w_h of d_head features.

    The paper's e_ts = v_a . tanh(W_a s_t + U_a h_s); W_a and U_a are the matrices that make queries and keys anyway.
    w starts at 0, as v_a does there: every visible token counts the same at first.
    Differs from the paper: several heads, and values of their own in the place of h.
    """

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.w)

    def nonlinear(self, sum_BHTSK: Tensor) -> Tensor:
        return sum_BHTSK.tanh()


@register("mixer", "concat", paper="Brody, Alon and Yahav 2021 (GATv2), arXiv:2105.14491, equation 7")
class ConcatAttention(PairwiseScores):
    """softmax(a_h . LeakyReLU(W [h_t || h_s]) + bias + mask) V for each head: slope 0.2, an a_h of d_head features.

    W [h_t || h_s] = W_q h_t + W_k h_s, the queries and the keys. a starts Xavier-uniform, as a matrix (d_head, 1).
    Differs from the paper: values have a matrix of their own, where the paper's are W_k h_s; the start is chosen.
    """

    def reset_parameters(self) -> None:
        bound = math.sqrt(6 / (self.w.shape[1] + 1))
        nn.init.uniform_(self.w, -bound, bound)

    def nonlinear(self, sum_BHTSK: Tensor) -> Tensor:
        return F.leaky_relu(sum_BHTSK, 0.2)


@register("mixer", "gaussian", paper="Nadaraya 1964; Watson 1964; the kernel of Tsai et al. 2019, arXiv:1908.11775")
class GaussianAttention(Attention):
    """softmax(-|q_t - k_s|^2 / (2 sigma^2) + bias + mask) V: kernel regression for each head.

    Computed as (q . k - |k|^2 / 2) / sigma^2, which differs by what depends on the query alone. sigma^2 is
    sqrt(d_head), so that keys of one length make it scaled dot products; `learned`: a log sigma for each head starts
    there.
    """

    def __init__(self, site: Site, *, learned: bool = False, d_value: int | None = None, dropout: float = 0.0):
        super().__init__(site, d_value=d_value, dropout=dropout)
        self.d_head, self.d_value = site.d_head, self.v.out_features // site.n_heads
        self.log_sigma = nn.Parameter(torch.empty(site.n_heads)) if learned else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.log_sigma is not None:
            nn.init.constant_(self.log_sigma, math.log(self.d_head) / 4)

    def factors(self, q_BHTK: Tensor, k_BHSK: Tensor) -> tuple[Tensor, Tensor]:
        """Queries over sigma^2 and keys, both a column longer, whose products are the scores."""
        length_BHS1 = wide(k_BHSK).square().sum(-1, keepdim=True).to(k_BHSK.dtype)
        q_BHTJ = torch.cat((q_BHTK, torch.ones_like(q_BHTK[..., :1])), -1)
        k_BHSJ = torch.cat((k_BHSK, -length_BHS1 / 2), -1)
        if self.log_sigma is None:
            return q_BHTJ * self.scale, k_BHSJ
        return q_BHTJ * (-2 * self.log_sigma).exp()[:, None, None].to(q_BHTJ.dtype), k_BHSJ

    def scores(self, q_BHTK: Tensor, k_BHSK: Tensor) -> Tensor:
        q_BHTJ, k_BHSJ = self.factors(q_BHTK, k_BHSK)
        return q_BHTJ @ k_BHSJ.transpose(-1, -2)

    def fast(self, q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        q_BHTJ, k_BHSJ = self.factors(q_BHTK, k_BHSK)
        # kernels that hold no (T, S) matrix want values as wide as keys
        v_BHSJ = F.pad(v_BHSK, (0, self.value_columns() - self.d_value))
        dropout = self.dropout if self.training else 0.0
        y_BHTJ = F.scaled_dot_product_attention(q_BHTJ, k_BHSJ, v_BHSJ, mask, dropout, is_causal=causal, scale=1.0)
        return y_BHTJ[..., : self.d_value]

    def value_columns(self) -> int:
        """Of the values in `fast`."""
        return max(self.d_head + 1, self.d_value)

    def executed(self, T: int, ctx: Context) -> float:
        values = self.d_value if type(ctx.position).value is not Position.value else self.value_columns()
        return (self.d_head + 1 + values) / (self.d_head + self.d_value)


@register("mixer", "bilinear", paper="Luong, Pham and Manning 2015, arXiv:1508.04025, section 3.1, the general score")
class BilinearAttention(Attention):
    """softmax(q_t^T W_h k_s + bias + mask) V, with a learned W_h (d_head, d_head) for each head.

    W starts at I / sqrt(d_head): as scaled dot products. What rotates queries rotates W_h^T q_t, so that rotary
    positions stay relative. Differs from the paper: several heads; there W alone maps the decoder's state to the
    encoder's, here it stands beside the matrices of queries and keys, and the start is chosen.
    """

    def __init__(self, site: Site, *, d_value: int | None = None, dropout: float = 0.0):
        super().__init__(site, d_value=d_value, dropout=dropout)
        self.scale = 1.0
        self.w = nn.Parameter(torch.empty(site.n_heads, site.d_head, site.d_head))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.w.copy_(torch.eye(self.w.shape[1], dtype=self.w.dtype) * self.w.shape[1] ** -0.5)

    def queries(self, x_BTD: Tensor) -> Tensor:
        return super().queries(x_BTD) @ self.w
