"""The ten slots: what a component is told, what one forward pass carries, and what each slot must compute.

Dimension letters, here and everywhere: B batch, T query time, S key time, D d_model, H heads, K head
dimension, F d_ff, V vocabulary, E experts, L layers, N trials or points. Tensors carry them in their names
(`q_BHTK`). Time runs along T and S from early to late.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from ablate import registry
from ablate.spec import Component

Role = Literal["inner", "score", "write", "logits"]


@dataclass(frozen=True)
class Site:
    """Where a component is built. Nothing of this is repeated in a grid as an option."""

    d_model: int
    n_heads: int
    d_head: int
    d_ff: int
    vocab: int
    max_len: int
    n_layers: int
    sublayers: int  # residual branches in the whole tower
    layer: int = 0
    causal: bool = True  # from the task, not from the architecture
    bias: bool = True
    norm: Component = field(default_factory=lambda: Component("layernorm"))

    def new_norm(self, d: int | None = None) -> Norm:
        """A norm of the architecture's kind over `d` features."""
        return registry.make("norm", self.norm, d or self.d_model)


class Linear(nn.Linear):
    """y = W x + b. `role` tells inits what the matrix is for, so that none goes by parameter names.

    inner: the ordinary case; score: makes queries or keys; write: its output is added to the residual stream;
    logits: makes the output distribution. `gain` is a constant that the definition folds into the weights
    (1/sqrt(d_head) of an unscaled attention's queries): inits that know of it multiply their deviation by it.
    """

    def __init__(self, d_in: int, d_out: int, *, bias: bool, role: Role = "inner", gain: float = 1.0):
        self.role = role
        self.gain = gain
        super().__init__(d_in, d_out, bias=bias)


@dataclass
class Cache:
    """What step-by-step decoding keeps of the past: `length` tokens, and one state for each call of a mixer."""

    length: int = 0
    states: dict[int, Any] = field(default_factory=dict)


@dataclass
class Context:
    """What one forward pass carries beside x.

    `layer` counts the layers run so far and `call` the sublayers; under weight sharing they differ from the
    layer a module was built for. A mixer reads its past with `recall()` and leaves its new state with
    `remember()`; without a cache both do nothing.
    """

    position: Position
    positions_T: Tensor
    cache: Cache | None = None
    layer: int = 0
    call: int = 0
    aux: dict[str, Tensor] = field(default_factory=dict)
    once: dict[str, Tensor] = field(default_factory=dict)  # computed in one layer, reused in the others

    def recall(self) -> Any:
        return None if self.cache is None else self.cache.states.get(self.call)

    def remember(self, state: Any) -> None:
        if self.cache is not None:
            self.cache.states[self.call] = state

    def add_aux(self, name: str, loss: Tensor) -> None:
        """An auxiliary loss (load balance, ponder cost), summed over layers and added to the objective."""
        self.aux[name] = self.aux[name] + loss if name in self.aux else loss


class Slot(nn.Module):
    """What all components share. The constructor takes what its slot is told, then its options by keyword."""

    component: ClassVar[str] = ""  # "slot/name", set by the registry


class Embedding(Slot):
    """tokens_BT -> x_BTD. `rows()` is the table that a tied head multiplies with, None where there is none."""

    def __init__(self, site: Site):
        super().__init__()

    def forward(self, tokens_BT: Tensor) -> Tensor:
        raise NotImplementedError

    def rows(self) -> Tensor | None:
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

    def forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Residual(Slot):
    """How a sublayer `f` joins the stream: placement of the norm, scale of the branch. Owns its norms."""

    needs_final_norm: ClassVar[bool] = False  # the stream leaves the tower un-normalised

    def __init__(self, site: Site):
        super().__init__()

    def forward(self, x_BTD: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        raise NotImplementedError


Layer = Callable[[Tensor, Context], Tensor]


class Stack(Slot):
    """How the layers are run, in depth."""

    def __init__(self, site: Site):
        super().__init__()

    def forward(self, x_BTD: Tensor, layers: Sequence[Layer], ctx: Context) -> Tensor:
        raise NotImplementedError


class Sharing:
    """Which layer's weights each layer uses: for the sublayers, and for the residuals with their norms.

    Both are lists of length `n_layers` whose entry l is the layer that l borrows from (l itself to own them).
    """

    component: ClassVar[str] = ""

    def functions(self, n_layers: int) -> list[int]:
        raise NotImplementedError

    def residuals(self, n_layers: int) -> list[int]:
        raise NotImplementedError


class Init:
    """Sets a fresh module's own parameters in place; called once for every module, each under its own seed.

    It decides by the module's type and by `Linear.role`, never by names. Modules that it does not know keep
    the values of their `reset_parameters`.
    """

    component: ClassVar[str] = ""

    def __init__(self, site: Site):
        self.site = site

    def __call__(self, module: nn.Module) -> None:
        raise NotImplementedError


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
