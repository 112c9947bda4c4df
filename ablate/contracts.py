"""The ten slots, and whole models: what each must compute. `context.py` has what they are told, and the letters of
dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.context import Cache, Context, Linear, Memory, Role, Site, Tower
from ablate.errors import UserError
from ablate.precision import wide

__all__ = [
    "Cache", "Channel", "ClassHead", "Context", "Embedding", "Head", "Init", "Layer", "Linear", "Loss", "Memory",
    "Mixer", "Model", "Norm", "Position", "Residual", "Role", "Sharing", "Site", "Slot", "Stack",
    "Tower",
]  # fmt: skip

Loss = tuple[Tensor, Tensor, dict[str, Tensor]]  # to be minimised, plain nll, auxiliary losses


class Slot(nn.Module):
    """What all components share. The constructor takes what its slot is told, then its options by keyword."""

    component: ClassVar[str] = ""  # "slot/name", set by the registry
    couples_rows: ClassVar[bool] = False  # in training, a row's output depends on the others of its batch
    beside: ClassVar[dict[str, Any]] = {}  # fields of `arch` that it is checked with, where it refuses the defaults

    def unneeded_flops(self, length: int) -> float:
        """Of the forward FLOPs that one pass over `length` tokens executes, those that the definition could do
        without: masked scores, experts that were not chosen."""
        return 0.0

    def uncounted_flops(self, length: int) -> tuple[float, float]:
        """The forward and the backward FLOPs of one pass over `length` tokens that are no matrix product or
        convolution, where they count: Fourier transforms, products over a window."""
        return 0.0, 0.0

    def idle_parameters(self) -> int:
        """How many of the parameters a single token does not use: experts that it is not sent to."""
        return 0

    def after_step(self, progress: float) -> None:
        """Called after every optimizer step, for parameters under a constraint; `progress` is the share of the
        training's steps that are done. What it needs to know must be in the module's state."""


class Embedding(Slot):
    """tokens_BT -> x_BTD. `rows()` is the table that a tied head multiplies with, None where there is none."""

    def __init__(self, site: Site):
        super().__init__()

    def forward(self, tokens_BT: Tensor) -> Tensor:
        raise NotImplementedError

    def rows(self) -> Tensor | None:
        return None

    def logits(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """What a tied head computes: x rows^T, of the tokens from `start` to `stop`. Embeddings whose table is a
        product override it, so that the table is never made."""
        rows_VD = self.rows()
        assert rows_VD is not None, f"{self.component} cannot be tied"
        return F.linear(x, rows_VD if start == 0 and stop is None else rows_VD[start:stop])

    def closing(self, site: Site) -> nn.Module | None:
        """What a tower at `site` applies to the embedded tokens once positions are added: a module of the tower's
        own, even where two towers share this embedding. None for nothing."""
        return None


class Position(Slot):
    """How order enters. Five hooks, identity unless overridden; one instance serves a whole tower.

    embed   x_BTD -> x_BTD, once, on the embedded tokens
    step    x_BTD -> x_BTD, at the entry of every layer (`ctx.layer` says which)
    rotate  q_BHTK, k_BHTK -> the same, at the tokens' own positions, before keys are cached
    bias    added to the scaled scores, broadcastable to (B, H, T, S), or None
    value   added to the attention's output, (B, H, T, K), from the weights (B, H, T, S), or None

    Hooks see keys in time order: key s stands at position `pos_S[s]`.
    """

    def __init__(self, site: Site):
        super().__init__()

    def embed(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        return x_BTD

    def step(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        return x_BTD

    def rotate(self, q_BHTK: Tensor, k_BHTK: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
        return q_BHTK, k_BHTK

    def bias(self, q_BHTK: Tensor, k_BHSK: Tensor, pos_S: Tensor, ctx: Context) -> Tensor | None:
        return None

    def value(self, weights_BHTS: Tensor, pos_S: Tensor, ctx: Context) -> Tensor | None:
        return None


class Mixer(Slot):
    """x_BTD -> y_BTD; the only place where time steps exchange information."""

    def __init__(self, site: Site):
        super().__init__()

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        raise NotImplementedError

    def sees_prefix(self) -> bool:
        """Whether every query of a causal tower sees the keys where `ctx.prefix_BT` is True."""
        return False


class Channel(Slot):
    """x_BTD -> y_BTD, pointwise in time."""

    def __init__(self, site: Site):
        super().__init__()

    def forward(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        raise NotImplementedError


class Norm(Slot):
    """Normalises the last axis, of `d` features."""

    def __init__(self, d: int):
        super().__init__()

    def admit(self, ctx: Context) -> None:
        """Called before the norm's tower runs. A norm whose statistics are over positions refuses padding here,
        which `forward` cannot tell from tokens."""

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Residual(Slot):
    """How a sublayer `f` joins the stream: placement of the norm, scale of the branch. Owns its norms."""

    needs_final_norm: ClassVar[bool] = False  # the stream leaves the tower un-normalised

    def __init__(self, site: Site):
        super().__init__()

    def follow(self, first: Residual) -> None:
        """Called on the other residuals of a layer with its first: to share what a layer has once."""

    def forward(self, x_BTD: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        raise NotImplementedError


Layer = Callable[[Tensor, Context], Tensor]


class Stack(Slot):
    """How the layers are run, in depth. `run` is one layer at index `index`, with what belongs to it."""

    def __init__(self, site: Site):
        super().__init__()

    def forward(self, x_BTD: Tensor, layers: Sequence[Layer], ctx: Context) -> Tensor:
        raise NotImplementedError

    def run(self, x_BTD: Tensor, layer: Layer, index: int, ctx: Context) -> Tensor:
        """The layer, its position's step before it; the stream is traced where `ctx.trace` asks for it."""
        ctx.layer = index
        if ctx.trace is not None and not ctx.trace:
            ctx.trace.append(x_BTD)
        x_BTD = layer(ctx.position.step(x_BTD, ctx), ctx)
        if ctx.trace is not None:
            ctx.trace.append(x_BTD)
        return x_BTD

    def memory(self, x_BSD: Tensor, trace: Sequence[Tensor], norm: nn.Module | None) -> Callable[[int], Tensor]:
        """What each layer of a decoder reads of this encoder, by its index: by default x_BSD, its output.

        `trace` holds the stream before the first layer and after each, if the class overrides this method;
        `norm` is the tower's final norm, or None. Called once in a pass.
        """
        return lambda layer: x_BSD


class Sharing:
    """Which layer's weights each layer uses: for the sublayers, and for the residuals with their norms.

    Both are lists of length `site.n_layers` whose entry l is the layer that l borrows from (l itself to own them).
    """

    component: ClassVar[str] = ""

    def functions(self, site: Site) -> list[int]:
        raise NotImplementedError

    def residuals(self, site: Site) -> list[int]:
        raise NotImplementedError


class Init:
    """Sets a fresh module's own parameters in place; called once for every module, each under its own seed.

    It decides by the module's type and by `Linear.role`, never by names. Modules that it does not know keep
    the values of their `reset_parameters`.
    """

    component: ClassVar[str] = ""
    beside: ClassVar[dict[str, Any]] = {}  # as of a `Slot`

    def __init__(self, site: Site):
        self.site = site

    def __call__(self, module: nn.Module) -> None:
        raise NotImplementedError

    def tower(self, tower: nn.Module, site: Site) -> None:
        """Called on every tower, with its site, after all that is in it: for values that depend on the tower."""

    def rates(self, model: nn.Module) -> dict[str, float]:
        """By a parameter's name what its learning rate is multiplied by; 1 for those that are left out."""
        return {}


class Head(Slot):
    """What the tower's output says about the next token."""

    def __init__(self, site: Site, embedding: Embedding):
        super().__init__()

    def log_probs(self, x_BTD: Tensor) -> Tensor:
        """log p(v | x), (B, T, V), normalised over V."""
        raise NotImplementedError

    def nll(self, x_BTD: Tensor, y_BT: Tensor) -> Tensor:
        """-log p(y | x) in nats, (B, T)."""
        raise NotImplementedError

    def objective(self, x_BTD: Tensor, y_BT: Tensor, label_smoothing: float, z_loss: float) -> tuple[Tensor, Tensor]:
        """What is minimised, and the plain nll beside it, both (B, T).

        (1 - e) nll + e mean_v(-log p(v)) + z log(Z)^2, e the label smoothing (Szegedy et al. 2016, the uniform
        part includes the target) and Z the sum of exponentiated logits, for heads that have one.
        """
        nll_BT = self.nll(x_BTD, y_BT)
        loss_BT = nll_BT
        if z_loss:
            raise NotImplementedError(f"head {self.component} has no single normaliser: z_loss is undefined")
        if label_smoothing:
            uniform_BT = -self.log_probs(x_BTD).mean(-1)
            loss_BT = (1 - label_smoothing) * nll_BT + label_smoothing * uniform_BT
        return loss_BT, nll_BT


class ClassHead(Slot):
    """What the tower's output says about the class of a row, `site.classes` of them: a head with form="classify"."""

    def __init__(self, site: Site, embedding: Embedding):
        super().__init__()

    def logits(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        """(B, C). Padding, where `ctx.valid_BT` is False, must not count."""
        raise NotImplementedError

    def log_probs(self, x_BTD: Tensor, ctx: Context) -> Tensor:
        """log p(c | x), (B, C), in float32 at least."""
        return wide(self.logits(x_BTD, ctx)).log_softmax(-1)

    def nll(self, x_BTD: Tensor, ctx: Context, y_B: Tensor) -> Tensor:
        """-log p(y | x) in nats, (B,)."""
        return -self.log_probs(x_BTD, ctx).gather(-1, y_B[:, None])[:, 0]

    def objective(
        self, x_BTD: Tensor, ctx: Context, y_B: Tensor, label_smoothing: float, z_loss: float
    ) -> tuple[Tensor, Tensor]:
        """What is minimised, and the plain nll beside it, both (B,): as `Head.objective`, without z_loss."""
        log_p_BC = self.log_probs(x_BTD, ctx)
        nll_B = -log_p_BC.gather(-1, y_B[:, None])[:, 0]
        if z_loss:
            raise UserError("z_loss is not defined for a classifier: set train.z_loss to 0")
        if not label_smoothing:
            return nll_B, nll_B
        return (1 - label_smoothing) * nll_B - label_smoothing * log_p_BC.mean(-1), nll_B


class Model(Slot):
    """A whole model that is not made of the other slots. The constructor takes `site`, then its options.

    By its form: `tokens` has `log_probs(tokens_BT, cache)` -> (B, T, V) and `nll(tokens_BT, targets_BT)` -> (B, T);
    `pair` has a source before the tokens in both; `classify` has `log_probs(tokens_BT, valid_BT)` -> (B, C) and
    `nll(tokens_BT, targets_B)`; `denoise` has `forward(images, t_B, classes_B)` and `nll(images, t_B, classes_B,
    noise)`, the squared error (B,). A model with `fitted=True` has no gradient: `fit(tokens)` counts.
    """

    fitted: ClassVar[bool] = False

    def __init__(self, site: Site):
        super().__init__()
        self.site = site

    def objective(self, *batch: Tensor, label_smoothing: float, z_loss: float, **marks: Tensor) -> Loss:
        """What is minimised, the plain nll, auxiliary losses."""
        nll = self.nll(*batch, **marks)
        if label_smoothing or z_loss:
            raise UserError(f"model {self.component.split('/')[-1]!r} has neither label smoothing nor z-loss")
        return nll, nll, {}

    def nll(self, *batch: Tensor, **marks: Tensor) -> Tensor:
        """`marks` are keyword arguments of `log_probs`: `valid_BT`, or `valid_BS` of a source."""
        raise NotImplementedError

    def example(self, rows: int, length: int) -> tuple[Tensor, ...]:
        """Inputs and targets of the shapes that `nll` takes."""
        tokens = torch.zeros(rows, length, dtype=torch.long)
        return tokens, tokens
