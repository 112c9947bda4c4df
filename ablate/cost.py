"""What an architecture costs: parameters, FLOPs, memory. All counted on the meta device, none typed by hand.

FLOPs are 2 per multiply-accumulate of matrix products, norms and activations ignored. *Executed* counts what
plain kernels compute, masked scores included; *algorithmic* counts only the scores that the definition needs.
Per token of a full sequence of `max_len`; of an encoder-decoder, per token of its output, with a source of the same
length; of a classifier, per token of its input; of a model of images, per image, which the tasks count as one token.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ablate import registry
from ablate.build import build_on_meta, form_of
from ablate.components.mixers.attention import Attention
from ablate.contracts import Cache, Slot
from ablate.probe import probe
from ablate.spec import ArchSpec, canonical_arch

# slots whose parameters are embeddings: tables of the vocabulary and of absolute positions, in or out
EMBEDDING_SLOTS = ("embedding", "position", "head")


@dataclass(frozen=True)
class Cost:
    """The costs of one architecture at one vocabulary and sequence length."""

    params_total: int
    params_non_embedding: int  # without embedding, position and head
    params_active: int  # used by one token; less than the total with sparse experts
    params_by_slot: dict[str, int]
    flops_forward: float  # executed, per token
    flops_backward: float
    flops_algorithmic: float  # forward, per token
    activation_bytes: float  # kept for the backward pass in float32, per token
    cache_bytes: int  # decoding state of one sequence at full length
    state_bytes: int  # the part of it that does not grow with length

    @property
    def flops_train(self) -> float:
        """Executed FLOPs of training on one token."""
        return self.flops_forward + self.flops_backward

    @property
    def flops_6n(self) -> float:
        """6 N per token, N the non-embedding parameters (Kaplan et al. 2020): the usual approximation."""
        return 6.0 * self.params_non_embedding


def count(arch: ArchSpec, vocab: int, max_len: int, causal: bool = True, **shape: Any) -> Cost:
    """The costs of a model. Deterministic integers (per sequence), whatever the machine.

    `shape` is what `build_model` is told besides.
    """
    row = 1 if shape.get("image") else max_len
    model = build_on_meta(arch, vocab, max_len, causal, **shape)
    by_slot = params_by_slot(model)
    total = sum(parameter.numel() for parameter in model.parameters())
    assert total == sum(by_slot.values())
    embedding = sum(n for slot, n in by_slot.items() if slot in EMBEDDING_SLOTS)
    forward, backward, spared, kept = _flops(model, max_len)
    decodes = causal and form_of(arch) in ("tokens", "pair")
    cache, state = _cache_bytes(model, max_len) if decodes else (0, 0)
    idle = sum(module.idle_parameters() for module in model.modules() if isinstance(module, Slot))
    return Cost(
        params_total=total,
        params_non_embedding=total - embedding,
        params_active=total - idle,
        params_by_slot=by_slot,
        flops_forward=forward / row,
        flops_backward=backward / row,
        flops_algorithmic=(forward - spared) / row,
        activation_bytes=kept / row,
        cache_bytes=cache,
        state_bytes=state,
    )


def params_only(arch: ArchSpec, vocab: int, max_len: int, **shape: Any) -> int:
    """All parameters; cheaper than `count`."""
    return sum(parameter.numel() for parameter in build_on_meta(arch, vocab, max_len, **shape).parameters())


def params_by_slot(model: nn.Module) -> dict[str, int]:
    """Parameters by the slot of the nearest component that holds them; shared weights count once."""
    found: dict[str, int] = {}
    seen: set[int] = set()

    def visit(module: nn.Module, slot: str) -> None:
        slot = str(getattr(module, "component", "")).split("/")[0] or slot
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                found[slot] = found.get(slot, 0) + parameter.numel()
        for child in module.children():
            visit(child, slot)

    visit(model, "other")
    return dict(sorted(found.items()))


def _flops(model: Any, length: int) -> tuple[float, float, float, int]:
    """Forward, backward, the forward part that the definition does not need, and bytes kept for backward."""
    with torch.device("meta"):
        inputs = model.example(1, length)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[id(tensor.untyped_storage())] = tensor.untyped_storage().nbytes()
        return tensor

    counter = FlopCounterMode(display=False)
    spared = 0.0
    restores = []

    def watch(mixer: Attention) -> None:
        attend = mixer.attend
        needed = mixer.density(length)

        def counted(*args: Any) -> Tensor:
            nonlocal spared
            before = counter.get_total_flops()
            y = attend(*args)
            spared += (1.0 - needed / mixer.executed(length, args[3])) * (counter.get_total_flops() - before)
            return y

        mixer.attend = counted  # type: ignore[method-assign, assignment]
        restores.append(mixer)

    extra = [0.0, 0.0]

    def spare(module: Slot, inputs: Any, output: Any) -> None:
        nonlocal spared
        spared += module.unneeded_flops(inputs[0].shape[1])
        for i, flops in enumerate(module.uncounted_flops(inputs[0].shape[1])):
            extra[i] += flops

    for module in model.modules():
        if isinstance(module, Attention):
            watch(module)
        if isinstance(module, Slot) and (
            type(module).unneeded_flops is not Slot.unneeded_flops
            or type(module).uncounted_flops is not Slot.uncounted_flops
        ):
            module.register_forward_hook(spare)
    weights = {id(parameter.untyped_storage()) for parameter in model.parameters()}
    with counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model.nll(*inputs).mean()
        forward = counter.get_total_flops()
        if loss.requires_grad:  # a model that is fitted by counting has no backward pass
            loss.backward()
        total = counter.get_total_flops()
    for mixer in restores:
        del mixer.attend
    bytes_kept = sum(n for key, n in kept.items() if key not in weights)
    return forward + extra[0], total - forward + extra[1], spared, bytes_kept


def _cache_bytes(model: Any, length: int) -> tuple[int, int]:
    """The decoding state of one sequence at full length, and its part that does not grow."""

    def at(T: int) -> int:
        cache = Cache()
        with torch.no_grad(), torch.device("meta"):
            model.log_probs(*model.example(1, T)[:-1], cache=cache)
        return sum(_bytes(state) for state in cache.states.values())

    full = at(length)
    if length < 2:
        return full, full
    slope = full - at(length - 1)
    return full, max(0, full - slope * length)


def _bytes(state: Any) -> int:
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, list | tuple):
        return sum(_bytes(each) for each in state)
    return 0


class CostBook:
    """Costs remembered in a folder, by architecture and by the source code that they were counted with."""

    def __init__(self, folder: Path | None):
        self.folder = folder
        self._known: dict[str, Cost] = {}

    def cost(self, arch: ArchSpec, vocab: int, max_len: int, **shape: Any) -> Cost:
        """The costs. An architecture is probed before it is first counted: see `probe` for what it refuses."""
        key = _key(arch, vocab, max_len, shape)
        if key in self._known:
            return self._known[key]
        file = self.folder / f"{key}.json" if self.folder else None
        if file and file.is_file():
            cost = Cost(**json.loads(file.read_text()))
        else:
            probe(arch, vocab, max_len, **shape)
            cost = count(arch, vocab, max_len, **shape)
            if file:
                file.parent.mkdir(parents=True, exist_ok=True)
                part = file.with_suffix(f".{id(cost)}.part")
                part.write_text(json.dumps(asdict(cost)))
                part.replace(file)
        self._known[key] = cost
        return cost


def _key(arch: ArchSpec, vocab: int, max_len: int, shape: dict[str, Any]) -> str:
    asked = [canonical_arch(arch), vocab, max_len, shape, source_hash(), torch.__version__]
    text = json.dumps(asked, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@lru_cache(maxsize=1)
def source_hash() -> str:
    """Hash of all that a count depends on: this file, the builder, the contracts, the components, the defaults."""
    files = sorted((registry.PACKAGE / "components").rglob("*.py"))
    files += [
        registry.PACKAGE / name
        for name in (
            "arch.py",
            "build.py",
            "context.py",
            "contracts.py",
            "cost.py",
            "models.py",
            "probe.py",
            "replaced.py",
        )
    ]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]
