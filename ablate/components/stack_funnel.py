"""Stacks that shorten the sequence on their way down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ablate.build import Layer as Sublayers
from ablate.components.mixers.attention import Attention
from ablate.contracts import Context, Layer, Site, Stack
from ablate.errors import UserError, within
from ablate.registry import register

POOLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": lambda one, two: (one + two) / 2,
    "max": torch.maximum,
    "min": torch.minimum,
}
PAST = -1  # where the cache keeps what a causal funnel needs of earlier tokens; mixers count from 0


@register("stack", "funnel", paper="Dai et al. 2020, arXiv:2006.03236, sections 2.2 and 2.3", causal=False)
class FunnelStack(Stack):
    """The layers in `blocks` groups, as even as they come, earlier ones larger; each group but the first halves the
    sequence on entry: positions 2u and 2u + 1 become their mean, maximum or minimum, a last one without a partner
    (or with padding for one) stays as it is.

    A group's first layer runs its first sublayer, attention, on the long sequence, and what leaves that sublayer's
    residual is pooled: the mesh code of Narang et al. 2021. `query_only` is the paper's form: the residual stream
    and the queries are pooled, keys and values are of the long sequence.

    The encoder of an encoder-decoder leaves the short sequence to its decoder, which runs layer after layer. A
    single tower gives every position its pooled output again, by repetition, plus the stream after the first group;
    `after` is the number of layers that then run at full length (2 in the paper, of the tower's depth).
    Differs from the paper: no token stands apart; positions count the pooled tokens, as in the mesh code (a pooled
    query of `query_only` stands at its first token); biases and norms are those of the other slots.
    """

    def __init__(
        self,
        site: Site,
        *,
        blocks: int = 2,
        pool: Literal["mean", "max", "min"] = "mean",
        query_only: bool = False,
        after: int = 0,
    ):
        super().__init__(site)
        within("stack 'funnel': after", after, 0)
        self.tower = site.tower
        if after and site.tower != "only":
            raise UserError("stack 'funnel': after has no effect in an encoder-decoder: its memory stays short")
        if site.tower != "decoder":
            self.blocks = grouped("funnel", site.n_layers - after, blocks)
        self.pool, self.query_only = POOLS[pool], query_only

    def forward(self, x_BTD: Tensor, layers: Sequence[Layer], ctx: Context) -> Tensor:
        if self.tower == "decoder":
            for index, layer in enumerate(layers):
                x_BTD = self.run(x_BTD, layer, index, ctx)
            return x_BTD
        short = replace(ctx, once={})
        first_BTD = x_BTD
        for group in self.blocks:
            for index in group:
                entry = group is not self.blocks[0] and index == group[0]
                layer = partial(self.enter, layers[index]) if entry else layers[index]
                x_BTD = self.run(x_BTD, layer, index, short)
            if group is self.blocks[0]:
                first_BTD = x_BTD
        ctx.layer, ctx.call = short.layer, short.call
        if self.tower == "encoder":  # what follows, and the decoder, sees the short sequence
            ctx.positions_T, ctx.valid_BT = short.positions_T, short.valid_BT
            return x_BTD
        if len(self.blocks) > 1:
            x_BTD = x_BTD.repeat_interleave(2 ** (len(self.blocks) - 1), 1)[:, : first_BTD.shape[1]] + first_BTD
        for index in range(self.blocks[-1].stop, len(layers)):
            x_BTD = self.run(x_BTD, layers[index], index, ctx)
        return x_BTD

    def enter(self, layer: Layer, x_BTD: Tensor, ctx: Context) -> Tensor:
        """A group's first layer; from here on `ctx` is about the short sequence."""
        assert isinstance(layer, Sublayers)
        head = Sublayers(layer.functions[:1], layer.residuals[:1], layer.dropout)
        tail = Sublayers(layer.functions[1:], layer.residuals[1:], layer.dropout)
        pooled_BTD = self.attend(head, x_BTD, ctx) if self.query_only else self.halve(head(x_BTD, ctx), ctx)
        ctx.positions_T = torch.arange(pooled_BTD.shape[1], device=pooled_BTD.device)
        ctx.valid_BT = None if ctx.valid_BT is None else ctx.valid_BT[:, ::2]
        ctx.once = {}
        return tail(pooled_BTD, ctx)

    def halve(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        """Every two neighbours in one; padding, which ends a row, and a missing last do not count."""
        one, two = F.pad(x_BTD, (0, 0, 0, x_BTD.shape[1] % 2)).unflatten(1, (-1, 2)).unbind(2)
        pooled_BTD = self.pool(one, two)
        if ctx.valid_BT is not None:
            both_BT = F.pad(ctx.valid_BT, (0, ctx.valid_BT.shape[1] % 2))[:, 1::2]
            return torch.where(both_BT[..., None], pooled_BTD, one)
        if x_BTD.shape[1] % 2:
            return torch.cat((pooled_BTD[:, :-1], one[:, -1:]), 1)
        return pooled_BTD

    def attend(self, head: Sublayers, x_BSD: Tensor, ctx: Context) -> Tensor:
        """The first sublayer, attention, with pooled queries over the sequence as it was."""
        attention, residual = head.functions[0], head.residuals[0]
        if not isinstance(attention, Attention) or type(attention).forward is not Attention.forward:
            name = attention.component or type(attention).__name__
            raise UserError(f"stack 'funnel': query_only pools queries of attention, and {name} computes its own")
        seen: list[Tensor] = []

        def look(y_BSD: Tensor) -> Tensor:
            seen.append(y_BSD)  # what the residual would give to the attention: the sequence, normed or not
            return y_BSD

        residual(x_BSD, look)
        queries = replace(ctx, once={}, positions_T=ctx.positions_T[::2])

        def sublayer(y_BTD: Tensor) -> Tensor:
            q_BHTK = attention.split(attention.q(y_BTD))
            k_BHSK, v_BHSK = attention.keys_values(seen[0])
            # positions rotate a sequence from its start on: queries take every second place of it
            spread_BHSK = q_BHTK.repeat_interleave(2, 2)[:, :, : x_BSD.shape[1]]
            rotated_BHSK, k_BHSK = ctx.position.rotate(spread_BHSK, k_BHSK, replace(ctx, once={}))
            q_BHTK = rotated_BHSK[:, :, ::2]
            y_BHTK = attention.attend(q_BHTK, attention.spread(k_BHSK), attention.spread(v_BHSK), queries)
            y_BTD = attention.out(y_BHTK.transpose(1, 2).flatten(2))
            return F.dropout(y_BTD, head.dropout, attention.training)

        pooled_BTD: Tensor = residual(self.halve(x_BSD, ctx), sublayer)
        ctx.call += 1
        return pooled_BTD


@register(
    "stack", "funnel_causal", paper="after Dai et al. 2020, arXiv:2006.03236; Nawrot et al. 2022, arXiv:2110.13711"
)
class CausalFunnelStack(Stack):
    """Ours, in no paper: a funnel that no position sees ahead through.

    As `funnel` in a single tower, but shifted right by one before every halving, as Nawrot et al. shift: positions
    2u - 1 and 2u become one (0 stays alone), between two layers. Position t has the pooled output floor(t / s), s the
    whole shortening, plus the stream after the first group; the latest token that it has seen is
    s floor(t / s) <= t. Every tower of an encoder-decoder is such a funnel, of full length at its end.
    """

    def __init__(self, site: Site, *, blocks: int = 2, pool: Literal["mean", "max", "min"] = "mean"):
        super().__init__(site)
        if site.prefix:
            raise UserError("stack 'funnel_causal' cannot see a prefix: it pools the tokens")
        self.blocks = grouped("funnel_causal", site.n_layers, blocks)
        self.pool = POOLS[pool]

    def forward(self, x_BTD: Tensor, layers: Sequence[Layer], ctx: Context) -> Tensor:
        start = 0 if ctx.cache is None else ctx.cache.length
        stop = start + x_BTD.shape[1]
        past = [] if ctx.cache is None else ctx.cache.states.get(PAST) or []  # each group's last output
        here, ends, first_BTD = ctx, [], x_BTD
        for depth, group in enumerate(self.blocks):
            if depth and x_BTD.shape[1]:
                last_B1D = past[depth - 1] if past else x_BTD[:, :1]
                x_BTD, here = self.halve(x_BTD, last_B1D, here, start, stop)
                start, stop = (start + 1) // 2, (stop + 1) // 2
            if x_BTD.shape[1]:  # few tokens may complete no window further down
                for index in group:
                    x_BTD = self.run(x_BTD, layers[index], index, here)
            ends.append(x_BTD[:, -1:] if x_BTD.shape[1] else past[depth])
            first_BTD = first_BTD if depth else x_BTD
        ctx.layer, ctx.call = here.layer, here.call
        if ctx.cache is not None:
            ctx.cache.states[PAST] = ends
        return first_BTD if len(self.blocks) == 1 else first_BTD + self.stretch(x_BTD, past, ctx)

    def halve(self, x_BTD: Tensor, last_B1D: Tensor, ctx: Context, start: int, stop: int) -> tuple[Tensor, Context]:
        """Of positions start .. stop - 1 and the one before them: the windows (2u - 1, 2u) that end among them."""
        known_BTD = torch.cat((last_B1D, x_BTD), 1)
        odd = start % 2  # the first window begins with the first token, not with the one before
        two_BTD = known_BTD[:, 1 + odd :: 2]
        one_BTD = known_BTD[:, odd::2][:, : two_BTD.shape[1]]
        positions_T = torch.arange((start + 1) // 2, (stop + 1) // 2, device=x_BTD.device)
        valid_BT = None if ctx.valid_BT is None else ctx.valid_BT[:, odd::2]
        return self.pool(one_BTD, two_BTD), replace(ctx, once={}, positions_T=positions_T, valid_BT=valid_BT)

    def stretch(self, x_BTD: Tensor, past: list[Tensor], ctx: Context) -> Tensor:
        """The deepest group's output for every position of the pass."""
        shortening = 2 ** (len(self.blocks) - 1)
        if ctx.cache is None or not past:
            return x_BTD.repeat_interleave(shortening, 1)[:, : len(ctx.positions_T)]
        before = (ctx.cache.length - 1) // shortening  # whose output was the last
        return torch.cat((past[-1], x_BTD), 1)[:, ctx.positions_T // shortening - before]


def grouped(name: str, layers: int, blocks: int) -> list[range]:
    """So many groups of layers, earlier ones larger where they cannot be even."""
    if layers < 1:
        raise UserError(f"stack {name!r}: after leaves no layers for the blocks")
    within(f"stack {name!r}: blocks", blocks, 1, layers)
    sizes = [layers // blocks + (block < layers % blocks) for block in range(blocks)]
    return [range(sum(sizes[:block]), sum(sizes[: block + 1])) for block in range(blocks)]
