"""Norms over the last axis. Statistics are taken in float32 whatever the input's type."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.contracts import Context, Norm
from ablate.errors import UserError, within
from ablate.precision import wide
from ablate.registry import register


@register("norm", "layernorm", paper="Ba, Kiros and Hinton 2016, arXiv:1607.06450")
class LayerNorm(Norm):
    """gamma (x - mean) / sqrt(var + eps) + beta, with the biased variance of the last axis; 2d parameters."""

    def __init__(self, d: int, *, eps: float = 1e-5, shift: bool = True):
        super().__init__(d)
        within("norm 'layernorm': eps", eps, 0)
        self.eps = eps
        self.gain = nn.Parameter(torch.ones(d))
        self.shift = nn.Parameter(torch.zeros(d)) if shift else None

    def reset_parameters(self) -> None:
        nn.init.ones_(self.gain)
        if self.shift is not None:
            nn.init.zeros_(self.shift)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.gain.shape, self.gain, self.shift, self.eps)


@register("norm", "rmsnorm", paper="Zhang and Sennrich 2019, arXiv:1910.07467, equation 4")
class RMSNorm(Norm):
    """gamma x / sqrt(mean(x^2) + eps): no centring, no shift; d parameters."""

    def __init__(self, d: int, *, eps: float = 1e-6):
        super().__init__(d)
        within("norm 'rmsnorm': eps", eps, 0)
        self.eps = eps
        self.gain = nn.Parameter(torch.ones(d))

    def reset_parameters(self) -> None:
        nn.init.ones_(self.gain)

    def forward(self, x: Tensor) -> Tensor:
        y = wide(x)
        return F.rms_norm(y, self.gain.shape, self.gain.to(y.dtype), self.eps).to(x.dtype)


@register("norm", "none", paper="the absence of normalisation, as in Zhang et al. 2019, arXiv:1901.09321")
class NoNorm(Norm):
    """x, unchanged."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class BatchStatistics(Norm):
    """What both batch norms have: gain, shift, and running statistics of each feature, mean 0 and variance 1 at
    first, that every training batch moves towards its own: r + momentum (s - r), s with the unbiased variance."""

    mean: Tensor
    variance: Tensor

    def __init__(self, d: int, eps: float, momentum: float):
        super().__init__(d)
        self.who = f"norm {self.component.split('/')[-1]!r}"
        within(f"{self.who}: eps", eps, 0)
        within(f"{self.who}: momentum", momentum, 0, 1)
        self.eps = eps
        self.momentum = momentum
        self.gain = nn.Parameter(torch.ones(d))
        self.shift = nn.Parameter(torch.zeros(d))
        self.register_buffer("mean", torch.zeros(d))
        self.register_buffer("variance", torch.ones(d))

    def reset_parameters(self) -> None:
        for one in (self.gain, self.variance):
            nn.init.ones_(one)
        for zero in (self.shift, self.mean):
            nn.init.zeros_(zero)

    def admit(self, ctx: Context) -> None:
        """Padding would enter the statistics of a training batch; the running ones do not see it."""
        if self.training and ctx.valid_BT is not None:
            raise UserError(f"{self.who} would count padding in training: pack sequences to one length")

    def forward(self, x: Tensor) -> Tensor:
        x_ND = wide(x).reshape(-1, x.shape[-1])
        if self.training and len(x_ND) < 2 and not x.is_meta:
            raise UserError(f"{self.who} needs two positions or more in a training batch: one has no variance")
        return self.normalised(x_ND).view_as(x).to(x.dtype)

    def normalised(self, x_ND: Tensor) -> Tensor:
        raise NotImplementedError

    def apply_to(self, x_ND: Tensor, mean_D: Tensor, variance_D: Tensor, training: bool) -> Tensor:
        """gamma (x - mean) / sqrt(variance + eps) + beta, of the batch's statistics in training."""
        gain, shift, cudnn = self.gain, self.shift, torch.backends.cudnn.enabled
        return torch.batch_norm(x_ND, gain, shift, mean_D, variance_D, training, self.momentum, self.eps, cudnn)


@register("norm", "batchnorm", paper="Ioffe and Szegedy 2015, arXiv:1502.03167, algorithms 1 and 2", causal=False)
class BatchNorm(BatchStatistics):
    """gamma (x - mean) / sqrt(var + eps) + beta for each feature, mean and biased variance over batch and time.

    2d parameters, and 2d buffers: in evaluation the running statistics take the batch's place. In training a
    position's output depends on all later ones and on the other rows, so that a causal model is refused unless
    `train_stats_leak` says that this is known: its training loss then has seen the future, its evaluation has not.
    Accumulated gradients are those of the parts' statistics, not of the whole batch's. A norm that layers share
    has one pair of running statistics for all of them.

    Differs from the paper: running averages with `momentum` in place of a last pass over the training data. Rows
    with padding are refused in training.
    """

    couples_rows = True

    def __init__(self, d: int, *, eps: float = 1e-5, momentum: float = 0.1, train_stats_leak: bool = False):
        super().__init__(d, eps, momentum)  # `train_stats_leak` is for the model that it is put in

    def normalised(self, x_ND: Tensor) -> Tensor:
        counted = self.training and len(x_ND) > 1  # costs may be counted on a single position
        return self.apply_to(x_ND, self.mean, self.variance, counted)


@register("norm", "batchnorm_running", paper="ours, after Ioffe and Szegedy 2015, arXiv:1502.03167")
class RunningBatchNorm(BatchStatistics):
    """Ours, in no paper: gamma (x - mean) / sqrt(var + eps) + beta by the running statistics, in training too.

    They are constants to the gradient and come from earlier steps, so that no position sees a later one or another
    row. The first step normalises by mean 0 and variance 1. A batch's own statistics enter the running ones in its
    backward pass: once for every use of the norm, and after all that the forward pass computes, also where layers
    share the norm. A forward pass without a backward one leaves them as they are. Rows with padding are refused in
    training.
    """

    def __init__(self, d: int, *, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__(d, eps, momentum)

    def normalised(self, x_ND: Tensor) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):
            return self.apply_to(x_ND, self.mean, self.variance, False)
        variance_D, mean_D = torch.var_mean(x_ND.detach(), 0)
        y_ND = self.apply_to(x_ND, self.mean.clone(), self.variance.clone(), False)  # the backward pass reads them

        def update(_: Tensor) -> None:
            self.mean.lerp_(mean_D, self.momentum)
            self.variance.lerp_(variance_D, self.momentum)

        if y_ND.requires_grad:
            y_ND.register_hook(update)
        return y_ND
