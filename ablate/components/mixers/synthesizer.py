"""Synthesizers: attention whose scores are not products of queries and keys, or not those alone."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.components.mixers.attention import Attention, Score, plain_wins
from ablate.contracts import Context, Position, Site
from ablate.errors import UserError, within
from ablate.registry import register


class Synthesizer(Attention):
    """Attention with synthesized scores. They replace the products of queries and keys, or are added to them.

    Where they replace them, one matrix makes what were keys and values, positions rotate nothing, and weights that
    depend on no token are computed once for the whole batch. The causal mask and the position's bias are added to
    the scores before the softmax.
    """

    scored: ClassVar[bool] = False  # products of queries and keys count too
    queried: ClassVar[bool] = False  # scores are synthesized from queries
    weighed: ClassVar[bool] = False  # of the two, a learned share each

    def __init__(self, site: Site, *, score: Score = "scaled_dot", dropout: float = 0.0):
        self.name = self.component.split("/")[-1]
        within(f"mixer {self.name!r}: dropout", dropout, 0, 1)
        super().__init__(site, score=score, dropout=dropout)
        if not self.scored:
            del self.k
            if not self.queried:
                del self.q
        self.alpha = nn.Parameter(torch.empty(())) if self.weighed else None

    def reset_parameters(self) -> None:
        if self.alpha is not None:
            nn.init.zeros_(self.alpha)

    def synthesize(self, source_BHTK: Tensor, T: int, S: int) -> Tensor:
        """The scores of the last T of S positions for keys 0..S-1, broadcastable to (B, H, T, S), from queries that
        no position has rotated, where the class has any."""
        raise NotImplementedError

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        v_BHSK = self.split(self.v(x_BTD))
        # a bias may look at queries for their shape, even where there are none: they have no features then
        source_BHTK = self.split(self.q(x_BTD)) if self.scored or self.queried else v_BHSK[..., :0]
        q_BHTK, kept = source_BHTK, [v_BHSK]
        if self.scored:
            q_BHTK, k_BHSK = ctx.position.rotate(q_BHTK, self.split(self.k(x_BTD)), ctx)
            kept = [k_BHSK, v_BHSK]
        if past := ctx.recall():
            kept = [torch.cat(pair, 2) for pair in zip(past, kept, strict=True)]
        ctx.remember(kept)
        y_BHTK = self.attend(q_BHTK, kept[0], kept[-1], ctx, source_BHTK)
        return self.out(y_BHTK.transpose(1, 2).flatten(2))

    def attend(
        self, q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, ctx: Context, source_BHTK: Tensor | None = None
    ) -> Tensor:
        assert source_BHTK is not None
        T, S = q_BHTK.shape[2], v_BHSK.shape[2]
        pos_S = self.key_positions(S, ctx)
        made_BHTS = self.synthesize(source_BHTK, T, S)
        products_BHTK = q_BHTK
        if self.alpha is not None:
            made_BHTS = self.alpha.sigmoid() * made_BHTS
            products_BHTK = (1 - self.alpha.sigmoid()) * q_BHTK
        bias = self.position_bias(q_BHTK, k_BHSK, pos_S, ctx)
        made_BHTS = made_BHTS if bias is None else made_BHTS + bias
        mask = self.score_mask(v_BHSK, pos_S, made_BHTS, ctx)
        assert mask is not None
        if not self.scored:
            y_BHTK, weights_BHTS = self.weigh(mask, v_BHSK)
        elif type(ctx.position).value is not Position.value or plain_wins(q_BHTK):
            y_BHTK, weights_BHTS = self.explicit(products_BHTK, k_BHSK, v_BHSK, mask)
        else:
            return self.fast(products_BHTK, k_BHSK, v_BHSK, mask, causal=False)
        extra = ctx.position.value(weights_BHTS, pos_S, ctx)
        return y_BHTK if extra is None else y_BHTK + extra

    def position_bias(self, q_BHTK: Tensor, k_BHSK: Tensor, pos_S: Tensor, ctx: Context) -> Tensor | None:
        """The position's; `UserError` where it is made of queries and there are none."""
        try:
            return super().position_bias(q_BHTK, k_BHSK, pos_S, ctx)
        except RuntimeError as error:
            if self.scored or self.queried:
                raise
            position = ctx.position.component.split("/")[-1]
            raise UserError(f"position {position!r} reads queries, and mixer {self.name!r} has none") from error

    def weigh(self, scores_BHTS: Tensor, v_BHSK: Tensor) -> tuple[Tensor, Tensor]:
        """softmax(scores) v, and the weights; scores without a batch of their own are not copied along it."""
        weights_BHTS = scores_BHTS.softmax(-1)
        if self.training and self.dropout:  # each sequence drops weights of its own
            weights_BHTS = F.dropout(weights_BHTS.expand(len(v_BHSK), -1, -1, -1), self.dropout)
        if len(weights_BHTS) == 1:
            return torch.einsum("hts,bhsk->bhtk", weights_BHTS[0], v_BHSK), weights_BHTS
        return weights_BHTS @ v_BHSK, weights_BHTS


def glorot_(values: Tensor) -> None:
    """U(+-sqrt(6 / (fan_in + fan_out))), fans as TensorFlow has them: the last two axes, times all before them."""
    others = math.prod(values.shape[:-2])
    bound = math.sqrt(6 / (others * (values.shape[-2] + values.shape[-1])))
    nn.init.uniform_(values, -bound, bound)


class Dense(Synthesizer):
    """relu(q_i) W, with W (d_head, max_len) shared by the heads."""

    queried = True

    def __init__(self, site: Site, *, score: Score = "scaled_dot", dropout: float = 0.0):
        super().__init__(site, score=score, dropout=dropout)
        self.to_keys = nn.Parameter(torch.empty(site.d_head, site.max_len))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        glorot_(self.to_keys)

    def synthesize(self, source_BHTK: Tensor, T: int, S: int) -> Tensor:
        return source_BHTK.relu() @ self.to_keys[:, :S]


@register(
    "mixer",
    "synthesizer_dense",
    paper="Tay et al. 2020, arXiv:2005.00743, section 3.1; Narang et al. 2021, arXiv:2102.11972 (their code)",
)
class DenseSynthesizer(Dense):
    """softmax(relu(q_i) W + bias + mask) V: every query makes its own weights for the positions, unseen.

    `form: mesh` is what Narang et al. ran: q = W_Q x, W (d_head, max_len) shared by the heads and without a bias.
    `form: paper` is F(x_i) = W_2 relu(W_1 x_i + b_1) + b_2 with a W_2 (d_head, max_len) and a b_2 for each head;
    biases where the architecture has them. W, W_2 start Glorot-uniform, b_2 at 0.
    Chosen, where the paper leaves it open: W_1 maps d_model to d_head for each head, so that over all heads, with
    n_heads d_head = d_model, the two matrices have d^2 + d max_len parameters.
    Differs from the code: the queries start as the architecture's init has them, not shorter by 1/sqrt(d_head).
    """

    def __init__(self, site: Site, *, form: Literal["mesh", "paper"] = "mesh", dropout: float = 0.0):
        super().__init__(site, dropout=dropout)
        self.shift: nn.Parameter | None = None
        if form == "paper":
            self.to_keys = nn.Parameter(torch.empty(site.n_heads, site.d_head, site.max_len))
            if site.bias:  # a vector, so that it is spared weight decay as biases are
                self.shift = nn.Parameter(torch.empty(site.n_heads * site.max_len))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.to_keys.ndim == 3:
            for matrix_KS in self.to_keys.data:
                glorot_(matrix_KS)
        shift = getattr(self, "shift", None)  # the base's constructor calls this first
        if shift is not None:
            nn.init.zeros_(shift)

    def synthesize(self, source_BHTK: Tensor, T: int, S: int) -> Tensor:
        made_BHTS = source_BHTK.relu() @ self.to_keys[..., :S]
        if self.shift is None:
            return made_BHTS
        return made_BHTS + self.shift.unflatten(0, (self.n_heads, 1, -1))[..., :S]


@register(
    "mixer", "synthesizer_dense_plus", paper="Tay et al. 2020, arXiv:2005.00743, section 3.4; Narang et al. 2021"
)
class DensePlusSynthesizer(Dense):
    """softmax(Q K^T / sqrt(d_head) + relu(Q) W + bias + mask) V, with `synthesizer_dense`'s W of Narang et al.

    The scale is on the products alone. `score: dot` leaves it out, and inits that know of it fold it into the
    queries, as the code of Narang et al. does. Both terms have one Q; positions that rotate do so in the products.
    """

    scored = True


@register(
    "mixer",
    "synthesizer_dense_plus_alpha",
    paper="Tay et al. 2020, arXiv:2005.00743, section 3.4; Narang et al. 2021",
)
class DensePlusAlphaSynthesizer(DensePlusSynthesizer):
    """softmax((1 - a) Q K^T / sqrt(d_head) + a relu(Q) W + bias + mask) V, a = sigmoid(alpha), alpha 0 at first.

    One scalar alpha a layer; otherwise `synthesizer_dense_plus`.
    """

    weighed = True


class Random(Synthesizer):
    """R (n_heads, max_len, max_len), for which no token counts; its rows and columns are positions."""

    def __init__(self, site: Site, *, score: Score = "scaled_dot", dropout: float = 0.0):
        super().__init__(site, score=score, dropout=dropout)
        self.table: Tensor = nn.Parameter(torch.empty(site.n_heads, site.max_len, site.max_len))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        glorot_(self.table)

    def synthesize(self, source_BHTK: Tensor, T: int, S: int) -> Tensor:
        return self.table[None, :, S - T : S, :S]


@register(
    "mixer",
    "synthesizer_random",
    paper="Tay et al. 2020, arXiv:2005.00743, section 3.2; Narang et al. 2021, arXiv:2102.11972 (their code)",
)
class RandomSynthesizer(Random):
    """softmax(R + bias + mask) V: weights of positions, the same whatever the tokens are.

    R (n_heads, max_len, max_len) starts Glorot-uniform, with the fans that TensorFlow gives such a tensor:
    U(+-sqrt(3 / (n_heads max_len))). `fixed: true` never trains it. In a causal model the part of R above the
    diagonal is held, as in the code, and never used.
    """

    def __init__(self, site: Site, *, fixed: bool = False, dropout: float = 0.0):
        super().__init__(site, dropout=dropout)
        if fixed:
            table_HTS = self.table.detach()
            del self.table
            self.register_buffer("table", table_HTS)


@register(
    "mixer", "synthesizer_random_plus", paper="Tay et al. 2020, arXiv:2005.00743, section 3.4; Narang et al. 2021"
)
class RandomPlusSynthesizer(Random):
    """softmax(Q K^T / sqrt(d_head) + R + bias + mask) V, with `synthesizer_random`'s R.

    The scale is on the products alone. `score: dot` leaves it out, and inits that know of it fold it into the
    queries, as the code of Narang et al. does.
    """

    scored = True


@register(
    "mixer",
    "synthesizer_random_plus_alpha",
    paper="Tay et al. 2020, arXiv:2005.00743, section 3.4; Narang et al. 2021",
)
class RandomPlusAlphaSynthesizer(RandomPlusSynthesizer):
    """softmax((1 - a) Q K^T / sqrt(d_head) + a R + bias + mask) V, a = sigmoid(alpha), alpha 0 at first.

    One scalar alpha a layer; otherwise `synthesizer_random_plus`.
    """

    weighed = True


@register(
    "mixer",
    "synthesizer_factorized",
    paper="Tay et al. 2020, arXiv:2005.00743, section 3.3; Narang et al. 2021, arXiv:2102.11972 (their code)",
)
class FactorizedSynthesizer(Synthesizer):
    """softmax(R_1^T R_2 + bias + mask) V, with R_1, R_2 (rank, n_heads, max_len): a random synthesizer of low rank.

    Both start Glorot-uniform, with the fans that TensorFlow gives such a tensor:
    U(+-sqrt(6 / (rank (n_heads + max_len)))).
    """

    def __init__(self, site: Site, *, rank: int = 16, dropout: float = 0.0):
        super().__init__(site, dropout=dropout)
        within("mixer 'synthesizer_factorized': rank", rank, 1)
        self.rows = nn.Parameter(torch.empty(rank, site.n_heads, site.max_len))
        self.columns = nn.Parameter(torch.empty(rank, site.n_heads, site.max_len))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        super().reset_parameters()
        glorot_(self.rows)
        glorot_(self.columns)

    def synthesize(self, source_BHTK: Tensor, T: int, S: int) -> Tensor:
        return torch.einsum("rht,rhs->hts", self.rows[..., S - T : S], self.columns[..., :S])[None]
