"""Product-key memory: a large table of values, of which a token reads a few rows."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.components.norms import LayerNorm
from ablate.contracts import Channel, Context, Linear, Site
from ablate.errors import UserError, within
from ablate.precision import wide
from ablate.registry import register


@register("channel", "product_key", paper="Lample et al. 2019, arXiv:1907.05242, section 3")
class ProductKey(Channel):
    """y = sum over heads of sum_i w_i V[i], i the `knn` of keys^2 slots whose key is nearest to the head's query.

    The query q = W_q x, d_key long, is two halves, each normalised and compared with `keys` sub-keys c, c' of the
    head: slot i = (a, b) scores q_1 . c_a + q_2 . c'_b. The knn best of either half and then of their sums are the
    knn best of all slots. w = softmax of their scores. The values V (keys^2, d_model) are shared by the heads.
    keys^2 d_model + heads keys d_key + d_model heads d_key parameters, and those of the query's bias and norm.
    Sub-keys start from U(+-1/sqrt(d_key/2)), values from N(0, 1/d_model).

    Differs from the paper: the queries' norm is a LayerNorm over half a query, shared by heads and halves, as
    in Mesh TensorFlow; the paper's BatchNorm sees the other tokens of the batch, later ones included. The values
    are trained like all else: the paper gives them a learning rate of their own, 1e-3, and sparse updates. There
    keys is 512. Of the knn^2 sums only those are made that can be among the best.
    """

    pairs: Tensor

    def __init__(
        self,
        site: Site,
        *,
        keys: int = 128,
        knn: int = 32,
        heads: int = 4,
        d_key: int = 256,
        query_norm: Literal["layer", "none"] = "layer",
    ):
        super().__init__(site)
        within("channel 'product_key': keys", keys, 1)
        within("channel 'product_key': heads", heads, 1)
        within("channel 'product_key': d_key", d_key, 2)
        if d_key % 2:
            raise UserError(f"channel 'product_key': d_key {d_key} is odd; it is split into two halves")
        if not 1 <= knn <= keys:
            raise UserError(f"channel 'product_key': knn {knn} must be from 1 to keys, {keys}")
        self.n_heads, self.n_keys, self.knn = heads, keys, knn
        self.query = Linear(site.d_model, heads * d_key, bias=site.bias, role="score")
        self.query_norm = LayerNorm(d_key // 2) if query_norm == "layer" else None
        self.keys = nn.Parameter(torch.empty(heads, 2, keys, d_key // 2))
        self.values = nn.Parameter(torch.empty(keys * keys, site.d_model))
        # counted from 1, the i-th best of one half with the j-th of the other is one of the best if i j <= knn alone
        pairs = [(i, j) for i in range(knn) for j in range(knn // (i + 1))]
        self.register_buffer("pairs", torch.tensor(pairs).T.contiguous(), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = self.keys.shape[-1] ** -0.5
        nn.init.uniform_(self.keys, -bound, bound)
        nn.init.normal_(self.values, std=self.values.shape[-1] ** -0.5)

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        q_NHPK = self.query(x_BTD).flatten(0, 1).unflatten(-1, (self.n_heads, 2, -1))  # P: which half
        if self.query_norm is not None:
            q_NHPK = self.query_norm(q_NHPK)
        scores_NHPS = torch.einsum("nhpk,hpsk->nhps", q_NHPK, self.keys)
        score_NHK, slot_NHK = self.nearest(scores_NHPS)
        return self.read(slot_NHK.flatten(1), wide(score_NHK).softmax(-1).flatten(1)).view_as(x_BTD)

    def nearest(self, scores_NHPS: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and numbers of the knn best slots."""
        best = scores_NHPS.topk(self.knn, -1)
        (one, two), (at_one, at_two) = best.values.unbind(2), best.indices.unbind(2)
        i, j = self.pairs
        score_NHK, place_NHK = (one.index_select(-1, i) + two.index_select(-1, j)).topk(self.knn, -1)
        return score_NHK, at_one.gather(-1, i[place_NHK]) * self.n_keys + at_two.gather(-1, j[place_NHK])

    def read(self, slot_NM: Tensor, weight_NM: Tensor) -> Tensor:
        """sum_m weight[m] V[slot[m]]."""
        weight_NM = weight_NM.to(self.values.dtype)
        if slot_NM.is_meta:  # the same products, of rows that need not be looked up
            return weight_NM @ self.values[:1].expand(slot_NM.shape[1], -1)
        return F.embedding_bag(slot_NM, self.values, mode="sum", per_sample_weights=weight_NM)

    def idle_parameters(self) -> int:
        slots, d_model = self.values.shape
        return (slots - min(slots, self.n_heads * self.knn)) * d_model
