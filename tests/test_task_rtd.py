"""Replaced-token detection: both losses, sampling, what the two networks share, what a classifier takes over."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import spec, train
from sklearn.metrics import f1_score, precision_score, recall_score
from test_task_mlm import opened, small

from ablate.build import build_model
from ablate.cost import CostBook, count
from ablate.errors import UserError
from ablate.replaced import Detection, ReplacedTokenModel, narrowed
from ablate.run.ledger import Ledger
from ablate.spec import ArchSpec, parse
from ablate.tasks.base import Batch
from ablate.tasks.rtd import DetectionMeter
from ablate.train.start import begin_from

SHAPE: dict[str, Any] = {"causal": False, "generator": 0.3333, "masked": 0.15}


def arch(**settings: Any) -> ArchSpec:
    return parse(ArchSpec, {"d_model": 24, "n_heads": 3, "depth": 2, **settings})


def model_of(**settings: Any) -> ReplacedTokenModel:
    made: ReplacedTokenModel = build_model(arch(**settings), 40, 20, **SHAPE)
    return made.double().eval()


def a_batch(rows: int = 4, places: int = 3) -> Batch:
    draw = torch.Generator().manual_seed(0)
    targets = torch.randint(0, 36, (rows, 20), generator=draw)
    at = torch.stack([torch.randperm(20, generator=draw)[:places].sort().values for _ in range(rows)])
    noise = torch.rand(rows, places, generator=draw)
    return Batch((targets.scatter(1, at, 37), at, noise), targets)


def test_the_losses_are_those_of_the_paper() -> None:
    """Recomputed place by place from what the two networks say."""
    model, batch = model_of(), a_batch()
    masked, at, noise = batch.inputs
    with torch.no_grad():
        log_p = model.generator.log_probs(masked)
        filled, mlm = masked.clone(), []
        for row in range(4):
            for place, u in zip(at[row].tolist(), noise[row].tolist(), strict=True):
                mlm.append(-log_p[row, place, batch.targets[row, place]].item())
                filled[row, place] = int(np.searchsorted(np.cumsum(log_p[row, place].exp().numpy()), u, side="right"))
        logits, _ = model.discriminator(filled)
        bce = []
        for row in range(4):
            for t in range(20):
                p = 1 / (1 + math.exp(-logits[row, t]))
                bce.append(-math.log(p if filled[row, t] != batch.targets[row, t] else 1 - p))
        expected = np.mean(mlm) + 50 * np.mean(bce)
        assert batch.nll(model).shape == (4, 20)
        assert batch.nll(model).mean().item() == pytest.approx(expected, rel=1e-9)
        minimised, plain, _ = model.objective(
            *batch.inputs, batch.targets, label_smoothing=0.0, z_loss=0.0, weight=2.0
        )
    for each in (minimised, plain):
        assert each.mean().item() == pytest.approx(np.mean(mlm) + 2 * np.mean(bce), rel=1e-9)


def test_a_sample_that_is_the_texts_own_token_counts_as_the_texts() -> None:
    model, batch = model_of(), a_batch()
    masked, at, noise = batch.inputs
    found = model(masked, at, noise, batch.targets)
    drawn = batch.targets.clone()  # a text that has at its places what the generator drew
    with torch.no_grad():
        x = model.generator(masked)[0].gather(1, at[..., None].expand(-1, -1, 8))
        drawn.scatter_(1, at, model.sample(x, noise))
    assert found.replaced_BT.any() and not model(masked, at, noise, drawn).replaced_BT.any()


def test_samples_follow_the_generators_distribution() -> None:
    model, n = model_of(), 4000
    x = torch.randn(1, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        p_V = model.generator.head.log_probs(x)[0, 0].exp()
        noise = ((torch.arange(n, dtype=torch.float64) + 0.5) / n)[None]
        drawn = model.sample(x.expand(1, n, 8), noise)[0]
        extremes = model.sample(x.expand(1, 2, 8), torch.tensor([[0.0, 1.0]]))[0]
    assert (torch.bincount(drawn, minlength=len(p_V)) - n * p_V).abs().max() <= 1.01
    assert extremes.tolist() == [0, len(p_V) - 1]


def test_what_the_networks_share() -> None:
    model = model_of()
    names = dict(model.named_parameters())
    tables = [name for name in names if name.endswith("table.weight") and "embedding" in name]
    assert tables == ["discriminator.embedding.table.weight"]
    assert names["projected.narrow.weight"].shape == (8, 24)
    found = model(*a_batch().inputs, a_batch().targets)
    found.nll_BM.mean().backward(retain_graph=True)  # the generator's loss alone
    assert names[tables[0]].grad is not None and names["projected.narrow.weight"].grad is not None
    assert all(value.grad is None for name, value in names.items() if name.startswith("discriminator.tower"))
    model.zero_grad()
    found.bce_BT.mean().backward()  # no gradient passes through the samples
    assert all(value.grad is None for name, value in names.items() if name.startswith(("generator.", "projected.")))
    assert names["discriminator.detect.project.weight"].grad is not None


@pytest.mark.parametrize("settings", [{"embedding": "factorized"}, {"embedding": "bert", "head": "bert"}])
def test_a_tied_head_scores_with_the_embeddings_rows(settings: dict[str, Any]) -> None:
    model, x = model_of(**settings), torch.randn(2, 3, 8, dtype=torch.float64)
    assert model.projected is not None
    rows = model.projected.rows()
    assert rows is not None and (model.projected.logits(x) - x @ rows.T).abs().max() < 1e-9
    assert torch.isfinite(a_batch().nll(model)).all()


def test_sizes_of_the_generator() -> None:
    small_one = narrowed(arch(d_model=128, n_heads=4, depth=3), 1 / 4)
    assert (small_one.d_model, small_one.n_heads, small_one.d_head, small_one.d_ff, small_one.depth) == (
        32, 1, 32, 128, 3,
    )  # fmt: skip
    assert (narrowed(arch(d_model=20, n_heads=2), 1 / 3).d_model, narrowed(arch(), 1.0).d_model) == (8, 24)
    whole: ReplacedTokenModel = build_model(arch(), 40, 20, causal=False, generator=1.0, masked=0.15)
    assert whole.projected is None and "projected" not in "".join(whole.state_dict())
    with pytest.raises(UserError, match=r"the generator, of 0\.3333 of the width: mixer 'grouped_query': kv_heads 3"):
        model_of(sublayers={"s": {"name": "grouped_query", "kv_heads": 3}})
    for tree, message in (({"model": "cbow"}, "model 'cbow' has no generator"), ({"encoder": True}, "form pair")):
        with pytest.raises(UserError, match=message):
            build_model(arch(**tree), 40, 20, **SHAPE)


def test_a_classifier_begins_from_the_discriminator() -> None:
    model = build_model(arch(), 40, 20, **SHAPE)
    classifier = build_model(arch(head="classify"), 36, 20, causal=False, classes=2, seed=7)
    told = begin_from(classifier, model.state_dict())
    assert told["fresh"] == ["head.project.weight", "head.project.bias"]
    mine, theirs = classifier.state_dict(), model.state_dict()
    tower = [name for name in mine if name.startswith(("tower.", "position."))]
    assert tower and all(torch.equal(mine[name], theirs[f"discriminator.{name}"]) for name in tower)
    table = "embedding.table.weight"
    assert torch.equal(mine[table], theirs[f"discriminator.{table}"][:36])


def test_both_networks_are_counted() -> None:
    cost = CostBook(None).cost(arch(), 40, 20, **SHAPE)  # probed, too
    plain = count(arch(), 40, 20, causal=False)
    assert cost.params_total == sum(value.numel() for value in model_of().parameters())
    assert cost.params_by_slot["head"] == 24 + 1 and "other" not in cost.params_by_slot
    # what the head of a plain model computes, against 3 of 20 places of the generator's, twice, and the verdict
    tower = plain.flops_forward - 2 * 24 * 40
    generator = count(narrowed(arch(), 1 / 3), 40, 20, causal=False).flops_forward - 2 * 8 * 40
    project, verdict, words = 2 * 24 * 8, 2 * 24, 2 * 3 / 20 * (2 * 8 * 24 + 2 * 24 * 40)
    assert cost.flops_forward == pytest.approx(tower + generator + project + verdict + words)


def test_metrics_are_those_of_scikit_learn() -> None:
    draw = torch.Generator().manual_seed(5)
    logits, so = torch.randn(6, 9, generator=draw), torch.rand(6, 9, generator=draw) < 0.3
    nll = torch.rand(6, 2, generator=draw)

    class Fixed:
        def __call__(self, rows: torch.Tensor, targets: torch.Tensor) -> Detection:
            at = rows[:, 0]
            return Detection(nll[at], nll[at], logits[at], so[at], {})

    meter = DetectionMeter(50.0)
    for part in Batch((torch.arange(6)[:, None],), torch.zeros(6, 9)).split(4):
        meter.add(Fixed(), part)  # type: ignore[arg-type]
    found, truth, called = meter.result(), so.flatten(), (logits > 0).flatten()
    assert found["precision"] == pytest.approx(precision_score(truth, called))
    assert found["recall"] == pytest.approx(recall_score(truth, called))
    assert found["f1"] == pytest.approx(f1_score(truth, called))
    assert found["accuracy"] == pytest.approx((truth == called).double().mean().item())
    assert found["mlm_loss"] == pytest.approx(nll.mean().item())
    assert found["loss"] == pytest.approx(found["mlm_loss"] + 50 * found["detection_loss"])
    assert found["replaced_frac"] == pytest.approx(so.double().mean().item())


def test_batches(token_cache: Path) -> None:
    task = opened(token_cache, "rtd")
    masked, at, noise = task.batches(small(), 0)[4].inputs
    batch = task.batches(small(), 0)[4]
    assert all(torch.equal(a, b) for a, b in zip(batch.inputs, (masked, at, noise), strict=True))
    assert at.shape == noise.shape == (100, 5) and ((masked == 257).sum(1) == 5).all()
    assert torch.equal(masked.scatter(1, at, batch.targets.gather(1, at)), batch.targets)
    assert 0 <= noise.min() and noise.max() < 1 and noise.mean().item() == pytest.approx(0.5, abs=0.06)


def test_it_trains_the_same_whenever_it_is_stopped(ledger: Ledger, other_ledger: Ledger) -> None:
    from runs import job

    from ablate.train.trial import run_trial

    trial = spec({"data.task": "rtd", "train.dropout": 0.1, "train.accumulate": 2})
    folder = train(ledger, trial)
    record = folder.record()
    assert record is not None and record["status"] == "finished", record
    assert {"f1", "accuracy", "mlm_loss", "test_f1"} <= set(record["metrics"])
    assert record["metric"] == {"name": "detection_loss", "better": "lower"}
    p = 2 / 16
    (share,) = [row for row in record["data"]["baselines"] if row["metric"] == "detection_loss"]
    assert share["value"] == pytest.approx(-p * math.log(p) - (1 - p) * math.log(1 - p))
    stopped = run_trial(job(other_ledger, trial, progress_every_s=0))
    for _ in range(3):
        next(stopped)
    stopped.close()
    assert train(other_ledger, trial).metrics.read_bytes() == folder.metrics.read_bytes()
