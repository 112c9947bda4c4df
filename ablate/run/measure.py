"""What the trials of a row take, measured in this process: a few real steps, evaluations, looks and checkpoints."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ablate.diagnose.record import diagnose
from ablate.run.environment import peak_memory_bytes
from ablate.run.ledger import Ledger
from ablate.run.memory import free_ram
from ablate.spec import TrialSpec
from ablate.train import checkpoint
from ablate.train.fitted import FittedRun, new_run
from ablate.train.job import Job
from ablate.train.memory import Pieces, free, out_of_memory
from ablate.train.run import Diverged, Run, TrainingRun
from ablate.train.trial import prepare_process

WARM, TIMED = 2, 9  # steps: the first ones compile, allocate and fill caches
LEAST, PATIENCE_S = 3, 30.0  # no more than so many steps once they have taken so long

Figures = dict[str, Any]


def measure(job: Job, spec: TrialSpec) -> Figures:
    """Times in seconds, memory in bytes, of a trial of this specification; nothing of it is kept.

    Where memory is refused it goes on in smaller pieces, as a trial does, and remembers them. Raises `MemoryError`
    where that is no way out, and whatever the trial raises.
    """
    before = _resident()
    device = prepare_process(job)
    cache = Ledger(Path(job.results)).cache
    pieces = Pieces(spec, device, cache)
    while True:
        try:
            return _measured(spec, device, cache, pieces, before)
        except (Exception, MemoryError) as error:
            if not out_of_memory(error):
                raise
            said = str(error)
        free(device)
        pieces.double(said)


def _measured(spec: TrialSpec, device: torch.device, cache: Path, pieces: Pieces, before: int) -> Figures:
    def timed(act: Callable[[], object]) -> float:
        begun = time.perf_counter()
        act()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - begun

    made: list[Run] = []
    setup_s = timed(lambda: made.append(new_run(spec, device, cache)))
    (run,) = made
    run.pieces = pieces.count
    first = timed(lambda: (run.by_layer(), diagnose(run, final=False)))
    warm, steps = _steps(run, timed)
    timed(lambda: _evaluate(run, last=False))
    evaluation_s = timed(lambda: _evaluate(run, last=False))
    final_s = timed(lambda: _evaluate(run, last=True))
    last = timed(lambda: (run.by_layer(), diagnose(run, final=True)))
    save_s, weights_s = _saving(run, cache, timed)
    peak = peak_memory_bytes(device)
    step_s = statistics.median(steps) if steps else 0.0
    quarter = statistics.quantiles(steps, n=4, method="inclusive") if len(steps) > 1 else [step_s] * 3
    memory = peak if device.type == "cuda" else max(0, peak - before)
    return {
        "setup_s": setup_s + max(0.0, warm - WARM * step_s),
        "step_s": step_s,
        "step_quartiles_s": [quarter[0], quarter[2]],
        "steps_timed": len(steps),
        "refits": isinstance(run, FittedRun),  # a step is up to the next evaluation
        "evaluation_s": evaluation_s,
        "final_evaluation_s": final_s,
        "looks_s": first + last,
        "checkpoint_s": save_s,
        "weights_s": weights_s,
        "memory_bytes": memory,
        "memory_is": "allocated on the GPU" if device.type == "cuda" else "resident above the process before",
        "micro_batches": pieces.count,
        "rows_at_once": run.rows_at_once,
        "largest_rows": _largest(run, memory),
    }


def _steps(run: Run, timed: Callable[[Callable[[], object]], float]) -> tuple[float, list[float]]:
    """Seconds of the warm-up together, and of every step after it: the last steps of the run, which are the largest
    where batches or rows grow."""
    if isinstance(run, FittedRun):
        points = sorted(run.eval_steps)
        run.step = points[max(0, len(points) - 2)]
        return 0.0, [timed(run.train_step)] if len(points) > 1 else []
    count = min(WARM + TIMED, run.steps)
    run.step = run.steps - count
    taken: list[float] = []
    try:
        for _ in range(count):
            taken.append(timed(run.train_step))
            if len(taken) >= WARM + LEAST and sum(taken) > PATIENCE_S:
                break
    except Diverged:
        pass  # the time that steps take is the same
    warm = min(WARM, max(0, len(taken) - 1))
    return sum(taken[:warm]) * WARM / max(1, warm), taken[warm:]


def _evaluate(run: Run, last: bool) -> None:
    for split in run.splits_at(last):
        run.evaluate(split, last)


def _saving(run: Run, cache: Path, timed: Callable[[Callable[[], object]], float]) -> tuple[float, float]:
    """Seconds that a checkpoint and the final weights take, on the disk of the results."""
    (cache / "probes").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache / "probes") as folder:
        whole = timed(lambda: checkpoint.save(Path(folder) / "checkpoint.pt", run.state()))
        weights = {"model": run.measured().state_dict(), "step": run.step}
        return whole, timed(lambda: checkpoint.save(Path(folder) / "weights.pt", weights))


def _largest(run: Run, memory: int) -> int | None:
    """Rows of a batch that can be computed at once, up to the whole batch: on a GPU tried, on a CPU estimated from
    what a row takes and the memory that is available. None for a model that has no steps."""
    if not isinstance(run, TrainingRun) or not run.steps:
        return None
    total = run.spec.train.batch_tokens // run.spec.data.row_tokens
    if run.device.type == "cuda":
        return doubled(run.rows_at_once, total, lambda rows: fits(run, rows))
    held = _held(run)
    row = max(1.0, (memory - held) / run.rows_at_once)
    return max(run.rows_at_once, int(min(total, (free_ram() + memory - held) / row)))


def doubled(rows: int, total: int, fits: Callable[[int], bool]) -> int:
    """`rows`, doubled as long as that many fit, up to `total`."""
    while rows < total and fits(min(2 * rows, total)):
        rows = min(2 * rows, total)
    return rows


def fits(run: TrainingRun, rows: int) -> bool:
    """Whether there is memory for the gradient of so many rows at once."""
    batch = run.batches[run.steps - 1].rows(0, rows)
    try:
        with run.autocast():
            objective, _ = run.task.objective(run.model, batch.to(run.device), run.spec.train)
        objective.backward()  # type: ignore[no-untyped-call]
        return True
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return False
    finally:
        run.optimizer.zero_grad(set_to_none=True)
        free(run.device)


def _held(run: TrainingRun) -> int:
    """Bytes of weights, gradients and the optimizer's state."""
    states = [each for state in run.optimizer.state.values() for each in state.values()]
    tensors = [each for each in states if isinstance(each, torch.Tensor)]
    return sum(each.nbytes for each in tensors) + 2 * sum(each.nbytes for each in run.parameters)


def _resident() -> int:
    """Bytes of this process in RAM; 0 where that cannot be read."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
