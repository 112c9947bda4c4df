"""N-grams against counts in dictionaries, and trials that train by counting."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import SITE, near
from runs import job, plan_of, spec, train

from ablate import registry
from ablate.build import build_model
from ablate.contracts import Cache
from ablate.cost import count
from ablate.data.tokens import prepare
from ablate.errors import MaxLenError, UserError
from ablate.run.ledger import Ledger
from ablate.spec import ArchSpec, Component, TrialSpec, parse
from ablate.train.fitted import FittedRun, new_run
from ablate.train.run import TrainingRun
from ablate.train.trial import run_trial

V = SITE.vocab
SMOOTHINGS = ("kneser_ney", "add_delta", "backoff")


def ngram(vocab: int = V, max_len: int = SITE.max_len, **options: Any) -> Any:
    component = Component("ngram", tuple(options.items()))
    return registry.make("model", component, replace(SITE, vocab=vocab, max_len=max_len))


def text(size: int = 300, vocab: int = V - 2, seed: int = 0) -> list[int]:
    """Words that depend on the one before; the last of the vocabulary never occur."""
    generator = np.random.default_rng(seed)
    words = [0]
    for _ in range(size - 1):
        words.append(int((words[-1] * 3 + generator.geometric(0.4)) % vocab))
    return words


class Dictionary:
    """p(w | h), one gram at a time, from the equations."""

    def __init__(self, words: list[int], order: int, smoothing: str, delta: float = 1.0):
        self.order, self.smoothing, self.delta = order, smoothing, delta
        self.raw = [Counter(tuple(words[i : i + m]) for i in range(len(words) - m + 1)) for m in range(1, order + 1)]
        self.c = list(self.raw)
        if smoothing == "kneser_ney":
            for m in range(order - 1):
                self.c[m] = Counter(dict.fromkeys(self.raw[m], 0))
                self.c[m].update(gram[1:] for gram in self.raw[m + 1])
        self.D = [self.discount(each) for each in self.c]

    @staticmethod
    def discount(counts: Counter[tuple[int, ...]]) -> float:
        once, twice = (sum(c == i for c in counts.values()) for i in (1, 2))
        return once / (once + 2 * twice) if once and twice else 0.5

    def after(self, h: tuple[int, ...]) -> dict[int, int]:
        counts = self.c[len(h)]
        return {w: counts[(*h, w)] for w in range(V) if counts[(*h, w)] > 0}

    def p(self, w: int, h: tuple[int, ...]) -> float:
        followers = self.after(h)
        total = sum(followers.values())
        if self.smoothing == "add_delta":
            return (followers.get(w, 0) + self.delta) / (total + self.delta * V)
        if not total:
            return self.shorter(w, h)
        D = self.D[len(h)]
        if self.smoothing == "kneser_ney":
            kept = D * len(followers) / total
            return max(followers.get(w, 0) - D, 0) / total + kept * self.shorter(w, h)
        if len(followers) == V:
            return followers[w] / total
        if w in followers:
            return (followers[w] - D) / total
        unseen = sum(self.shorter(each, h) for each in range(V) if each not in followers)
        return D * len(followers) / total * self.shorter(w, h) / unseen

    def shorter(self, w: int, h: tuple[int, ...]) -> float:
        return self.p(w, h[1:]) if h else 1 / V


# ---- what is counted


LECTURE = {"corn": 4, "grass": 3, "hay": 2, "if": 1, "which": 1}


def test_the_lectures_cows() -> None:
    """p(. | cows eat) = corn 4/11, grass 3/11, hay 2/11, if 1/11, which 1/11, without smoothing."""
    names = ["cows", "eat", *LECTURE, "sheep"]
    number = {name: i for i, name in enumerate(names)}
    words = [word for food, times in LECTURE.items() for _ in range(times) for word in ("cows", "eat", food, "sheep")]
    model = ngram(len(names), order=3, smoothing="add_delta", delta=1e-13)
    model.fit(torch.tensor([number[word] for word in words]))
    p = model.log_probs(torch.tensor([[number["cows"], number["eat"]]]))[0, -1].exp()
    near(p[[number[food] for food in LECTURE]], [times / 11 for times in LECTURE.values()], 1e-12)
    near(p.sum(), 1.0)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_are_those_of_a_dictionary(smoothing: str, order: int) -> None:
    words = text()
    model = ngram(order=order, smoothing=smoothing)
    model.fit(torch.tensor(words))
    read = [*words[40:48], V - 1, *words[90:94]]  # a word that never was in the middle
    p_TV = model.log_probs(torch.tensor([read]))[0].exp()
    slow = Dictionary(words, order, smoothing)
    for t, row in enumerate(p_TV):
        h = tuple(read[max(0, t + 2 - order) : t + 1]) if order > 1 else ()
        near(row, [slow.p(w, h) for w in range(V)], 1e-13)


def test_delta_is_added_to_every_count() -> None:
    words = text(80)
    model = ngram(order=2, smoothing="add_delta", delta=0.25)
    model.fit(torch.tensor(words))
    slow = Dictionary(words, 2, "add_delta", 0.25)
    near(model.log_probs(torch.tensor([[3]]))[0, 0].exp(), [slow.p(w, (3,)) for w in range(V)])


def test_kneser_ney_by_hand() -> None:
    """The text a b a b a c: after a stand b (2), c (1); before b stands a, before a stands b, before c stands a."""
    model = ngram(4, order=2)
    model.fit(torch.tensor([0, 1, 0, 1, 0, 2]))
    below = [0.5 / 3 + 0.5 * 3 / 3 / 4] * 3 + [0.5 / 4]  # n1 = 3, n2 = 0: D = 1/2 of continuation counts 1, 1, 1
    D = 1 / (1 + 2 * 2)  # bigrams: ab 2, ba 2, ac 1
    expected = np.array([0, 2 - D, 1 - D, 0]) / 3 + D * 2 / 3 * np.array(below)
    near(model.log_probs(torch.tensor([[0]]))[0, 0].exp(), expected)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("words", [[], [4], [4, 4], [1, 2, 3], [0] * 20, list(range(V)) * 3, text(2000, V)], ids=len)
def test_probabilities_sum_to_one_and_none_is_zero(smoothing: str, words: list[int]) -> None:
    """For a text of nothing, of one word, where every word follows every other: whatever is read."""
    model = ngram(order=4, smoothing=smoothing)
    model.fit(torch.tensor(words, dtype=torch.long))
    read = torch.randint(0, V, (20, 9), generator=torch.Generator().manual_seed(0))
    log_p_BTV = model.log_probs(read)
    near(log_p_BTV.exp().sum(-1), np.ones((20, 9)), 1e-12)
    assert log_p_BTV.isfinite().all()
    targets = torch.randint(0, V, (20, 9), generator=torch.Generator().manual_seed(1))
    near(model.nll(read, targets), -log_p_BTV.gather(-1, targets[..., None])[..., 0])


def test_everything_is_uniform_before_it_is_fitted() -> None:
    for smoothing in SMOOTHINGS:
        model = ngram(order=3, smoothing=smoothing)
        near(model.log_probs(torch.arange(5)[None]), np.full((1, 5, V), -math.log(V)))
        near(model.nll(torch.arange(5)[None], torch.arange(5)[None]), np.full((1, 5), math.log(V)))


def test_backoff_leaves_no_mass_where_every_word_was_seen() -> None:
    """All pairs of V words occur: relative frequencies, undiscounted."""
    words = [word for pair in itertools.product(range(V), repeat=2) for word in pair]
    model = ngram(order=2, smoothing="backoff")
    model.fit(torch.tensor(words))
    counts = np.zeros((V, V))
    np.add.at(counts, (words[:-1], words[1:]), 1)
    assert (counts > 0).all()
    near(model.log_probs(torch.arange(V)[:, None])[:, 0].exp(), counts / counts.sum(1, keepdims=True), 1e-13)


def test_a_longer_context_says_more_of_a_text_with_memory() -> None:
    words = torch.tensor(text(6000))
    held = torch.tensor(text(320, seed=1)).view(20, 16)
    losses = []
    for order in (1, 2):
        model = ngram(order=order)
        model.fit(words)
        losses.append(model.nll(held[:, :-1], held[:, 1:]).mean().item())
    assert losses[1] < losses[0] - 0.3


def test_fitting_again_forgets_the_first_text() -> None:
    model, other = ngram(), ngram()
    model.fit(torch.tensor(text(200)))
    model.fit(torch.tensor(text(50, seed=3)))
    other.fit(torch.tensor(text(50, seed=3)))
    read = torch.tensor([text(9)])
    assert torch.equal(model.log_probs(read), other.log_probs(read))


@pytest.mark.parametrize("order", [1, 2, 5])
@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_decoding_keeps_the_last_words(order: int, smoothing: str) -> None:
    model = ngram(order=order, smoothing=smoothing)
    model.fit(torch.tensor(text()))
    read = torch.tensor([text(13, seed=1), text(13, seed=2)])
    cache = Cache()
    parts = [model.log_probs(part, cache) for part in read.split([1, 1, 5, 2, 4], 1)]
    assert torch.equal(torch.cat(parts, 1), model.log_probs(read))
    assert cache.states[0].shape == (2, order - 1) and cache.length == 13
    with pytest.raises(MaxLenError):
        model.log_probs(read[:, :4], cache)


def test_counts_are_the_state() -> None:
    model, other = ngram(order=3), ngram(order=3)
    model.fit(torch.tensor(text()))
    other.fit(torch.tensor(text(40)))
    saved = model.state_dict()
    assert set(saved) == {f"{name}{m}" for name in ("keys", "counts") for m in (1, 2, 3)}
    assert [int(saved[f"counts{m}"].sum()) for m in (1, 2, 3)] == [300, 299, 298]
    other.load_state_dict(saved)
    read = torch.tensor([text(9)])
    assert torch.equal(model.log_probs(read), other.log_probs(read))
    with pytest.raises(RuntimeError, match="counts3"):
        other.load_state_dict({name: each for name, each in saved.items() if name != "counts3"})


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(UserError, match="order 0 must be at least 1"):
        ngram(order=0)
    with pytest.raises(UserError, match="delta 0 must be positive"):
        ngram(smoothing="add_delta", delta=0.0)
    with pytest.raises(UserError, match="delta 1 has no effect with smoothing 'kneser_ney'"):
        ngram(delta=1.0)
    with pytest.raises(UserError, match="label smoothing"):
        ngram().objective(torch.zeros(1, 2).long(), torch.zeros(1, 2).long(), label_smoothing=0.1, z_loss=0.0)


def test_it_costs_no_parameters_and_no_products() -> None:
    arch = parse(ArchSpec, {"model": {"name": "ngram", "order": 5}})
    cost = count(arch, 256, 64)
    assert (cost.params_total, cost.flops_forward, cost.flops_backward) == (0, 0, 0)
    assert cost.cache_bytes == cost.state_bytes == 4 * 8
    assert list(build_model(arch, 256, 64).parameters()) == []


# ---- trials


NGRAM = {"arch.model": {"name": "ngram", "order": 3}}


def test_a_trial_counts_up_to_each_evaluation(ledger: Ledger) -> None:
    """The curve is that of the models fitted to 64, 192 and 768 tokens, from the uniform one on."""
    trial = spec(NGRAM)
    folder = train(ledger, trial)
    record = folder.record()
    assert record is not None and record["status"] == "finished", record
    tokens = prepare(trial.data, ledger.cache)
    run = new_run(trial, torch.device("cpu"), ledger.cache)
    assert isinstance(run, FittedRun)
    model = ngram(256, 16)
    losses = []
    for size in (0, 64, 192, 768):
        model.fit(torch.from_numpy(tokens.splits["train"][:size].astype(np.int64)))
        run.model = model
        losses.append(run.evaluate("valid", final=size == 768)["loss"])
    rows = [row for row in folder.rows() if row["split"] == "valid"]
    assert [row["tokens"] for row in rows] == [0, 64, 192, 768]
    near([row["loss"] for row in rows], losses)
    assert losses[0] == pytest.approx(math.log(256)) and losses[-1] < losses[0] - 1
    batch = [row for row in folder.rows() if row["split"] == "batch"]
    assert [row["step"] for row in batch] == [1, 3, 12] and all(row["grad_norm"] is None for row in batch)
    assert (record["params_total"], record["train_flops"], record["tokens"], record["steps"]) == (0, 0, 768, 12)
    assert record["metrics"]["test_loss"] > 0 and json.dumps(record)


def test_a_fitted_trial_stopped_at_every_place_gives_the_same_record(ledger: Ledger, other_ledger: Ledger) -> None:
    trial = spec(NGRAM)
    whole = train(ledger, trial)
    folder = other_ledger.trial(trial.trial_id)
    places: list[int] = []
    while folder.record() is None and len(places) < 9:
        under_way = run_trial(job(other_ledger, trial, progress_every_s=0))
        places.append(next(under_way)["step"])
        under_way.close()
    assert places == [1, 3, 12, 12]
    assert folder.metrics.read_bytes() == whole.metrics.read_bytes()
    assert folder.record()["metrics"] == whole.record()["metrics"]  # type: ignore[index]
    ours, theirs = (torch.load(each.weights)["model"] for each in (folder, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs) and len(ours["keys3"]) > 100


def test_the_final_weights_are_the_counts(ledger: Ledger) -> None:
    trial: TrialSpec = spec(NGRAM)
    folder = train(ledger, trial)
    run = new_run(trial, torch.device("cpu"), ledger.cache)
    run.model.load_state_dict(torch.load(folder.weights)["model"])
    assert run.evaluate("test", final=True)["loss"] == folder.record()["metrics"]["test_loss"]  # type: ignore[index]
    assert int(run.model.get_buffer("counts1").sum()) == 768


def test_a_budget_beyond_the_split_counts_all_of_it(token_cache: Path) -> None:
    run = new_run(spec({**NGRAM, "train.tokens": 64 * 80_000}), torch.device("cpu"), token_cache)
    run.step = sorted(run.eval_steps)[-2]
    run.train_step()
    assert run.step == run.steps == 80_000
    assert int(run.model.get_buffer("counts1").sum()) == run.task.train_tokens < 64 * 80_000


def test_other_models_are_trained_by_gradients(token_cache: Path) -> None:
    for settings in ({}, {"arch.model": "nnlm"}):
        assert isinstance(new_run(spec(settings), torch.device("cpu"), token_cache), TrainingRun)


GRID = """\
study: counts
base:
  arch: {d_model: 16, n_heads: 2, depth: 1, position: learned}
  data: {corpus: kjv, tokenizer: bytes, seq_len: 16}
  train: {tokens: 768, batch_tokens: 64}
variants:
  plain: {}
  trigrams: {arch.model: ngram}
"""


def test_a_study_plans_an_ngram_that_is_not_matched(tmp_path: Path, token_cache: Path) -> None:
    plan = plan_of(GRID + "match: none\n", tmp_path, token_cache)
    assert len(plan.trials) == 2
    with pytest.raises(UserError, match=r"'trigrams'.* cannot be matched in params"):
        plan_of(GRID + "match: params\n", tmp_path / "other", token_cache)
    turned = GRID.replace("  plain: {}\n", "") + "  plain: {}\nmatch: none\n"
    with pytest.raises(UserError, match=r"has no parameters, .* let another variant be the first"):
        plan_of(turned, tmp_path / "third", token_cache)


def test_a_budget_in_flops_is_refused(tmp_path: Path, token_cache: Path) -> None:
    with pytest.raises(UserError, match="fitted by counting: give a budget of tokens"):
        plan_of(GRID + "match: none\nbudgets: {flops: [1e8]}\n", tmp_path, token_cache)


def test_a_budget_of_tokens_is_how_much_is_counted(tmp_path: Path, token_cache: Path) -> None:
    plan = plan_of(GRID + "match: none\nbudgets: {tokens: [256, 512]}\n", tmp_path, token_cache)
    assert {row.spec.train.tokens for row in plan.rows if row.variant == "trigrams"} == {256, 512}


def test_reading_is_refused_beyond_the_length() -> None:
    model = ngram(max_len=4)
    with pytest.raises(MaxLenError, match="5 tokens is longer than the model's 4"):
        model.nll(torch.zeros(1, 5).long(), torch.zeros(1, 5).long())
