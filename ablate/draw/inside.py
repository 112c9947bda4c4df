"""Modules as parts of a drawing: a matrix as a box with its shape, a component with what is inside of it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any

from torch import nn

from ablate.contracts import Slot
from ablate.draw.flow import flow
from ablate.draw.parts import Box, Chain, Fork, Frame, counted, every, joined

ROWS = 3  # of shapes said of one box


def component(
    module: nn.Module, text: str, given: tuple[Any, ...], note: str = "", changed: bool = False, reads: bool = False
) -> Box | Frame:
    """A component with what is inside of it, as far as that can be read; else with the shapes of its weights."""
    about = summary(module)
    note = joined((counted(parameters_of(module)), note))
    body = experts(module, given) or (flow(module, step, *given) if given else None)
    if body is not None and sum(1 for part in every(body) if isinstance(part, Box) and part.kind == "part") > 1:
        return Frame(body, text, note, about, changed=changed, reads=reads)
    return Box(text, joined((shapes(module), note)), about, changed=changed, reads=reads)


def step(module: nn.Module, name: str) -> Chain:
    """One module within another."""
    if isinstance(module, nn.Identity | nn.Dropout):
        return ()
    known = getattr(module, "component", "")
    text = known.split("/")[-1] if known else name.replace("_", " ")
    if not known and not weights(module) and not parameters_of(module):
        return (Box(type(module).__name__.lower(), kind="op"),)
    return (Box(text, shapes(module), summary(module) if known else ""),)


def experts(module: nn.Module, given: tuple[Any, ...]) -> Chain | None:
    """Several networks of one kind of which a token uses some: the first, one for the others, and who chooses."""
    lists = [
        each
        for each in module.modules()
        if isinstance(each, nn.ModuleList) and len(each) > 1 and all(isinstance(one, Slot) for one in each)
    ]
    idle = module.idle_parameters() if isinstance(module, Slot) else 0
    size = parameters_of(lists[0][0]) if lists else 0
    if len(lists) != 1 or not idle or not size:
        return None
    (networks,) = lists
    count = len(networks)
    used = count - idle // size
    inside = flow(networks[0], step, *given) or (Box("network", shapes(networks[0])),)
    first = Frame(inside, "expert 1", counted(size), summary(networks[0]))
    others = Box(f"expert {'2' if count == 2 else f'2 … {count}'}", f"{counted(size)} each" if count > 2 else "")
    own = [each for each in module.children() if each is not networks and not _within(networks, each)]
    routers = [_router(each) for each in own if parameters_of(each)]
    return (*routers, Fork(((first,), (others,)), f"a token: {used} of {count}"))


def _router(module: nn.Module) -> Box:
    return Box("router", shapes(module))


def _within(module: nn.Module, other: nn.Module) -> bool:
    return any(module is each for each in other.modules())


def parameters_of(*modules: nn.Module) -> int:
    """Parameters, shared ones once."""
    return sum({id(each): each.numel() for module in modules for each in module.parameters()}.values())


def weights(module: nn.Module) -> list[tuple[str, str]]:
    """The name and the shape of every matrix inside, `d_in→d_out` of those that are multiplied with."""
    found = []
    for name, each in module.named_modules():
        label = name.split(".")[-1] or type(module).__name__.lower()
        if isinstance(each, nn.Linear):
            found.append((label if name else "", f"{each.in_features:,}→{each.out_features:,}"))
        elif isinstance(each, nn.RNNBase):
            found.append((label if name else "", f"{each.mode} {each.input_size:,}→{each.hidden_size:,}"))
        elif isinstance(each, nn.Embedding):
            found.append((label if name else "", f"{each.num_embeddings:,} × {each.embedding_dim:,}"))
        else:
            for own, parameter in each.named_parameters(recurse=False):
                if parameter.ndim > 1:
                    known = name and not own.startswith("weight")
                    shape = " × ".join(f"{side:,}" for side in parameter.shape)
                    found.append((own if known or not name else label, shape))
    return found


def shapes(module: nn.Module) -> str:
    """`q, k, v, out 512→512`, of the first few that differ."""
    said = []
    found = weights(module)
    if len(found) == 1:
        return found[0][1]
    for shape, names in _by_shape(found):
        most = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        said.append(f"{most} {shape}".strip().replace("_", " "))
    more = [f"{len(said) - ROWS} more"] if len(said) > ROWS else []
    return joined(said[:ROWS] + more)


def _by_shape(found: Iterable[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    by_shape: dict[str, list[str]] = {}
    for name, shape in found:
        by_shape.setdefault(shape, []).append(name)
    return [
        (shape, [_numbered(name, len(list(same))) for name, same in groupby(names)])
        for shape, names in by_shape.items()
    ]


def _numbered(name: str, count: int) -> str:
    return name if count == 1 else f"{count} {name}".strip()


def summary(module: Any) -> str:
    """The first paragraph of what its class says of itself: the equation."""
    doc = type(module).__doc__ or ""
    return " ".join(doc.split("\n\n")[0].split())
