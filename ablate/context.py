"""What components are told and carry: where one sits, what one forward pass has beside x, what is kept to decode.

Dimension letters, here and everywhere: B batch, T query time, S key time, D d_model, H heads, K head
dimension, F d_ff, V vocabulary, E experts, L layers, N trials or points. Tensors carry them in their names
(`q_BHTK`). Time runs along T and S from early to late.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from ablate import registry
from ablate.arch import Component
from ablate.errors import UserError

if TYPE_CHECKING:
    from ablate.contracts import Norm, Position

Role = Literal["inner", "score", "write", "logits"]
Tower = Literal["only", "encoder", "decoder"]


@dataclass(frozen=True)
class Site:
    """Where a component is built. Nothing of this is repeated in a grid as an option."""

    d_model: int
    n_heads: int
    d_head: int
    d_ff: int
    vocab: int
    max_len: int
    n_layers: int  # of this tower
    sublayers: int  # residual branches in the whole model
    layer: int = 0
    causal: bool = True  # from the task, not from the architecture
    prefix: bool = False  # of a causal tower: rows begin with tokens that are visible to all, `ctx.prefix_BT`
    bias: bool = True
    norm: Component = field(default_factory=lambda: Component("layernorm"))
    tower: Tower = "only"  # which tower of an encoder-decoder this is; `only` where there is one
    encoder_layers: int = 0  # of an encoder-decoder; 0 where there is one tower
    decoder_layers: int = 0
    classes: int = 0  # of a classifier
    image: tuple[int, int, int] | None = None  # channels, height, width, where the input is an image
    dropout: float = 0.0  # the training's, for whole models; elsewhere the tower sees to it
    vocab_multiple: int = 1

    @property
    def vocab_rows(self) -> int:
        """Rows of a table of the vocabulary: `vocab`, and unused ones up to the next multiple. Heads leave these
        out of their distribution."""
        return -(-self.vocab // self.vocab_multiple) * self.vocab_multiple

    def refuse_unused_rows(self, who: str) -> None:
        """Raise `UserError` where tables are asked to have unused rows."""
        if self.vocab_rows != self.vocab:
            raise UserError(f"{who} has tables of its own sizes: set data.vocab_multiple to 1")

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
    """What step-by-step decoding keeps of the past: `length` tokens, and one state for each call of a mixer.

    A state may be tensors in tuples, lists and dicts. Every tensor has the batch's rows first, so that rows can be
    put in another order, repeated and left out (`ablate.generate.reorder`).
    """

    length: int = 0
    states: dict[int, Any] = field(default_factory=dict)
    memory: Memory | None = None  # the encoder's, in an encoder-decoder


@dataclass
class Memory:
    """What an encoder leaves for a decoder: its output, which of its positions are no padding (None: all), and
    what the decoder's layer `l` reads, `at(l)`: the output, unless the encoder's stack says otherwise."""

    x_BSD: Tensor
    valid_BS: Tensor | None
    at: Callable[[int], Tensor]


@dataclass
class Context:
    """What one forward pass carries beside x.

    `layer` counts the layers run so far and `call` the sublayers; under weight sharing they differ from the
    layer a module was built for. A mixer reads its past with `recall()` and leaves its new state with
    `remember()`; without a cache both do nothing.

    `valid_BT` is False at padding, None where there is none. Padding stands at the end of a row. A mixer must not
    let it reach other positions; one that cannot prevent it raises `UserError` saying so (`refuse_padding`).
    What a mixer gives at padding itself does not matter.

    `prefix_BT` is True at the first tokens of a row, which every query sees although the tower is causal; None where
    there are none. Mixers that say they can (`sees_prefix`) are the only ones in such a tower.
    """

    position: Position
    positions_T: Tensor
    cache: Cache | None = None
    layer: int = 0
    call: int = 0
    aux: dict[str, Tensor] = field(default_factory=dict)
    once: dict[str, Tensor] = field(default_factory=dict)  # computed in one layer, reused in the others
    valid_BT: Tensor | None = None
    prefix_BT: Tensor | None = None
    memory: Memory | None = None  # in the decoder of an encoder-decoder
    trace: list[Tensor] | None = None  # the stream on entering the first layer and after each, where asked for
    scale: float | None = None  # of the attention that calls the position's `bias`: its scores are scale q . k

    def recall(self) -> Any:
        return None if self.cache is None else self.cache.states.get(self.call)

    def remember(self, state: Any) -> None:
        if self.cache is not None:
            self.cache.states[self.call] = state

    def zero_padding(self, x_BTD: Tensor) -> Tensor:
        """x with zeros at padding."""
        return x_BTD if self.valid_BT is None else x_BTD * self.valid_BT[..., None].to(x_BTD.dtype)

    def refuse_padding(self, who: str) -> None:
        """Raise `UserError` where there is padding."""
        if self.valid_BT is not None:
            raise UserError(f"{who} mixes padding into every position: pack sequences to one length")

    def add_aux(self, name: str, loss: Tensor) -> None:
        """An auxiliary loss (load balance, ponder cost), summed over layers and added to the objective."""
        self.aux[name] = self.aux[name] + loss if name in self.aux else loss
