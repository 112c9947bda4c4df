"""`ablate sample`: what a finished trial's model says, and what it is not asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import job, new_results, run_here, spec, train

from ablate import registry
from ablate.decoding import Beam, Greedy, Sample
from ablate.generate import generate
from ablate.run.ledger import Ledger, TrialFolder
from ablate.sampling import SampleRequest, method
from ablate.tasks.base import Task
from ablate.train import checkpoint
from ablate.train.trial import run_trial

TRIALS: dict[str, dict[str, Any]] = {
    "bytes": {"arch.position": "rope"},
    "characters": {"data.tokenizer": "characters"},
    "words": {"data.tokenizer": {"name": "words", "vocab": 2000}},
    "counted": {"arch.model": {"name": "ngram", "order": 3}},
    "masked": {"data.task": "mlm"},
    "prefix": {"data.task": "prefix_lm"},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, token_cache: Path) -> Callable[[str], TrialFolder]:
    """A finished trial of `TRIALS`; all in one results folder."""
    ledger = new_results(tmp_path_factory.mktemp("sampled") / "results", token_cache)
    found: dict[str, TrialFolder] = {}

    def trial(name: str) -> TrialFolder:
        if name not in found:
            found[name] = train(ledger, spec(TRIALS[name]))
            assert found[name].status() == "finished", found[name].record()
        return found[name]

    return trial


def sample(folder: TrialFolder, *options: object, trial: str | None = None) -> tuple[int, str]:
    return run_here(
        "sample", folder.id if trial is None else trial, "--results", folder.folder.parent.parent, *options
    )


def texts(folder: TrialFolder, *options: object) -> list[str]:
    code, printed = sample(folder, "--json", *options)
    assert code == 0, printed
    return json.loads(printed)["samples"]  # type: ignore[no-any-return]


def model_of(folder: TrialFolder, settings: dict[str, Any]) -> Any:
    made = spec(settings)
    task: Task = registry.make("task", made.data.task)
    task.open(made.data, folder.folder.parent.parent / "cache")
    model = task.build(made.arch, 1, 0.0)
    model.load_state_dict(torch.load(folder.weights, weights_only=True)["model"])
    return model.eval()


def test_the_trained_model_speaks(trained: Callable[[str], TrialFolder]) -> None:
    """The weights are the trial's, the prompt comes first, and every way to decode arrives."""
    folder = trained("bytes")
    model = model_of(folder, TRIALS["bytes"])
    ids = torch.tensor([list(b"And God ")])
    asked: list[tuple[list[object], dict[str, Any]]] = [
        (["--greedy"], {"how": Greedy()}),
        (["--beam", 3], {"how": Beam(3)}),
        (["--beam", 2, "--length-penalty", 1.5], {"how": Beam(2, 1.5)}),
        ([], {"how": Sample()}),
        (["--seed", 4], {"how": Sample(seed=4)}),
        (["--temperature", 0.7, "--top-k", 9, "--top-p", 0.8, "--min-p", 0.1], {"how": Sample(0.7, 9, 0.8, 0.1)}),
    ]
    for options, settings in asked:
        (said,) = generate(model, ids, stop=0, at_most=40, slide=True, **settings)
        expected = bytes([*b"And God ", *said]).decode(errors="replace")
        assert texts(folder, "--prompt", "And God ", "--length", 40, *options) == [expected]
    untrained = registry.make("task", spec().data.task)
    untrained.open(spec().data, folder.folder.parent.parent / "cache")
    fresh = untrained.build(spec(TRIALS["bytes"]).arch, 0, 0.0)
    said, fresh_said = (generate(each, ids, at_most=8) for each in (model, fresh))
    assert said != fresh_said


def test_counts_and_lengths(trained: Callable[[str], TrialFolder]) -> None:
    folder = trained("bytes")
    three = texts(folder, "--count", 3, "--length", 30)
    assert len(set(three)) == 3
    assert texts(folder, "--count", 2, "--length", 30) == three[:2]  # the others do not change the first
    assert texts(folder, "--count", 2, "--length", 30, "--seed", 1) != three[:2]
    beams = texts(folder, "--beam", 4, "--count", 3, "--length", 5)
    assert len(set(beams)) == 3 and beams[:1] == texts(folder, "--beam", 4, "--length", 5)
    code, printed = sample(folder, "--count", 2, "--length", 3, "--prompt", "ab", trial=folder.id[:6])
    assert code == 0 and printed.startswith("--- 1\nab") and "\n--- 2\nab" in printed
    code, printed = sample(folder, "--length", 3, "--prompt", "ab", "--greedy")
    assert code == 0 and printed.startswith("ab")
    tree = json.loads(sample(folder, "--json", "--length", 2, "--prompt", "ab")[1])
    assert {key: tree[key] for key in ("id", "task", "prompt")} == {"id": folder.id, "task": "lm", "prompt": "ab"}


def test_prompts_from_files(trained: Callable[[str], TrialFolder], tmp_path: Path) -> None:
    folder, file = trained("bytes"), tmp_path / "prompt.txt"
    file.write_text("And God\nsaid\n", encoding="utf-8")
    (said,) = texts(folder, "--prompt-file", file, "--greedy", "--length", 5)
    assert [said] == texts(folder, "--prompt", "And God\nsaid", "--greedy", "--length", 5)


def test_other_tokenizers_and_models(trained: Callable[[str], TrialFolder]) -> None:
    for name in ("characters", "words", "counted", "prefix"):
        (said,) = texts(trained(name), "--prompt", "And God said", "--length", 4)
        assert said.startswith("And God said") and len(said) >= len("And God said")
        (started,) = texts(trained(name), "--length", 4)
        assert "�" not in started or name in ("counted", "prefix")


def test_a_prefix_is_seen_from_both_sides(trained: Callable[[str], TrialFolder]) -> None:
    """And where the model is full, the text ends."""
    folder = trained("prefix")
    model = model_of(folder, TRIALS["prefix"])
    ids = torch.tensor([list(b"And God")])
    (said,) = generate(model, ids, marks={"prefix_BT": torch.ones(1, 7, dtype=torch.bool)}, at_most=50)
    assert len(said) == 10  # 16 are read, and one more is known
    expected = bytes([*b"And God", *said]).decode(errors="replace")
    assert texts(folder, "--prompt", "And God", "--greedy") == [expected]


BAD: list[tuple[str, list[object], str]] = [
    ("bytes", ["--greedy", "--temperature", 1], "--temperature is for sampling, and has no effect with --greedy"),
    ("bytes", ["--beam", 2, "--top-k", 3], "--top-k is for sampling, and has no effect with --beam"),
    ("bytes", ["--beam", 2, "--greedy"], "--greedy and --beam contradict each other"),
    ("bytes", ["--length-penalty", 1], "--length-penalty has no effect without --beam"),
    ("bytes", ["--length-penalty", 1, "--top-p", 0.5], "--top-p is for sampling"),
    ("bytes", ["--seed", 3, "--beam", 2], "--seed has no effect with --beam"),
    ("bytes", ["--count", 2, "--greedy"], "greedy decoding says one thing"),
    ("bytes", ["--count", 3, "--beam", 2], "no more than 2 to show"),
    ("bytes", ["--count", 0], "--count 0 must be at least 1"),
    ("bytes", ["--length", 0], "--length 0 must be at least 1"),
    ("bytes", ["--temperature", 0], "temperature 0 must be above 0"),
    ("bytes", ["--top-p", 2], "top_p 2 must be above 0 and at most 1"),
    ("bytes", ["--beam", 0], "width 0 must be at least 1"),
    (
        "bytes",
        ["--prompt", "a" * 17],
        "the prompt is too long: a sequence of 17 tokens is longer than the model's 16",
    ),
    ("bytes", ["--prompt", "a\0b"], "zero byte"),
    ("bytes", ["--prompt-file", "/nowhere"], "--prompt-file /nowhere: cannot be read: No such file or directory"),
    ("bytes", ["--out", "a.png"], "--out has no effect: task 'lm' writes no file"),
    ("characters", ["--prompt", "God Ωmega ß"], "the trial's tokenizer does not know 'Ω', 'ß'"),
    ("words", ["--prompt", "God televised"], "the trial's tokenizer does not know 'televised'"),
    ("masked", [], "task 'mlm' has nothing to generate"),
]


@pytest.mark.parametrize(("name", "options", "message"), BAD, ids=[f"{name} {options}" for name, options, _ in BAD])
def test_bad_input(trained: Callable[[str], TrialFolder], name: str, options: list[object], message: str) -> None:
    code, printed = sample(trained(name), *options)
    assert code == 2
    assert message in printed and printed.startswith("ablate: ") and printed.count("\n") == 1


def test_trials_that_cannot_be_sampled(trained: Callable[[str], TrialFolder], ledger: Ledger, tmp_path: Path) -> None:
    folder = trained("bytes")
    assert sample(folder, trial="zzz") == (2, f"ablate: no trial 'zzz' in {folder.folder.parent}\n")
    trained("characters")
    code, printed = sample(folder, trial="")
    assert code == 2 and "begins the ids of" in printed

    begun = run_trial(job(ledger, spec()))
    next(begun)
    begun.close()
    here = ledger.trial(spec().trial_id)
    assert sample(here) == (
        2,
        f"ablate: trial {here.id} is pending: only the model of a finished trial can be sampled\n",
    )
    train(ledger, spec())
    assert sample(here, "--length", 2)[0] == 0
    whole = here.weights.read_bytes()
    here.weights.write_bytes(whole[: len(whole) // 2])
    assert sample(here)[1].endswith("weights.pt: the trial's trained weights are missing or not whole\n")
    checkpoint.save(here.weights, {"model": {}})
    code, printed = sample(here)
    assert code == 2 and "the weights do not fit the model" in printed
    here.weights.write_bytes(whole)
    tree = json.loads(here.spec.read_text())
    tree["seed"] = 5
    here.spec.write_text(json.dumps(tree))
    assert "components that have changed since" in sample(here)[1]
    file = tmp_path / "latin.txt"
    file.write_bytes(b"caf\xe9")
    assert sample(folder, "--prompt-file", file)[1].endswith("latin.txt: cannot be read: not UTF-8 text\n")


def test_methods_by_option() -> None:
    assert method() is None and method(seed=3) is None
    assert method(top_k=2, seed=3) == Sample(top_k=2, seed=3)
    assert method(temperature=0.5) == Sample(0.5)
    assert method(greedy=True) == Greedy()
    assert method(beam=5) == Beam(5, 0.6) and method(beam=5, length_penalty=0.0) == Beam(5, 0.0)
    model = torch.nn.Linear(1, 1)
    with pytest.raises(Exception, match="greedy decoding says one thing"):
        SampleRequest(count=2).continuations(model, [0], default=Greedy(), at_most=1)
