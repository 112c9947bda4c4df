"""Attention whose heads share keys and values in groups."""

from __future__ import annotations

from torch import Tensor

from ablate.components.mixers.attention import Attention, Score
from ablate.contracts import Linear, Site
from ablate.errors import UserError
from ablate.registry import register


@register(
    "mixer",
    "grouped_query",
    paper="Ainslie et al. 2023, arXiv:2305.13245, section 2.2; of one head Shazeer 2019, arXiv:1911.02150",
)
class GroupedQueryAttention(Attention):
    """Attention with `kv_heads` heads of keys and values, each read by n_heads / kv_heads heads of queries in a row.

    kv_heads 1 is multi-query attention, kv_heads n_heads is plain attention. Decoding keeps kv_heads / n_heads of
    its cache. Differs from the paper: trained so from the start, not made from a trained model's heads.
    """

    def __init__(
        self,
        site: Site,
        *,
        kv_heads: int = 2,
        score: Score = "scaled_dot",
        d_value: int | None = None,
        dropout: float = 0.0,
    ):
        super().__init__(site, score=score, d_value=d_value, dropout=dropout)
        legal = [heads for heads in range(1, site.n_heads + 1) if site.n_heads % heads == 0]
        if kv_heads not in legal:
            numbers = ", ".join(map(str, legal))
            raise UserError(
                f"mixer 'grouped_query': kv_heads {kv_heads} does not divide n_heads {site.n_heads}: one of {numbers}"
            )
        self.kv_heads = kv_heads
        d_value = self.v.out_features // site.n_heads
        self.k = Linear(site.d_model, kv_heads * site.d_head, bias=site.bias, role="score")
        self.v = Linear(site.d_model, kv_heads * d_value, bias=site.bias)

    def keys_values(self, x_BSD: Tensor) -> tuple[Tensor, Tensor]:
        k_BSGK, v_BSGK = (each.unflatten(-1, (self.kv_heads, -1)) for each in (self.k(x_BSD), self.v(x_BSD)))
        return k_BSGK.transpose(1, 2), v_BSGK.transpose(1, 2)

    def spread(self, x_BGSK: Tensor) -> Tensor:
        """(B, kv_heads, S, K) -> (B, H, S, K): head h reads group h // (n_heads / kv_heads)."""
        return x_BGSK[:, :, None].expand(-1, -1, self.n_heads // self.kv_heads, -1, -1).flatten(1, 2)
