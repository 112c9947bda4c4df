"""One trial over two processes: the numbers of one, whatever is spread, and checkpoints of one."""

from __future__ import annotations

import copy
import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Command, events, job, new_results, run_here, spec, train, wait_for, with_database

from ablate.errors import UserError
from ablate.resources import Parallel, Resources
from ablate.run.ledger import Ledger
from ablate.spec import TrialSpec
from ablate.train.parallel.ranks import of_one_process
from ablate.train.parallel.run import ParallelRun, refuse
from ablate.train.parallel.spread import split
from ablate.train.run import TrainingRun
from ablate.train.trial import run_trial

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc"),
]

CPU = torch.device("cpu")
WAYS = {
    "data": Parallel(data=2),
    "shard": Parallel(data=2, shard=True),
    "tensor": Parallel(tensor=2),
    "both": Parallel(data=2, tensor=2),
}


def over(parallel: Parallel, overrides: dict[str, Any] | None = None, seed: int = 1) -> TrialSpec:
    made = spec({"train.tokens": 128 * 60, "train.batch_tokens": 128, **(overrides or {})}, seed=seed)
    return replace(made, resources=Resources(cpus=parallel.ranks, gpus=0, parallel=parallel))


@contextmanager
def spread(asked: TrialSpec, cache: Path) -> Iterator[ParallelRun]:
    threads = torch.get_num_threads()
    run = ParallelRun(asked, CPU, cache)
    try:
        yield run
    finally:
        run.close()
        torch.set_num_threads(threads)


def go(run: TrainingRun, steps: int) -> tuple[float, float]:
    for _ in range(steps):
        run.train_step()
    return run.take_means()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "overrides",
    [
        {"arch.sublayers": {"f": {"name": "glu", "hidden": "full"}}, "arch.position": "rope", "arch.norm": "rmsnorm"},
        {"train.accumulate": 2, "train.clip": 0.5, "arch.position": "learned", "arch.bias": False},
    ],
    ids=["glu", "accumulate"],
)
def test_the_numbers_are_those_of_one_process(way: str, overrides: dict[str, Any], token_cache: Path) -> None:
    """Losses, gradient norms, evaluations and looks inside; and either goes on from the other's state."""
    asked = over(WAYS[way], overrides)
    alone = TrainingRun(asked, CPU, token_cache)
    expected = go(alone, 12)
    with spread(asked, token_cache) as run:
        assert go(run, 12) == pytest.approx(expected, rel=1e-5)
        theirs, ours = alone.evaluate("valid", False), run.evaluate("valid", False)
        assert ours == pytest.approx(theirs, rel=1e-5)
        looked, seen = alone.by_layer(), run.by_layer()
        assert looked is not None and seen is not None and seen.keys() == looked.keys()
        mine, yours = (copy.deepcopy(each.state()) for each in (run, alone))
        assert _shapes(mine) == _shapes(yours)
        go(run, 3)
        go(alone, 3)
        later = copy.deepcopy(run.state())
        assert run.evaluate("valid", False) == pytest.approx(alone.evaluate("valid", False), rel=1e-4)
        assert not torch.equal(later["model"]["embedding.table.weight"], mine["model"]["embedding.table.weight"])
        run.restore(mine)
        go_on = go(run, 5)
        alone.restore(mine)
        assert go(alone, 5) == pytest.approx(go_on, rel=1e-5)
        run.restore(yours)
        assert run.step == 12 and go(run, 5) == pytest.approx(go_on, rel=1e-4)


def _shapes(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _shapes(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_shapes(each) for each in tree]
    return (tree.shape, tree.dtype, type(tree)) if isinstance(tree, torch.Tensor) else type(tree)


@pytest.mark.parametrize("optimizer", ["sgd", "radam", {"name": "adamw", "bias_correction": False}])
def test_optimizers_of_parts(optimizer: Any, token_cache: Path) -> None:
    asked = over(WAYS["shard"], {"train.optimizer": optimizer})
    alone = TrainingRun(asked, CPU, token_cache)
    expected = go(alone, 8)
    with spread(asked, token_cache) as run:
        assert go(run, 8) == pytest.approx(expected, rel=1e-5)
        assert _shapes(copy.deepcopy(run.state())) == _shapes(copy.deepcopy(alone.state()))


def test_a_part_is_a_part(token_cache: Path) -> None:
    """Rank 0 holds half of the weights; half of a half of those that are split, and one of two heads."""
    for way, share in (("shard", 0.5), ("tensor", 0.5), ("both", 0.25)):
        with spread(over(WAYS[way]), token_cache) as run:
            model: Any = run.spread.model  # type: ignore[union-attr]
            query = model.tower.functions["0"][0].q.weight
            assert query.to_local().numel() == share * query.numel()
            (heads,) = [module.n_heads for module in model.modules() if hasattr(module, "n_heads")]
            assert heads == (2 if way == "shard" else 1)


def test_parts_of_a_batch_draw_for_themselves(token_cache: Path) -> None:
    """Those that compute one part of a batch together draw the same."""
    asked = over(WAYS["tensor"])
    alone = TrainingRun(asked, CPU, token_cache)
    with spread(asked, token_cache) as run:
        assert run.step_seed() == alone.step_seed()
        other = replace(run.seat, rank=1)
        assert other.data == 0 and replace(other, parallel=WAYS["data"]).data == 1
        run.seat = replace(other, parallel=WAYS["data"])
        assert run.step_seed() != alone.step_seed()
        run.seat = replace(run.seat, rank=0)


def test_a_member_of_the_batch_that_diverges(token_cache: Path) -> None:
    """All processes see it, and rank 0 can still be asked for its state."""
    from ablate.train.run import Diverged

    with spread(over(WAYS["shard"], {"train.lr": 1e6, "train.clip": None}), token_cache) as run:
        with pytest.raises(Diverged):
            go(run, 40)
        assert run.state()["step"] == run.step


@pytest.mark.parametrize(
    ("parallel", "overrides", "words"),
    [
        (Parallel(data=3), {}, "parallel.data 3 does not divide the 8 rows"),
        (Parallel(data=2, tensor=2), {"arch.d_ff": 42}, "42 units are not 2 times 2 parts of equal size"),
        (Parallel(tensor=3), {}, "parallel.tensor 3 does not divide 2 heads"),
        (
            Parallel(tensor=2),
            {"arch.sublayers": {"s": "gru", "f": "product_key"}},
            "nothing of this model is split",
        ),
        (Parallel(data=2), {"train.batch_ramp": 0.5, "train.ramp_parts": 4}, "train.batch_ramp is not implemented"),
        (Parallel(tensor=2), {"train.ema": 0.9}, "train.ema is not implemented"),
        (Parallel(data=2), {"arch.norm": "batchnorm_running"}, "would be another experiment"),
        (Parallel(tensor=2), {"arch.sublayers": {"s": "weighted"}}, "keeps a constraint after every step"),
    ],
)
def test_what_cannot_be_spread(parallel: Parallel, overrides: dict[str, Any], words: str, ledger: Ledger) -> None:
    """Said before any process is started, and recorded as the trial's end."""
    asked = over(parallel, overrides)
    with pytest.raises(UserError, match=words):
        refuse(asked, ledger.cache)
    record = train(ledger, asked).record()
    assert record is not None and record["status"] == "failed" and words in record["error"]
    assert record["traceback"] is None


def test_it_is_said_when_it_is_planned(tmp_path: Path, write: Callable[..., Path]) -> None:
    third = "  third: {use: swiglu, resources.parallel.tensor: 3, resources.cpus: 6}\n"
    grid = write(GRID.replace("  whole:", f"{third}  whole:"))
    code, said = run_here("plan", grid, "--results", tmp_path / "results")
    assert code == 2 and "grid.yaml" in said and "variant 'third'" in said, said
    assert "parallel.tensor 3 does not divide 2 heads" in said


def test_replicas_of_experts(token_cache: Path) -> None:
    """Where some parameters have no part in a step."""
    overrides = {"arch.sublayers": {"f": {"name": "switch", "experts": 4, "balance": 0.0, "capacity": None}}}
    asked = over(WAYS["data"], overrides)
    try:
        refuse(asked, token_cache)
    except UserError as error:
        pytest.skip(str(error))
    expected = go(TrainingRun(asked, CPU, token_cache), 6)
    with spread(asked, token_cache) as run:
        assert go(run, 6) == pytest.approx(expected, rel=1e-4)


GRID = """\
study: spread
base:
  arch: {d_model: 16, n_heads: 2, depth: 1}
  data: {corpus: kjv, tokenizer: bytes, seq_len: 16}
  train: {tokens: 5120, batch_tokens: 128, lr: 3e-3, dropout: 0.1, eval_points: 4, eval_tokens: 256}
  resources: {cpus: 2, gpus: 0, parallel: {data: 2}}
variants:
  plain: {}
  split: {use: rope, resources.parallel.tensor: 2, resources.parallel.data: 1}
  whole: {use: swiglu, resources.parallel.data: 1}
"""


@pytest.mark.parametrize("executor", ["local", "ray"])
def test_a_study_of_them(executor: str, ledger: Ledger, other_ledger: Ledger, write: Callable[..., Path]) -> None:
    """Ids and results are those of a study without: only dropout is drawn anew for each part of a batch."""
    grid = write(GRID)
    code, said = run_here(
        "run", grid, "--results", with_database(ledger).root, "--executor", executor, "--workers", 2, "--cohorts", 4
    )
    assert code == 0 and "3 finished" in said, said
    found = {each: (ledger.trial(each).record() or {})["parallel"] for each in ledger.trial_ids()}
    spread = [each and (each["data"], each["tensor"]) for each in found.values()]
    assert sorted(spread, key=str) == [(1, 2), (2, 1), None]
    if executor == "ray":
        return
    plain = write(GRID.replace("parallel: {data: 2}", "").replace(", resources.parallel.data: 1", "")
                  .replace("resources.parallel.tensor: 2", "resources.hours: 1"), "plain.yaml")  # fmt: skip
    code, said = run_here("run", plain, "--results", with_database(other_ledger).root, "--workers", 1)
    assert code == 2, said  # two CPUs are asked for
    code, said = run_here(
        "run", plain, "--results", with_database(other_ledger).root, "--workers", 1, "--set", "resources.cpus=1"
    )
    assert code == 0 and other_ledger.trial_ids() == ledger.trial_ids(), said
    for trial_id in ledger.trial_ids():
        record, alone = ledger.trial(trial_id).record(), other_ledger.trial(trial_id).record()
        assert record is not None and alone is not None and alone["parallel"] is None
        parallel = record["parallel"]
        apart = 0.2 if parallel and parallel["data"] > 1 else 1e-4
        assert record["metrics"]["loss"] == pytest.approx(alone["metrics"]["loss"], rel=apart)
        assert record["metrics"]["loss"] != alone["metrics"]["loss"] or parallel is None


def test_stopped_in_one_way_and_gone_on_with_in_another(ledger: Ledger, other_ledger: Ledger) -> None:
    asked = over(WAYS["data"])
    expected = train(other_ledger, of_one_process(asked)).record()
    going = run_trial(job(ledger, asked, progress_every_s=0.0))
    for event in going:
        if event["step"] >= 20:
            break
    going.close()
    folder = ledger.trial(asked.trial_id)
    assert events(folder) == ["start", "stop"] and folder.checkpoint.is_file()
    for asked_now in (replace(asked, resources=over(WAYS["tensor"]).resources), of_one_process(asked)):
        going = run_trial(job(ledger, asked_now, progress_every_s=0.0))
        step = 0
        for event in going:
            step = event["step"]
            if step >= 40 and asked_now.resources.parallel.ranks > 1:
                break
        going.close()
    record = folder.record()
    assert record is not None and expected is not None and record["status"] == "finished"
    assert record["metrics"]["loss"] == pytest.approx(expected["metrics"]["loss"], rel=1e-4)


def ranks_of(worker: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and b"ablate.train.parallel.rank" in (entry / "cmdline").read_bytes():
                if int((entry / "stat").read_text().rsplit(")", 1)[1].split()[2]) == worker:  # its process group
                    found.append(int(entry.name))
        except (OSError, IndexError):
            continue
    return found


def test_a_process_that_dies(ledger: Ledger, write: Callable[..., Path]) -> None:
    """The trial is tried again, from its checkpoint; and none outlives a killed driver."""
    grid = write(GRID.replace("tokens: 5120", "tokens: 512_000").replace("  whole", "  # "))
    command = ("run", grid, "--results", with_database(ledger).root, "--workers", 2, "--checkpoint-every", 0.1)

    def trainers() -> list[int]:
        found = []
        for trial_id in ledger.trial_ids():
            for line in ledger.trial(trial_id).history():
                if line["event"] in ("start", "resume") and "pid" in line:
                    found.append(line["pid"])
        return found

    with Command(grid.parent, *command) as driver:
        folder = driver.wait_for(lambda: next(iter(ledger.root.glob("trials/*/checkpoint.pt")), None), "a checkpoint")
        ranks = driver.wait_for(lambda: [each for worker in trainers() for each in ranks_of(worker)], "processes")
        os.kill(ranks[0], signal.SIGKILL)
        driver.wait_for(lambda: any("lost" in events(ledger.trial(each)) for each in ledger.trial_ids()), "a loss")
        assert folder.parent.is_dir()
        driver.wait_for(lambda: [each for worker in trainers() for each in ranks_of(worker)], "others")
        driver.process.kill()
        driver.wait_until_alone()
    wait_for(lambda: not any(ranks_of(worker) for worker in trainers()), "their end")
    lines = [json.loads(line) for line in (folder.parent / "attempts.jsonl").read_text().splitlines()]
    assert [each["by"] for each in lines if each["event"] == "lost"] == ["exit code 70"]


def test_what_is_split_is_named(token_cache: Path) -> None:
    run = TrainingRun(spec({"arch.sublayers": {"f": "glu"}, "arch.depth": 2}), CPU, token_cache)
    with pytest.raises(UserError, match="does not divide"):
        split(run.model, 5)
    assert sorted({type(module).__name__ for module, _ in split(run.model, 2)}) == ["Attention", "GLU"]


def test_results_of_both_are_alike(tmp_path: Path, token_cache: Path) -> None:
    """A study in whose trials some are spread has the same columns."""
    ledger = new_results(tmp_path / "both", token_cache)
    record = train(ledger, over(WAYS["data"])).record()
    assert record is not None and record["parallel"]["note"].endswith("distribution")
    assert record["spec"]["resources"]["parallel"] == {"data": 2, "tensor": 1, "shard": False}
