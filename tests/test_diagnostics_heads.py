"""Head importance and the pruning curve: against finite differences, and against models without the columns."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from runs import spec, train
from test_diagnostics import MIXERS, TARGETS, TOKENS, VALID, batch_of, model_of
from torch import Tensor

from ablate.diagnose.heads import head_importance, heads, loss_without, masked, pruning_order
from ablate.diagnose.inside import attentions, head_count
from ablate.differences import differences
from ablate.run.ledger import Ledger
from ablate.tasks.base import Batch


def row_losses(model: object, batch: Batch) -> Tensor:
    with torch.no_grad():
        nll_BT = batch.nll(model)
    counts_BT = torch.ones_like(nll_BT) if batch.counts is None else batch.counts.double()
    return (nll_BT * counts_BT).sum(1) / counts_BT.sum(1)


@pytest.mark.parametrize("name", ["attention", "evolved_self", "transformer_xl", "weighted", "grouped_query"])
def test_importance_is_the_mean_absolute_finite_difference(name: str) -> None:
    depth = 1 if name == "transformer_xl" else 2  # no gradient goes into its memory, which deeper heads change
    model = model_of({"sublayers": {"s": name}, "depth": depth}).eval()
    modules = [module for _, module in attentions(model)]
    found = head_importance(model, [batch_of(2), Batch((TOKENS[2:],), TARGETS[2:])])
    step = 1e-5
    for module, ours_H in zip(modules, found, strict=True):
        assert len(ours_H) == head_count(module)
        for head, ours in enumerate(ours_H.tolist()):
            ends = []
            for sign in (1, -1):
                mask_H = torch.ones(len(ours_H), dtype=torch.float64)
                mask_H[head] += sign * step
                with masked([(module, mask_H)]):
                    ends.append(row_losses(model, batch_of()))
            slope_B = (ends[0] - ends[1]) / (2 * step)
            assert ours == pytest.approx(slope_B.abs().mean().item(), rel=1e-6)


def test_importance_counts_rows_and_targets_alike() -> None:
    """A padded batch is its rows alone; a row without a target does not count."""
    model = model_of({})
    counts = VALID.clone()
    counts[2] = False
    padded = Batch((TOKENS,), TARGETS, counts, {"valid_BT": VALID})
    alone = [Batch((TOKENS[b : b + 1, :n],), TARGETS[b : b + 1, :n]) for b, n in ((0, 21), (1, 15), (3, 2))]
    for one, other in zip(head_importance(model, [padded]), head_importance(model, alone), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", [each for each in MIXERS if each != "weighted"])
def test_pruning_a_head_is_zeroing_its_columns_of_the_output_matrix(name: str) -> None:
    model = model_of({"sublayers": {"s": name}})
    whole = loss_without(model, [], [batch_of()])
    assert whole == pytest.approx(row_losses(model, batch_of()).mean().item(), rel=1e-12)
    for index, head in ((0, 1), (1, 3)):
        cut = copy.deepcopy(model)
        out = attentions(cut)[index][1].out
        width = out.in_features // head_count(attentions(cut)[index][1])
        with torch.no_grad():
            out.weight[:, head * width : (head + 1) * width] = 0
        found = loss_without(model, [(index, head)], [batch_of()])
        assert (
            found == pytest.approx(loss_without(cut, [], [batch_of()]), rel=1e-12) != pytest.approx(whole, rel=1e-9)
        )


def test_the_order_is_by_importance_within_each_attention() -> None:
    """0.3 / 0.5 is more than 1 / sqrt(5): by hand."""
    order = pruning_order([torch.tensor([0.3, 0.4]), torch.tensor([2.0, 1.0])])
    assert order == [(1, 1), (0, 0), (0, 1), (1, 0)]
    assert pruning_order([torch.tensor([2.0]), torch.tensor([1.0]), torch.tensor([0.0])]) == [(2, 0), (1, 0), (0, 0)]


def test_the_curve_by_hand() -> None:
    """2 layers of 4 heads: at each tenth of 8 heads, those that the order names are gone."""
    model = model_of({})
    found = heads(model, [batch_of()], [batch_of(3)])
    assert found is not None and found["removed"] == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    values = [torch.tensor(each["importance"]) for each in found["heads"]]
    assert [each["layer"] for each in found["heads"]] == [0, 1]
    order = pruning_order(values)
    for n, loss in zip(found["removed"], found["loss"], strict=True):
        assert loss == pytest.approx(loss_without(model, order[:n], [batch_of(3)]), rel=1e-12)
    with torch.no_grad():
        silent = copy.deepcopy(model)
        for _, module in attentions(silent):
            module.out.weight.zero_()
    assert found["loss"][-1] == pytest.approx(loss_without(silent, [], [batch_of(3)]), rel=1e-12)
    best = [int(each.argmax()) for each in values]
    others = [(index, head) for index in (0, 1) for head in range(4) if head != best[index]]
    assert found["one_each"] == pytest.approx(loss_without(model, others, [batch_of(3)]), rel=1e-12)


def test_shared_weights_have_one_mask_and_encoders_one_too() -> None:
    shared = heads(model_of({"sharing": "all"}), [batch_of()], [batch_of()])
    assert shared is not None and len(shared["heads"]) == 1 and shared["removed"][-1] == 4
    batch = Batch((TOKENS, TOKENS), TARGETS, VALID, {"valid_BS": VALID})
    pair = heads(model_of({"encoder": True}), [batch], [batch])
    assert pair is not None and pair["removed"][-1] == 24 and len(pair["removed"]) == 11
    assert [(each["tower"], each["component"]) for each in pair["heads"][::5]] == [
        ("encoder", "attention"),
        ("decoder", "cross"),
    ]
    assert heads(model_of({"sublayers": {"s": "lstm"}}), [batch_of()], [batch_of()]) is None


def test_the_curve_of_a_trial_begins_at_its_loss(ledger: Ledger) -> None:
    """Of the sample that evaluations on the way read."""
    record = train(ledger, spec({"train.diagnostics": ["heads", "train_curve"], "arch.depth": 2})).record()
    assert record is not None
    found = record["diagnostics"]["heads"]["final"]
    assert found["removed"] == [0, 1, 2, 3, 4] and all(math.isfinite(loss) for loss in found["loss"])
    assert found["loss"][0] == pytest.approx(record["diagnostics"]["train_curve"]["final"]["valid"], rel=1e-6)


def test_heads_that_share_the_width_are_one_difference() -> None:
    one, eight = (spec({"arch.n_heads": n}) for n in (1, 8))
    assert differences(one, eight) == ("n_heads",)
    assert differences(one, spec({"arch.n_heads": 8, "arch.d_head": 16})) == ("n_heads",)  # d_head as it was
    assert differences(one, spec({"arch.n_heads": 8, "arch.d_head": 4})) == ("d_head", "n_heads")
