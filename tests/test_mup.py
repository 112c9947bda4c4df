"""Maximal update parametrisation: activations keep their size at every width, and rates are what the table says."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import spec, train
from torch import nn

from ablate.build import build_model, init_of
from ablate.contracts import Linear
from ablate.errors import SpecError, UserError
from ablate.run.ledger import Ledger
from ablate.spec import ArchSpec, parse
from ablate.train.optim import decay_groups
from ablate.train.run import TrainingRun

CPU = torch.device("cpu")
V, T = 23, 12
WIDTHS = (32, 64, 128, 256)


def architecture(width: int, init: Any, tied: bool = True, score: str = "mup") -> ArchSpec:
    return parse(
        ArchSpec,
        {
            "d_model": width,
            "n_heads": 4,
            "depth": 2,
            "init": init,
            "sublayers": {"s": {"name": "attention", "score": score}},
            "head": {"name": "softmax", "tied": tied},
        },
    )


def sizes_after(width: int, init: Any, tied: bool, score: str, steps: int = 4) -> tuple[float, float]:
    """The mean absolute change that training made of the tower's output and of the logits."""
    arch = architecture(width, init, tied, score)
    found = []
    for seed in range(3):
        model = build_model(arch, V, T, seed=seed)
        named = dict(model.named_parameters())
        rates = {named[name]: rate for name, rate in init_of(arch, V, T).rates(model).items()}
        optimizer = torch.optim.AdamW(decay_groups(model, 0.0, None, rates), lr=1.0)
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(0, V, (8, T + 1), generator=generator)
        x, _ = model(tokens[:, :-1])
        before = x.detach(), model.head.logits(x).detach()
        for _ in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 * group["rate"]
            optimizer.zero_grad()
            model.nll(tokens[:, :-1], tokens[:, 1:]).mean().backward()
            optimizer.step()
        x, _ = model(tokens[:, :-1])
        after = x.detach(), model.head.logits(x).detach()
        found.append([(late - early).abs().mean().item() for early, late in zip(before, after, strict=True)])
    return tuple(torch.tensor(found).mean(0).tolist())  # type: ignore[return-value]


@pytest.mark.parametrize("tied", [True, False])
def test_changes_keep_their_size_at_every_width(tied: bool) -> None:
    """The coordinate check. What training changes tends to a constant from above, where the width grows eightfold; in
    the ordinary parametrisation the logits move ever more."""
    ours = [sizes_after(width, {"name": "mup", "base": 32}, tied, "mup") for width in WIDTHS]
    plain = [sizes_after(width, "lecun", tied, "scaled_dot")[1] for width in WIDTHS]
    for part in zip(*ours, strict=True):
        assert max(part) / min(part) < 1.45, part
        assert part[-1] / part[-2] == pytest.approx(1, abs=0.08), part
    assert plain == sorted(plain) and plain[-1] / plain[0] > 1.7 and plain[-1] / plain[-2] > 1.2, plain


def test_values_and_rates_are_those_of_the_table() -> None:
    """At four times the base width: hidden variance and rate a quarter, output variance a sixteenth."""
    for tied in (True, False):
        wide, base = (architecture(width, {"name": "mup", "base": 64}, tied) for width in (256, 64))
        at = {arch.d_model: build_model(arch, 400, T, seed=0) for arch in (wide, base)}
        rates = init_of(wide, 400, T).rates(at[256])
        assert set(init_of(base, 400, T).rates(at[64]).values()) == {1.0}
        for name, module in at[256].named_modules():
            other = at[64].get_submodule(name)
            if isinstance(module, Linear):
                assert rates[f"{name}.weight"] == 0.25
                ratio = module.weight.var() / other.weight.var()
                expected = 1 / 16 if module.role == "logits" else 1 / 4
                assert ratio.item() == pytest.approx(expected, rel=0.1), name
        vectors = {name for name, value in at[256].named_parameters() if value.ndim < 2}
        assert not rates.keys() & ({"embedding.table.weight", "position.table"} | vectors)
        table, other = (model.embedding.table.weight for model in at.values())
        assert (table.var() / other.var()).item() == pytest.approx(1, rel=0.1)
        assert at[256].head.scale == (0.25 if tied else 1.0)


def test_at_the_base_width_it_is_the_ordinary_parametrisation() -> None:
    arch = architecture(64, {"name": "mup", "base": 64})
    model = build_model(arch, V, T)
    assert model.head.scale == 1.0 and set(init_of(arch, V, T).rates(model).values()) == {1.0}
    attention = model.tower.functions["0"][0]
    assert attention.scale == 1 / 16


def test_scores_are_divided_by_the_head_s_width() -> None:
    torch.manual_seed(0)
    model = build_model(architecture(16, "lecun"), V, T)
    attention = model.tower.functions["0"][0]
    q, k = torch.randn(1, 4, 3, 4), torch.randn(1, 4, 3, 4)
    torch.testing.assert_close(attention.scores(q, k), q @ k.mT / 4)


def test_a_run_takes_its_rates_from_the_init(token_cache: Path) -> None:
    settings = {"arch.init": {"name": "mup", "base": 4}, "train.layer_decay": 0.5, "train.weight_decay": 0.1}
    run = TrainingRun(spec({**settings, "train.schedule": "constant", "train.lr": 1e-3}), CPU, token_cache)
    named = dict(run.model.named_parameters())
    group_of = {id(each): group for group in run.optimizer.param_groups for each in group["params"]}

    def group(name: str) -> Any:
        return group_of[id(named[name])]

    hidden, table = group("tower.functions.0.0.q.weight"), group("embedding.table.weight")
    assert hidden["rate"] == 0.25 * 0.5 and hidden["weight_decay"] == pytest.approx(0.4)
    assert table["rate"] == 0.25 and table["weight_decay"] == 0.1
    assert group("tower.functions.0.0.q.bias")["rate"] == 0.5
    run.train_step()
    assert hidden["lr"] == pytest.approx(1e-3 / 8)


def test_it_trains(ledger: Ledger) -> None:
    record = train(ledger, spec({"arch.init": "mup", "train.lr": 1e-2})).record()
    assert record is not None and record["status"] == "finished" and math.isfinite(record["metrics"]["loss"])


@pytest.mark.parametrize(
    "arch, problem",
    [
        ({"head": {"name": "softmax", "scaled": True}}, "arch.head.scaled"),
        ({"embedding": {"name": "table", "scaled": True}}, "arch.embedding.scaled"),
        ({"head": "mixture_of_softmaxes"}, "no rule for head/mixture_of_softmaxes"),
        ({"sublayers": {"f": "product_key"}}, "no rule for .* of channel/product_key"),
    ],
)
def test_what_it_has_no_rule_for_is_refused_by_name(arch: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        build_model(parse(ArchSpec, {"d_model": 16, "depth": 1, "init": "mup", **arch}), V, T)


def test_sgd_is_refused() -> None:
    with pytest.raises(SpecError, match="'sgd' contradicts init 'mup'"):
        spec({"arch.init": "mup", "train.optimizer": "sgd"})


def test_groups_keep_matrices_apart_from_vectors() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    groups = decay_groups(model, 0.2, {model[0].weight: 0.5}, {model[1].weight: 0.1, model[1].bias: 0.1})
    found = {
        (tuple(each.shape for each in group["params"]), group["rate"], group["weight_decay"]) for group in groups
    }
    assert found == {
        (((3, 2),), 0.5, 0.2),
        (((2, 3),), 0.1, 2.0),
        (((3,),), 1.0, 0.0),
        (((2,),), 0.1, 0.0),
    }
