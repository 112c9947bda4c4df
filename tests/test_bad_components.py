"""Every contract check is shown to fail: on a component with that fault, saying so."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from own_plugins import own_plugins

from ablate import check, registry
from ablate.check import CheckFailed, check_components, checks_for, subjects
from ablate.errors import UserError
from ablate.probe import probe
from ablate.spec import ArchSpec, Component, parse

FAULTS = {
    ("undocumented", "documented"): "has no docstring",
    ("without_paper", "documented"): "names no paper",
    ("last_only", "shape"): "gives shape (3, 1, 13) for (3, 12, 13)",
    ("one_token_short", "shape"): "gives shape (3, 12, 12) for (3, 12, 13)",
    ("infinite", "shape"): "gives values that are not finite",
    ("nan_at_length_1", "lengths"): "or no numbers for a single token",
    ("reads_anything", "lengths"): "reads 24 tokens, where it was built for 12",
    ("unused_parameter", "gradient"): "no gradient reaches tower.functions.0.1.spare, tower.functions.1.1.spare",
    ("annulled_parameter", "gradient"): "no gradient reaches tower.functions.0.1.spare",
    ("root_of_zero", "gradient"): "is not finite",
    ("sees_everything", "causal"): "sees the future: a change of a later token moves earlier outputs by",
    ("sees_everything_in_training", "causal"): "sees the future: a change of a later token moves earlier outputs by",
    ("causal_after_all", "causal"): "is declared causal=False, but no output depends on a later token",
    ("mixes_nothing", "mixes"): "no output depends on an earlier token: it is a channel, not a mixer",
    ("token_shift", "pointwise"): "is not pointwise in time: a change at 3 moves other times by",
    ("token_shift_in_training", "pointwise"): "is not pointwise in time: a change at 3 moves other times by",
    ("batch_mean", "rows"): "rows of a batch are not independent: the others move the first by",
    ("batch_mean_in_training", "rows"): "rows of a batch are not independent: the others move the first by",
    ("couples_nothing", "rows"): "is declared to couple rows in training, but none depends on another",
    ("reads_padding", "padding"): "padding moves outputs by",
    ("other_on_meta", "meta"): "parameters differ between meta and CPU: [('tower.functions.0.1.offset', (16,))",
    ("noisy_forward", "deterministic"): "two forward passes differ",
    ("counts_builds", "deterministic"): "two builds with one seed differ in tower.functions.0.1.offset",
    ("starts_at_minus_infinity", "deterministic"): "some parameter is not finite when built",
    ("one_seed_for_all", "deterministic"): "another seed gives the same parameters",
    ("hidden_state", "state_dict"): "saved and loaded parameters give other outputs",
    ("hidden_state", "resume"): "a model that goes on from its saved state takes other steps",
    ("counts_steps", "resume"): "a model that goes on from its saved state takes other steps",
    ("counts_nothing", "fits"): "counting takes the loss from",
    ("small_difference", "bf16"): "gradients are not finite under bfloat16",
    ("large_sum", "bf16"): "under bfloat16,",
    ("faint", "learns"): "30 steps on one batch take the loss from",
    ("no_layers", "effect"): "parameters have no effect on the output: tower.functions.0.0.q.weight",
    ("unused_parameter", "effect"): "parameters have no effect on the output: tower.functions.0.1.spare",
    ("forgets", "cache"): "decoding 1 tokens at a time differs from the full pass by",
    ("one_at_a_time", "cache"): "decoding 5 tokens at a time differs from the full pass by",
    ("unnormalised", "shape"): "probabilities do not sum to 1",
    ("in_bits", "normalised"): "nll is not -log_probs of the target",
    ("always_smoothed", "normalised"): "the objective without label smoothing and z-loss is not nll",
    ("reports_bits", "normalised"): "the objective without label smoothing and z-loss is not nll",
    ("idle", "optimises"): "30 steps on one batch take the loss from",
    ("uphill", "optimises"): "30 steps on one batch take the loss from",
    ("above_one", "factors"): "factors leave [0, 1] in a run of 1 steps",
    ("below_zero", "factors"): "factors leave [0, 1] in a run of 10 steps",
    ("claims_too_much", "shared"): "runs of 2 and 10 steps differ in step",
    ("half_way", "factors"): "the factor never reaches 1 in a run of 10 steps",
    ("no_spaces", "round_trip"): "what it decodes does not encode to the same ids",
    ("seven_bits", "round_trip"): "leave the vocabulary of 128",
    ("below_nothing", "round_trip"): "leave the vocabulary of 256",
    ("forgets_training", "round_trip"): "restored from its state, it encodes to other ids",
    ("knows_all", "unknown"): "6 tokens are unknown, and 0 pieces of the text are said to be",
    ("writes_anew", "unknown"): "the unknown piece '<unk>' is not in the text",
    ("draws_anew", "batches"): "two openings give other batches at step 3",
    ("by_length", "batches"): "two openings give other batches at step 3",
    ("one_batch", "batches"): "another step or another seed gives the same batch",
    ("too_many_rows", "held_out"): "a held-out batch of at most 1 rows has 5",
    ("mean_of_means", "held_out"): "train loss is",
    ("unmeasured", "held_out"): "the train split has no 'beauty': loss, bits_per_byte, perplexity are measured",
    ("leaks_padding", "padding_of_rows"): "padding leaks: other tokens there move the loss by",
    ("sums", "parts"): "the gradient of micro-batches differs from that of their batch by",
    ("learns_nothing", "trains"): "60 steps take the loss from",
    ("vague_facts", "facts"): "a baseline must have a name, a metric and a value",
    ("other_measure", "facts"): "baseline 'chance': 'accuracy' is not measured; loss, bits_per_byte, perplexity are",
    ("wrong_form", "form"): "embedding 'patch' sees the future and cannot be used in a causal model",
}
CRASHES = {
    ("wrong_width", "shape"): "raises RuntimeError: The size of tensor a (16) must match the size of tensor b (15)",
    ("mixed_types", "bf16"): "raises RuntimeError: ",
}
ONE_FAULT = {  # components that break nothing else, so that the check alone finds them
    "sees_everything_in_training",
    "causal_after_all",
    "token_shift",
    "token_shift_in_training",
    "batch_mean_in_training",
    "couples_nothing",
    "reads_padding",
    "other_on_meta",
    "one_seed_for_all",
    "hidden_state",
    "counts_steps",
    "small_difference",
    "large_sum",
    "forgets",
    "one_at_a_time",
    "reports_bits",
    "forgets_training",
}


@pytest.fixture(autouse=True, scope="module")
def _bad_components() -> Iterator[None]:
    """The bad components are known to these tests alone."""
    before = registry.catalogue()
    with own_plugins():
        for name in ("bad_components.py", "bad_tasks.py"):
            registry.add_plugin(Path(__file__).with_name(name))
        yield
    assert registry.catalogue() == before


@pytest.fixture(scope="module")
def failed() -> dict[str, dict[str, str]]:
    """What `ablate check` finds in the components that have to be checked as a whole."""
    return {name: check_components(name)[0]["failed"] for name in sorted({name for name, _ in CRASHES} | ONE_FAULT)}


@pytest.mark.parametrize(("name", "label"), FAULTS, ids=lambda each: each)
def test_the_check_finds_the_fault(name: str, label: str) -> None:
    subject = next(subjects(name))
    (checked,) = [each for each in checks_for(subject) if each.__name__ == f"check_{label}"]
    with pytest.raises((CheckFailed, UserError), match=re.escape(FAULTS[name, label])):
        checked(subject)


def test_every_check_is_shown_to_fail() -> None:
    every = (*check.EVERYWHERE, *check.FITTED, *check.IN_TIME, check.check_cache, check.check_padding)
    known = {each.__name__.removeprefix("check_") for each in every + sum(check.BY_SLOT.values(), ())}
    assert {label for _, label in FAULTS} == known


@pytest.mark.parametrize("name", sorted(ONE_FAULT))
def test_the_fault_is_found_by_one_check_alone(name: str, failed: dict[str, dict[str, str]]) -> None:
    """`ablate check` reports the intended fault and no other: each of these checks is indispensable."""
    assert {(name, label) for label in failed[name]} == {key for key in FAULTS if key[0] == name}


@pytest.mark.parametrize(("name", "label"), CRASHES, ids=lambda each: each)
def test_a_component_that_raises_is_reported(name: str, label: str, failed: dict[str, dict[str, str]]) -> None:
    assert CRASHES[name, label] in failed[name][label]


def test_an_unknown_name() -> None:
    with pytest.raises(UserError, match="did you mean 'attention'"):
        check_components("atention")


# what is configured must have an effect: no table of forbidden pairs, the probe finds them
NO_EFFECT = {
    "rope without attention": ({"position": "rope", "sublayers": {"s": "lstm"}}, "rotates queries and keys"),
    "alibi without attention": ({"position": "alibi", "sublayers": {"s": "convolution"}}, "adds to attention scores"),
    "t5 without a mixer": ({"position": "t5", "order": "f"}, "adds to attention scores"),
    "a mixer that ignores the bias": (
        {"position": "t5", "sublayers": {"s": "ignores_bias"}},
        "position 't5' has no effect: it adds to attention scores, and no sublayer of 'sf' (ffn, ignores_bias) asks",
    ),
    "a stack that ignores steps": (
        {"position": "at_every_layer", "stack": "forgets_step"},
        "position 'at_every_layer' has no effect: it adds at the entry of every layer",
    ),
    "a parameter": ({"sublayers": {"f": "unused_parameter"}}, "no effect on the output: tower.functions.0.1.spare"),
}


@pytest.mark.parametrize("case", NO_EFFECT)
def test_what_has_no_effect_is_refused(case: str) -> None:
    settings, words = NO_EFFECT[case]
    arch = parse(ArchSpec, {"d_model": 16, "n_heads": 4, "depth": 2, **settings})
    with pytest.raises(UserError, match=re.escape(words)):
        probe(arch, 13, 12)
    if "position" in settings:  # with another position, or asked for it, the same architecture is fine
        probe(replace(arch, position=Component("none")), 13, 12)
    if "stack" in settings:
        probe(replace(arch, stack=Component("plain")), 13, 12)


def test_a_component_that_sees_the_future_is_refused_in_a_causal_model() -> None:
    arch = parse(ArchSpec, {"d_model": 16, "n_heads": 4, "sublayers": {"s": "causal_after_all"}})
    with pytest.raises(UserError, match="mixer 'causal_after_all' sees the future and cannot be used in a causal"):
        probe(arch, 13, 12)
    probe(arch, 13, 12, causal=False)
