"""Generation: with a cache and without, in any order of rows; sampling, greedy and beam decoding by definition."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor, nn

from ablate.build import build_model
from ablate.checks.time import check_cache
from ablate.components.mixers import recurrent
from ablate.context import Cache, Memory
from ablate.decoding import Beam, Decoding, Greedy, Sample
from ablate.errors import MaxLenError, UserError
from ablate.generate import Reading, evaluating, generate, generate_each, reorder
from ablate.spec import ArchSpec, parse
from ablate.subject import MODELS, CheckFailed, Subject, T, subjects, tokens

HOWS: list[Decoding] = [Greedy(), Sample(seed=5), Beam(3)]
STOP = 2


class Table(nn.Module):
    """A model that is a function of the tokens so far; it counts what it is given to read."""

    def __init__(self, says: Callable[[tuple[int, ...]], Sequence[float]], max_len: int = 100):
        super().__init__()
        self.says, self.max_len = says, max_len
        self.read: list[tuple[int, int]] = []

    def log_probs(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:
        self.read.append(tuple(tokens_BT.shape))
        past_BT = None if cache is None else cache.states.get(0)
        every_BT = tokens_BT if past_BT is None else torch.cat((past_BT, tokens_BT), 1)
        if every_BT.shape[1] > self.max_len:
            raise MaxLenError(f"{every_BT.shape[1]} tokens")
        if cache is not None:
            cache.states[0] = every_BT
            cache.length = every_BT.shape[1]
        new = range(every_BT.shape[1] - tokens_BT.shape[1], every_BT.shape[1])
        said = [[self.says(tuple(row[: t + 1])) for t in new] for row in every_BT.tolist()]
        return torch.tensor(said, dtype=torch.float64).log_softmax(-1)


def chaos(vocab: int, seed: int = 0) -> Callable[[tuple[int, ...]], list[float]]:
    """Logits that look random, and depend on all tokens so far."""

    def says(past: tuple[int, ...]) -> list[float]:
        draw = torch.Generator().manual_seed(abs(hash((seed, past))) % (1 << 60))
        return (1.5 * torch.randn(vocab, generator=draw)).tolist()

    return says


def always(*logits: float) -> Callable[[tuple[int, ...]], Sequence[float]]:
    return lambda past: logits


def lively(model: nn.Module) -> nn.Module:
    """With parameters that make it say different things, in float64."""
    noise = torch.Generator().manual_seed(0)
    for parameter in model.double().parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=noise, dtype=torch.float64), alpha=0.3)
    return model


def column(token: int, rows: int = 1) -> Tensor:
    return torch.full((rows, 1), token)


def readable(subject: Subject) -> bool:
    entry = subject.entry
    if entry.slot not in MODELS or not entry.causal or subject.form not in ("tokens", "pair"):
        return False
    # options are varied where they can change what is kept of the past
    return not subject.component.options or entry.slot in ("mixer", "model", "stack")


@pytest.mark.parametrize("subject", list(filter(readable, subjects())), ids=lambda each: each.name)
def test_cached_decoding_is_decoding(subject: Subject) -> None:
    """By drawing and by beam search, with rows that end, are left out and change places."""
    model = subject.model()
    *source, read = subject.inputs(model)
    for how in (Sample(seed=5), Beam(3)):
        settings: dict[str, Any] = {"source": tuple(source), "at_most": 5, "how": how, "stop": STOP}
        assert generate(model, read[:, :2], **settings) == generate(model, read[:, :2], cached=False, **settings)


@pytest.mark.parametrize("how", HOWS, ids=lambda how: type(how).__name__)
@pytest.mark.parametrize("encoder", [False, True])
def test_rows_do_not_depend_on_each_other(how: Decoding, encoder: bool) -> None:
    """A row alone gives what it gives in its batch; padding of a source has no part in it."""
    arch = parse(ArchSpec, {"d_model": 16, "n_heads": 2, "depth": 2, "encoder": encoder})
    model = lively(build_model(arch, 13, T, seed=3))
    read = tokens(4)
    source, lengths = tokens(7), (T, 5, 2)
    valid_BS = torch.arange(T)[None] < torch.tensor(lengths)[:, None]
    marks = {"valid_BS": valid_BS} if encoder else {}
    settings: dict[str, Any] = {"stop": STOP, "at_most": 8, "how": how}
    together = generate(model, read[:, :2], source=(source,) if encoder else (), marks=marks, **settings)
    for row, length in enumerate(lengths):
        one = slice(row, row + 1)
        alone = (source[one, :length],) if encoder else ()
        assert generate(model, read[one, :2], source=alone, numbers=[row], **settings) == [together[row]]


def test_rows_that_end() -> None:
    """The stop is not among the tokens, an ended row is read no further, and nothing is read when all have ended."""
    model = Table(lambda past: [0, 9, 0, 0] if len(past) < past[0] else [0, 0, 9, 0])
    found = generate(model, torch.tensor([[1], [5], [3], [1]]), stop=STOP, at_most=20)
    assert found == [[], [1] * 4, [1] * 2, []]
    assert model.read == [(4, 1), (2, 1), (2, 1), (1, 1), (1, 1)]
    model.read.clear()
    assert generate(model, column(5), at_most=3, stop=STOP) == [[1, 1, 1]] and len(model.read) == 3
    assert generate(model, column(5), at_most=8) == [[1] * 4 + [2] * 4]
    assert generate(model, column(5, 2), at_most=0) == [[], []]
    with pytest.raises(UserError, match="at least one token"):
        generate(model, torch.zeros(1, 0, dtype=torch.long), at_most=1)


def test_rows_of_rows() -> None:
    """What a layer reads of the encoder follows the rows through several changes."""
    x_BSD, valid_BS = torch.arange(4.0)[:, None, None], torch.eye(4).bool()
    cache = Cache(3, {0: (x_BSD, [x_BSD + 1, None, 7])}, Memory(x_BSD, valid_BS, lambda layer: x_BSD * layer))
    for rows in ([3, 1, 1, 0, 2], [4, 0, 1]):
        reorder(cache, torch.tensor(rows))
    memory = cache.memory
    assert memory is not None and memory.valid_BS is not None
    assert memory.x_BSD.flatten().tolist() == [2, 3, 1] and memory.at(10).flatten().tolist() == [20, 30, 10]
    assert memory.valid_BS.int().argmax(1).tolist() == [2, 3, 1]
    one, (two, *others) = cache.states[0]
    assert one.flatten().tolist() == [2, 3, 1] and two.flatten().tolist() == [3, 4, 2] and others == [None, 7]


def test_a_state_without_its_rows_first_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the contract check, which other people's components are given too."""
    subject = next(subjects("gru"))
    check_cache(subject)
    monkeypatch.setattr(recurrent, "swapped", lambda state: state)
    with pytest.raises(CheckFailed, match="rows first"):
        check_cache(subject)


def test_modes_are_as_before() -> None:
    arch = parse(ArchSpec, {"d_model": 16, "n_heads": 2, "depth": 1})
    model = build_model(arch, 13, T, seed=1, dropout=0.5)
    model.train()
    model.tower.functions.eval()
    modes = [module.training for module in model.modules()]
    first = generate(model, tokens()[:, :2], at_most=6)
    assert first == generate(model, tokens()[:, :2], at_most=6)  # without dropout
    assert [module.training for module in model.modules()] == modes
    assert torch.is_grad_enabled()
    with pytest.raises(MaxLenError):
        generate(model, torch.zeros(1, T + 1, dtype=torch.long), at_most=1)
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("how", HOWS, ids=lambda how: type(how).__name__)
@pytest.mark.parametrize("cached", [True, False])
def test_a_model_that_is_full(how: Decoding, cached: bool) -> None:
    """max_len tokens are read, so that max_len + 1 are known; sliding goes on from the later half."""
    says = chaos(5)
    settings: dict[str, Any] = {"how": how, "cached": cached}
    (short,) = generate(Table(says, max_len=6), column(3), at_most=30, **settings)
    assert len(short) == 6
    assert short == generate(Table(says), column(3), at_most=6, **settings)[0]
    model = Table(says, max_len=6)
    (long,) = generate(model, column(3), at_most=14, slide=True, **settings)
    assert len(long) == 14 and max(width for _, width in model.read) <= 6 + (not cached)
    with pytest.raises(MaxLenError):
        generate(Table(says, max_len=2), torch.zeros(1, 3, dtype=torch.long), at_most=3, **settings)


def test_sliding_reads_the_later_half_anew() -> None:
    model = Table(lambda past: [9.0 * (len(past) == n) for n in range(8)], max_len=6)  # says how much it sees
    assert generate(model, column(3), at_most=12, slide=True) == [[1, 2, 3, 4, 5, 6, 3, 4, 5, 6, 3, 4]]


def test_prompts_of_any_length() -> None:
    """Groups of one length; a row's random numbers go by its number among all."""
    model, prompts = Table(chaos(6)), [[1], [2, 3], [4], [0, 1, 2], [1]]
    for how in HOWS:
        found = generate_each(model, prompts, at_most=6, how=how, rows=2)
        for number, prompt in enumerate(prompts):
            alone = generate(model, torch.tensor([prompt]), at_most=6, how=how, numbers=[number])
            assert found[number] == alone[0]
    found = generate(model, column(1, 30), at_most=20, how=Sample(seed=0), stop=STOP)
    assert len({tuple(each) for each in found}) > 6 and len({len(each) for each in found}) > 4  # of one prompt
    for number, tokens_ in enumerate(found):
        alone = generate(model, column(1), at_most=20, how=Sample(seed=0), stop=STOP, numbers=[number])
        assert alone == [tokens_]


# beam search


def every(model: Table, prompt: int, vocab: int, length: int, stop: int) -> dict[tuple[int, ...], float]:
    """log p of every sequence that ends within `length` tokens, or has so many; the stop counted in."""
    found: dict[tuple[int, ...], float] = {}
    for words in itertools.product(range(vocab), repeat=length):
        cut = words[: words.index(stop) + 1] if stop in words else words
        if cut not in found:
            log_p = model.log_probs(torch.tensor([[prompt, *cut[:-1]]]))[0]
            found[cut] = sum(log_p[place, word].item() for place, word in enumerate(cut))
    return found


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 3.0])
@pytest.mark.parametrize("seed", range(4))
def test_a_wide_beam_finds_the_best_sequence(alpha: float, seed: int) -> None:
    """A width of V^(n-1) leaves nothing out, so that the search is exact, its early end included."""
    vocab, length = 3, 4
    model = Table(chaos(vocab, seed))
    ranked = sorted(
        (
            (log_p / ((5 + len(cut)) / 6) ** alpha, cut, log_p)
            for cut, log_p in every(model, 1, vocab, length, STOP).items()
        ),
        reverse=True,
    )
    how = Beam(vocab ** (length - 1), alpha)
    with torch.no_grad():
        (found,) = how.ranked(Reading(model, column(1)), STOP, length, best=5)
    assert [each.tokens for each in found] == [[word for word in cut if word != STOP] for _, cut, _ in ranked[:5]]
    assert [each.score for each in found] == pytest.approx([score for score, _, _ in ranked[:5]], abs=1e-12)
    assert [each.log_p for each in found] == pytest.approx([log_p for _, _, log_p in ranked[:5]], abs=1e-12)
    assert generate(model, column(1, 2), stop=STOP, at_most=length, how=how) == [found[0].tokens] * 2


def test_beams_keep_what_greedy_loses() -> None:
    """p(0) = 0.6 leads to 0.36 at best, p(1) = 0.4 to 0.4; a width of 1 is greedy decoding."""

    def says(past: tuple[int, ...]) -> list[float]:
        p = {(3,): (0.6, 0.4, 0), (3, 0): (0.3, 0.1, 0.6), (3, 1): (0, 0, 1), (3, 0, 0): (0, 0, 1)}.get(
            past, (0, 0, 1)
        )
        return [math.log(max(each, 1e-30)) for each in p]

    model = Table(says)
    (best,) = Beam(2, 0.0).ranked(Reading(model, column(3)), STOP, 4, best=2)
    assert [(each.tokens, round(math.exp(each.log_p), 6)) for each in best] == [([1], 0.4), ([0], 0.36)]
    assert generate(model, column(3), stop=STOP, at_most=4, how=Beam(1, 0.0)) == [[0]]


def test_a_width_of_one_is_greedy() -> None:
    for seed in range(20):
        model = Table(chaos(5, seed))
        prompt = torch.tensor([[0], [1], [3]])
        greedy = generate(model, prompt, stop=STOP, at_most=9)
        assert generate(model, prompt, stop=STOP, at_most=9, how=Beam(1)) == greedy
    model.read.clear()
    generate(model, column(0, 2), at_most=4, how=Beam(3))
    assert model.read == [(2, 1), (6, 1), (6, 1), (6, 1)]  # no more than three go on


def test_the_length_penalty_by_hand() -> None:
    """p(stop) = 0.4 at once; 0.45 for ten tokens of certainty: lp decides."""

    def says(past: tuple[int, ...]) -> list[float]:
        if len(past) == 1:
            return [math.log(0.35), math.log(0.25), math.log(0.4)]
        return [0.0, -50.0, -50.0] if len(past) < 10 else [-50.0, -50.0, 0.0]

    model = Table(says)
    # log 0.4 / 1 = -0.916; log 0.35 / (15/6)^A = -1.050 / 2.5^A, greater where A > 0.148
    for alpha, words in ((0.0, []), (0.14, []), (0.16, [0] * 9), (1.0, [0] * 9)):
        assert generate(model, column(3), stop=STOP, at_most=20, how=Beam(4, alpha)) == [words]


def test_a_beam_ends_when_nothing_can_become_better() -> None:
    """It stops as soon as max log p / lp(at_most) is at most the best score, and not before."""
    model = Table(always(math.log(0.2), math.log(0.1), math.log(0.7)))
    assert generate(model, column(3), stop=STOP, at_most=50, how=Beam(3, 0.0)) == [[]]
    assert len(model.read) == 1  # log 0.2 is below log 0.7 already
    model.read.clear()
    assert generate(model, column(3), stop=STOP, at_most=50, how=Beam(3, 1.0)) == [[]]
    # the best score is log 0.7; t tokens 0 have t log 0.2 6 / 55 at best: below it from t = 3 on
    assert len(model.read) == 3


# sampling


def test_samples_follow_the_distribution() -> None:
    logits = (0.3, -1.0, 1.2, 0.0, -2.0)
    for how in (
        Sample(seed=11),
        Sample(temperature=0.5, seed=12),
        Sample(2.0, top_k=4, top_p=0.9, min_p=0.2, seed=13),
    ):
        found = generate(Table(always(*logits)), column(0, 400), at_most=10, how=how)
        counts = torch.tensor(found).flatten().bincount(minlength=5)
        expected = how.probabilities(torch.tensor([logits]).double().log_softmax(-1))[0] * 4000
        possible = expected > 0
        assert counts[~possible].sum() == 0
        assert chisquare(counts[possible].numpy(), expected[possible].numpy()).pvalue > 0.01
        assert chisquare(counts[possible].numpy(), expected[possible].roll(1).numpy()).pvalue < 1e-6


P = (0.1, 0.4, 0.05, 0.25, 0.2)  # 0.4, 0.25, 0.2, 0.1, 0.05 in order
KEPT: list[tuple[Sample, Sequence[int]]] = [
    (Sample(), (0, 1, 2, 3, 4)),
    (Sample(top_k=1), (1,)),
    (Sample(top_k=3), (1, 3, 4)),
    (Sample(top_k=99), (0, 1, 2, 3, 4)),
    (Sample(top_p=0.39), (1,)),
    (Sample(top_p=0.41), (1, 3)),
    (Sample(top_p=0.84), (1, 3, 4)),
    (Sample(top_p=1.0), (0, 1, 2, 3, 4)),
    (Sample(top_p=1e-9), (1,)),
    (Sample(min_p=0.51), (1, 3)),
    (Sample(min_p=0.49), (1, 3, 4)),
    (Sample(min_p=0.0), (0, 1, 2, 3, 4)),
    (Sample(min_p=1.0), (1,)),
    (Sample(top_k=2, top_p=0.6), (1,)),  # 0.4 / 0.65 = 0.615 after top_k: without it two are needed
    (Sample(top_p=0.6), (1, 3)),
    (Sample(temperature=0.5, min_p=0.49), (1,)),  # 0.25^2 / 0.4^2 = 0.39: min_p is of what temperature leaves
    (Sample(temperature=0.5, top_p=0.55), (1,)),  # 0.16 / 0.275 = 0.58
]


@pytest.mark.parametrize(("how", "kept"), KEPT, ids=str)
def test_what_is_drawn_from(how: Sample, kept: Sequence[int]) -> None:
    found = how.probabilities(torch.tensor([P], dtype=torch.float64).log())[0]
    power = [p ** (1 / how.temperature) if token in kept else 0.0 for token, p in enumerate(P)]
    assert found.tolist() == pytest.approx([each / sum(power) for each in power], abs=1e-12)


def test_equal_tokens_come_in_order() -> None:
    flat = torch.zeros(1, 4, dtype=torch.float64).log_softmax(-1)
    assert Sample(top_k=2).probabilities(flat).tolist() == [[0.5, 0.5, 0, 0]]
    assert Sample(top_p=0.6).probabilities(flat)[0].count_nonzero() == 3
    assert Greedy().choose(flat, []).tolist() == [0]


def test_seeds() -> None:
    """The same seed draws the same, another one something else, and impossible tokens never come."""
    model = Table(always(0.0, 0.0, -math.inf, 0.0, -math.inf))
    one, same, other = (generate(model, column(0, 3), at_most=30, how=Sample(seed=seed)) for seed in (1, 1, 2))
    assert one == same != other
    assert len({tuple(row) for row in one}) == 3
    assert {word for row in one for word in row} == {0, 1, 3}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sample(temperature=0), "temperature 0 must be above 0"),
        (lambda: Sample(temperature=-1), "temperature -1"),
        (lambda: Sample(temperature=math.nan), "temperature nan"),
        (lambda: Sample(top_k=0), "top_k 0 must be at least 1"),
        (lambda: Sample(top_p=0), "top_p 0 must be above 0"),
        (lambda: Sample(top_p=1.5), "at most 1"),
        (lambda: Sample(min_p=2), "min_p 2 must be from 0 to 1"),
        (lambda: Beam(0), "width 0 must be at least 1"),
        (lambda: Beam(2, -0.5), "length_penalty -0.5 must be at least 0"),
    ],
)
def test_settings_that_mean_nothing(make: Callable[[], Decoding], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_a_prefix_is_read_once() -> None:
    """Marks of the prompt's tokens are not of what follows, with a cache and without."""
    arch = parse(ArchSpec, {"d_model": 16, "n_heads": 2, "depth": 2})
    model = lively(build_model(arch, 13, T, seed=3, prefix=True))
    prompt_BT, prefix_BT = tokens()[:, :4], torch.tensor([[True, True, True, False]] * 3)
    marks = {"prefix_BT": prefix_BT}
    for how in HOWS:
        settings: dict[str, Any] = {"marks": marks, "at_most": 6, "how": how}
        assert generate(model, prompt_BT, **settings) == generate(model, prompt_BT, cached=False, **settings)
    with evaluating(model):
        seen, unseen = (Reading(model, prompt_BT, marks=each).log_p_BV for each in (marks, {}))
    assert not torch.allclose(seen, unseen)
    with pytest.raises(UserError, match="cannot slide"):
        generate(model, prompt_BT, marks=marks, at_most=6, slide=True)
