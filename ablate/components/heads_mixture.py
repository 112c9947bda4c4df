"""Heads whose distribution is a mixture of softmaxes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ablate.components.heads import WordHead
from ablate.contracts import Embedding, Linear, Site
from ablate.errors import UserError, within
from ablate.precision import wide
from ablate.registry import register

ROOM = 2**24  # scores that are held at once: 64 MiB of float32


@register("head", "mixture_of_softmaxes", paper="Yang et al. 2018, arXiv:1711.03953, equation 3 and section 2.4")
class MixtureHead(WordHead):
    """p(v | x) = sum_k pi_k softmax(W tanh(W_k x))_v with pi = softmax(W_pi x), over K = `softmaxes`.

    K d + K d^2 parameters beside W, which is the embedding's table when `tied`. The logarithm is taken as
    logsumexp_k(log pi_k + log softmax_k), in float32. `scaled` multiplies x by d_model^-1/2 first and starts W_pi and
    W_k larger by its inverse, as Narang et al. 2021 do in their mesh code, which has no biases either. Differs from
    the paper: no biases and no dropout on the contexts tanh(W_k x).
    """

    def __init__(
        self, site: Site, embedding: Embedding, *, softmaxes: int = 15, tied: bool = True, scaled: bool = False
    ):
        super().__init__(site, embedding, tied=tied, scaled=scaled)
        within("head 'mixture_of_softmaxes': softmaxes", softmaxes, 1)
        self.vocab, self.softmaxes = site.vocab, softmaxes
        self.prior = Linear(site.d_model, softmaxes, bias=False, gain=1 / self.scale)
        self.context = Linear(site.d_model, softmaxes * site.d_model, bias=False, gain=1 / self.scale)

    def log_probs(self, x_BTD: Tensor) -> Tensor:
        log_pi_BTK, c_BTKD = self.mixture(x_BTD)
        log_p_BTV = None
        for k in range(self.softmaxes):
            part_BTV = log_pi_BTK[..., k, None] + wide(self.words(c_BTKD[..., k, :])).log_softmax(-1)
            log_p_BTV = part_BTV if log_p_BTV is None else torch.logaddexp(log_p_BTV, part_BTV)
        assert log_p_BTV is not None
        return log_p_BTV

    def nll(self, x_BTD: Tensor, y_BT: Tensor) -> Tensor:
        log_pi_BTK, c_BTKD = self.mixture(x_BTD)
        if y_BT.numel() * self.softmaxes * self.vocab <= ROOM:
            log_p_BTK = self.each(c_BTKD, y_BT[..., None].expand(log_pi_BTK.shape))
        else:  # one softmax at a time, its scores made again for the backward pass
            parts = [
                checkpoint(self.each, c_BTKD[..., k, :], y_BT, use_reentrant=False, preserve_rng_state=False)
                for k in range(self.softmaxes)
            ]
            log_p_BTK = torch.stack(parts, -1)
        return -torch.logsumexp(log_pi_BTK + log_p_BTK, -1)

    def objective(self, x_BTD: Tensor, y_BT: Tensor, label_smoothing: float, z_loss: float) -> tuple[Tensor, Tensor]:
        if z_loss:
            raise UserError("head 'mixture_of_softmaxes' has no single normaliser: set train.z_loss to 0")
        if not label_smoothing:
            nll_BT = self.nll(x_BTD, y_BT)
            return nll_BT, nll_BT
        log_p_BTV = self.log_probs(x_BTD)
        nll_BT = -log_p_BTV.gather(-1, y_BT[..., None])[..., 0]
        return (1 - label_smoothing) * nll_BT - label_smoothing * log_p_BTV.mean(-1), nll_BT

    def mixture(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """log pi, (B, T, K), and the contexts, (B, T, K, D)."""
        x_BTD = self.scaled(x_BTD)
        c_BTKD = self.context(x_BTD).tanh().unflatten(-1, (self.softmaxes, -1))
        return wide(self.prior(x_BTD)).log_softmax(-1), c_BTKD

    def each(self, c: Tensor, y: Tensor) -> Tensor:
        """log softmax(W c)[y] for contexts (..., D) and targets (...)."""
        scores = wide(self.words(c))
        return scores.gather(-1, y[..., None])[..., 0] - torch.logsumexp(scores, -1)
