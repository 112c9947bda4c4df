"""Heads that decide for a cluster of rare tokens before they look into it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ablate.components.embeddings_adaptive import AdaptiveEmbedding, clusters
from ablate.components.heads import refuse_untieable
from ablate.contracts import Embedding, Head, Linear, Site
from ablate.errors import UserError, within
from ablate.precision import wide
from ablate.registry import register

WHO = "head 'adaptive_softmax'"


@register(
    "head",
    "adaptive_softmax",
    paper="Joulin et al. 2017 (Grave et al.), arXiv:1609.04309, sections 3 and 4; Baevski and Auli 2019 (tying)",
)
class AdaptiveSoftmaxHead(Head):
    """p(w | x) = softmax([W_0; C] x)_w in the head cluster, softmax([W_0; C] x)_c softmax(W_c P_c x)_w in cluster c.

    Cluster 0's tokens and one row of C for each other cluster share the first softmax. P_c is (d_model / `factor`^c,
    d_model); without `project` there is none and W_c is (|c|, d_model). `cutoffs` and their default are those of
    embedding `adaptive`, and that one's own where it is used; token ids must fall in frequency. When `tied`, all but
    C are the embedding's weights, and `project` and `factor` do not apply: embedding `table` makes it the softmax
    "without projection", `adaptive` the one with. `scaled` multiplies x by d_model^-1/2 first, as T5 does when
    tied, and starts C larger by the inverse. No biases.

    The loss sends a token to its own cluster alone. How many go where depends on the text; costs are counted with
    shares by Zipf's law, p(w) proportional to 1/(w + 1), which is ours. Label smoothing is refused: it would need the
    clusters that the loss leaves out. z_loss is on each softmax that is computed, as in Narang et al.'s mesh code.
    """

    def __init__(
        self,
        site: Site,
        embedding: Embedding,
        *,
        cutoffs: list[int] | None = None,
        project: bool = True,
        factor: int = 4,
        tied: bool = False,
        scaled: bool = False,
    ):
        super().__init__(site, embedding)
        site.refuse_unused_rows(WHO)
        within(f"{WHO}: factor", factor, 1)
        self.bounds = clusters(site.vocab, cutoffs, WHO)
        if cutoffs is None and isinstance(embedding, AdaptiveEmbedding):
            self.bounds = embedding.bounds
        self.scale = site.d_model**-0.5 if scaled else 1.0
        self.tied = [embedding] if tied else []
        d, tails = site.d_model, self.bounds[1:]
        self.clusters = Linear(d, len(tails), bias=False, role="logits", gain=1 / self.scale) if tails else None
        self.shrink, self.words = nn.ModuleList(), nn.ModuleList()
        if tied:
            refuse_untieable(self, site, embedding)
            if not project and type(embedding).logits is not Embedding.logits:
                raise UserError(f"{WHO}: project has no effect when tied: {embedding.component} projects by itself")
            return
        for index, (start, stop) in enumerate(self.bounds):
            width = max(1, d // factor**index) if project else d
            keeps = index == 0 or not project
            self.shrink.append(nn.Identity() if keeps else Linear(d, width, bias=False))
            self.words.append(Linear(width, stop - start, bias=False, role="logits"))

    def log_probs(self, x_BTD: Tensor) -> Tensor:
        x_BTD = self.scaled(x_BTD)
        first = self.first(x_BTD).log_softmax(-1)
        size = self.bounds[0][1]
        parts = [first[..., :size]]
        for index in range(1, len(self.bounds)):
            within_cluster = self.scores(x_BTD, index).log_softmax(-1)
            parts.append(first[..., size + index - 1, None] + within_cluster)
        return torch.cat(parts, -1)

    def nll(self, x_BTD: Tensor, y_BT: Tensor) -> Tensor:
        return self.losses(x_BTD, y_BT)[0]

    def objective(self, x_BTD: Tensor, y_BT: Tensor, label_smoothing: float, z_loss: float) -> tuple[Tensor, Tensor]:
        if label_smoothing:
            raise UserError(f"{WHO} cannot smooth labels over clusters it leaves out: set train.label_smoothing to 0")
        nll_BT, squares_BT = self.losses(x_BTD, y_BT)
        return (nll_BT + z_loss * squares_BT if z_loss else nll_BT), nll_BT

    def losses(self, x_BTD: Tensor, y_BT: Tensor) -> tuple[Tensor, Tensor]:
        """-log p(y | x), and the sum of log(Z)^2 over the softmaxes that it takes, both (B, T)."""
        x_ND, y_N = self.scaled(x_BTD).flatten(0, 1), y_BT.flatten()
        size = self.bounds[0][1]
        cluster_N = sum(((y_N >= start).long() for start, _ in self.bounds[1:]), torch.zeros_like(y_N))
        scores = self.first(x_ND)
        log_z_N = scores.logsumexp(-1)
        place_N = torch.where(cluster_N > 0, size - 1 + cluster_N, y_N)
        nll_N = log_z_N - scores.gather(-1, place_N[:, None])[:, 0]
        squares_N = log_z_N.square()
        for index in range(1, len(self.bounds)):
            at_n = self.members(cluster_N, index)
            scores = self.scores(x_ND[at_n], index)
            log_z_n = scores.logsumexp(-1)
            target_n = y_N[at_n] - self.bounds[index][0]
            nll_N = nll_N.index_add(0, at_n, log_z_n - scores.gather(-1, target_n[:, None])[:, 0])
            squares_N = squares_N.index_add(0, at_n, log_z_n.square())
        return nll_N.view(y_BT.shape), squares_N.view(y_BT.shape)

    def members(self, cluster_N: Tensor, index: int) -> Tensor:
        """Which tokens have their target in a cluster; on the meta device, as many as Zipf's law sends there."""
        if not cluster_N.is_meta:
            return (cluster_N == index).nonzero()[:, 0]
        start, stop = self.bounds[index]
        share = _harmonic(start, stop) / _harmonic(0, self.bounds[-1][1])
        return torch.arange(max(1, round(len(cluster_N) * share)), device="meta")

    def scaled(self, x_BTD: Tensor) -> Tensor:
        return x_BTD * self.scale if self.scale != 1.0 else x_BTD

    def first(self, x: Tensor) -> Tensor:
        """The scores of the head cluster: its tokens, then the other clusters."""
        scores = self.scores(x, 0)
        return scores if self.clusters is None else torch.cat((scores, wide(self.clusters(x))), -1)

    def scores(self, x: Tensor, index: int) -> Tensor:
        """The scores of one cluster's tokens."""
        if self.tied:
            return wide(self.tied[0].logits(x, *self.bounds[index]))
        return wide(self.words[index](self.shrink[index](x)))


def _harmonic(start: int, stop: int) -> float:
    return sum(1 / (each + 1) for each in range(start, stop))
