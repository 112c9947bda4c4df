"""Where training begins: from the fresh initialisation, or from another trial's trained weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ablate.errors import UserError
from ablate.train import checkpoint


def load_weights(file: Path) -> dict[str, Tensor]:
    """The weights that a finished trial left. Raises `UserError`."""
    state = checkpoint.load(file)
    if state is None:
        how = "damaged: they are not what was written" if file.is_file() else "missing"
        raise UserError(
            f"{file}: the weights that this trial begins from are {how}; remove the folder of that trial, run the "
            "command again to train it anew, and then with --retry-failed"
        )
    return dict(state["model"])


@torch.no_grad()
def begin_from(model: nn.Module, weights: dict[str, Tensor], afresh: Collection[str] = ()) -> dict[str, Any]:
    """Give the model every weight of its parent that has its name and shape, and say which it did not.

    Tables of the vocabulary may differ in their number of rows, the task's own tokens standing behind the
    tokenizer's: the rows that both have are taken. What the parent does not have, as a new head, keeps its fresh
    values, and so do those of `afresh`. A decoder's or encoder's weights go to a model of one tower as well, in this
    order.

    Raises `UserError` where nothing of the tower is taken: the two are different architectures.
    """
    mine = model.state_dict()
    taken, rows, fresh = [], [], []
    for name, value in mine.items():
        if name in afresh:
            fresh.append(name)
            continue
        found = next((weights[old] for old in _names(name) if old in weights), None)
        if found is not None and found.shape == value.shape:
            value.copy_(found)
            taken.append(name)
        elif found is not None and value.ndim > 0 and found.shape[1:] == value.shape[1:] and not _in_tower(name):
            common = min(len(found), len(value))
            value[:common] = found[:common]
            rows.append(name)
        else:
            fresh.append(name)
    refuse_misfits({name: mine[name].shape for name in mine if name not in afresh}, weights)
    return {"taken": len(taken), "rows": rows, "fresh": fresh}


def refuse_misfits(mine: Mapping[str, torch.Size], parent: Mapping[str, Tensor]) -> None:
    """Raise `UserError` where a parameter of a tower, by its name and shape, has no counterpart in the parent, or
    where nothing has one."""
    found = {name: any(old in parent and parent[old].shape == mine[name] for old in _names(name)) for name in mine}
    wrong = [name for name in mine if _in_tower(name) and not found[name]]
    if wrong or not any(found.values()):
        raise UserError(
            f"the weights to begin from do not fit: they have no {(wrong or list(mine))[0]} of this shape; a stage "
            "has the architecture of the one it begins from, its head apart"
        )


def _in_tower(name: str) -> bool:
    return "tower." in name


def _names(name: str) -> tuple[str, ...]:
    """Under which names a parent may have a parameter: its own, or inside the tower of an encoder-decoder, or of
    the discriminator of a pair of networks."""
    return name, f"discriminator.{name}", f"encoder.{name}", f"decoder.{name}"
