"""What a GPU makes of it: `python -m benchmarks.gpu` measures all parts in under nine minutes, and writes
benchmarks/results/<card>.md after each, with the card, its driver and the versions of the libraries.

Without a GPU it says so; `--cpu` runs every part on the CPU at sizes that mean nothing, to see that it runs.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ablate.cost import CostBook
from ablate.run.environment import device_name
from ablate.train.cohort.together import Together
from ablate.train.compiling import compile_model
from ablate.train.run import TrainingRun
from benchmarks.cohort import sides_of, spec_of, waited
from benchmarks.measure import interleaved, ratio
from benchmarks.plain_gpt import SHAPES
from benchmarks.step import forward_flops

FOLDER = Path(__file__).parent / "results"
BUDGET_S = 8 * 60.0
LARGE = {"125M": (768, 12, 12, 1024, 16), "350M": (1024, 24, 16, 1024, 8)}

Rows = list[list[str]]


@dataclass
class Bench:
    """Where it is measured, how large, and until when."""

    device: torch.device
    cache: Path
    ends: float

    @property
    def real(self) -> bool:
        return self.device.type == "cuda"

    def left(self) -> float:
        return self.ends - time.monotonic()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--cpu", action="store_true", help="run every part on the CPU, at sizes that mean nothing")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the table (default: benchmarks/results)")
    parser.add_argument("part", nargs="*", help=f"of {', '.join(PARTS)} (default: all)")
    options = parser.parse_args(arguments)
    if unknown := set(options.part) - set(PARTS):
        parser.error(f"unknown part {min(unknown)}: choose from {', '.join(PARTS)}")
    if not (options.cpu or torch.cuda.is_available()):
        print("no GPU here")
        return 2
    device = torch.device("cpu" if options.cpu else "cuda")
    torch.set_num_threads(1 if options.cpu else torch.get_num_threads())
    name = device_name(device)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / f"{re.sub('[^A-Za-z0-9]+', '-', name).strip('-')}.md"
    found: dict[str, Rows] = {}
    with tempfile.TemporaryDirectory(prefix="ablate-bench-") as scratch:
        bench = Bench(device, Path(scratch) / "cache", time.monotonic() + BUDGET_S)
        bench.cache.mkdir()
        for key in options.part or PARTS:
            title, part = PARTS[key]
            begun = time.monotonic()
            if bench.left() < 20:
                found[title] = [["not measured"], ["the time was over"]]
            else:
                found[title] = part(bench)
            print(f"{title}: {time.monotonic() - begun:.0f} s", *(" | ".join(row) for row in found[title]), sep="\n")
            file.write_text(_page(name, device, found))
    print(f"written to {file}")
    return 0


def _page(name: str, device: torch.device, found: dict[str, Rows]) -> str:
    """The tables, and on what they were measured."""
    lines = [f"# {name}", "", f"torch {torch.__version__}, CUDA {torch.version.cuda}, {_driver(device)}; "
             f"{datetime.date.today().isoformat()}. Medians, ratios with their quartiles.", ""]  # fmt: skip
    for title, (header, *rows) in found.items():
        lines += [f"## {title}", "", "| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
        lines += ["| " + " | ".join(row) + " |" for row in rows] + [""]
    return "\n".join(lines)


def _driver(device: torch.device) -> str:
    if device.type != "cuda":
        return "no driver"
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    return "driver " + subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()


def rates(bench: Bench) -> Rows:
    """TFLOP/s of a large product."""
    rows = [["product", "TFLOP/s"]]
    for dtype in (torch.float32, torch.bfloat16):
        rows.append([f"{str(dtype).removeprefix('torch.')}", f"{_peak(bench, dtype) / 1e12:.3g}"])
    return rows


def _peak(bench: Bench, dtype: torch.dtype) -> float:
    n = 8192 if bench.real else 256
    a, b = (torch.randn(n, n, device=bench.device, dtype=dtype) for _ in range(2))
    seconds = _timed(bench, lambda: a @ b, 15)
    return float(2 * n**3 / sorted(seconds)[len(seconds) // 2])


def _timed(bench: Bench, call: Callable[[], object], rounds: int) -> list[float]:
    def one() -> None:
        call()

    return interleaved({"one": waited(one) if bench.real else one}, rounds, 3, time.perf_counter)["one"]


def cohorts(bench: Bench) -> Rows:
    """K stacked models against the same in turn, in model-tokens a second and by the rate of float32 products."""
    rows = [["shape", "models", "alone, tokens/s", "together, tokens/s", "gain", "of the product rate"]]
    peak, until = _peak(bench, torch.float32), time.monotonic() + bench.left() / 2
    for name, shape in (SHAPES if bench.real else {"tiny": (16, 1, 2, 16, 2)}).items():
        d, depth, _, length, batch = shape
        for size in (1, 2, 4, 8, 16, 32, 64, 128) if bench.real else (1, 2):
            if time.monotonic() > until:
                rows.append([name, str(size), *("-" for _ in range(4))])
                continue
            seconds = sides_of(shape, size, bench.device, bench.cache, 5 if bench.real else 4)
            tokens = size * batch * length
            rate = {side: tokens / sorted(each)[len(each) // 2] for side, each in seconds.items()}
            share = rate["together"] * 3 * forward_flops(d, depth, length) / peak
            gain = ratio(seconds["alone"], seconds["together"])
            rows.append([name, str(size), f"{rate['alone']:.3g}", f"{rate['together']:.3g}", gain, f"{share:.1%}"])
    return rows


def large(bench: Bench) -> Rows:
    """The step of one large model in bfloat16, as it is and compiled, by the rate of bfloat16 products."""
    rows = [["model", "step", "tokens/s", "of the product rate", "compiling, s"]]
    peak = _peak(bench, torch.bfloat16)
    for name, shape in (LARGE if bench.real else {"-": (32, 1, 2, 16, 2)}).items():
        spec = spec_of(shape, precision="bf16", lr=1e-4)
        run = TrainingRun(spec, bench.device, bench.cache)
        task = run.task
        cost = CostBook(bench.cache / "cost").cost(spec.arch, task.vocab, task.length(spec.arch), **task.sizes)
        for how in ("as it is", "compiled"):
            if bench.left() < 60:
                continue
            begun = time.monotonic()
            if how == "compiled":
                compile_model(run.model)
            run.train_step()
            took = time.monotonic() - begun
            seconds = _timed(bench, run.train_step, 4)
            rate = spec.train.batch_tokens / sorted(seconds)[len(seconds) // 2]
            share = f"{rate * cost.flops_train / peak:.1%}"
            rows.append([name, how, f"{rate:.3g}", share, f"{took:.0f}" if how == "compiled" else ""])
        del run
    return rows


GRID = """\
study: gpu
base:
  arch: {d_model: %d, n_heads: 4, depth: 2}
  data: {seq_len: 64}
  train: {tokens: %d, batch_tokens: 512, dropout: 0.1, eval_points: 4, eval_tokens: 2048, final_eval_tokens: 4096}
variants:
  plain: {}
  rope: rope
  swiglu: swiglu
  rmsnorm: rmsnorm
seeds: %d
"""


def studies(bench: Bench) -> Rows:
    """A small study as a user runs it: one trial at a time, several on the GPU, and in cohorts."""
    rows = [["study", "seconds", "trials", "finished", "largest difference in loss from the first row"]]
    folder, first = bench.cache.parent, dict[str, float]()
    grid = folder / "grid.yaml"
    grid.write_text(GRID % ((64, 102_400, 8) if bench.real else (16, 5120, 2)))
    ways = {"alone": ("--cohorts", 0), "packed": ("--cohorts", 0, "--pack", 8), "cohorts": ("--cohorts", 8)}
    for way, how in ways.items():
        if bench.left() < 45 or (way == "packed" and not bench.real):
            continue
        results = folder / way
        results.mkdir()
        (results / "cache").symlink_to(bench.cache)
        command = [sys.executable, "-m", "ablate", "run", grid, "--results", results, *how]
        begun = time.monotonic()
        subprocess.run([str(each) for each in command], capture_output=True, check=True)
        took = time.monotonic() - begun
        records = [json.loads(file.read_text()) for file in results.glob("trials/*/record.json")]
        losses = {each["id"]: each["metrics"]["loss"] for each in records if each["status"] == "finished"}
        first = first or losses
        apart = max(abs(losses[each] - first[each]) for each in losses)
        rows.append([way, f"{took:.1f}", str(len(records)), str(len(losses)), f"{apart:.2g}"])
    return rows


def same(bench: Bench) -> Rows:
    """How far a trial comes to be from itself alone after a few steps, together with others, and from itself on the
    CPU."""
    rows = [["trained for 20 steps", "against", "largest relative difference of the loss"]]
    spec = spec_of(SHAPES["tiny"] if bench.real else (16, 1, 2, 16, 2), lr=1e-3)
    asked = [replace(spec, seed=seed) for seed in range(4)]
    here = [TrainingRun(each, bench.device, bench.cache) for each in asked]
    there = [TrainingRun(each, torch.device("cpu"), bench.cache) for each in asked]
    together = Together([TrainingRun(each, bench.device, bench.cache) for each in asked])
    for _ in range(20):
        together.train_step()
        for run, loss in together.losses_by_run():
            run.count_step(loss)
        for run in (*here, *there):
            run.train_step()
    means = [[run.take_means()[0] for run in runs] for runs in (together.runs, here, there)]
    for name, other in (("alone, on this device", means[1]), ("alone, on the CPU", means[2])):
        apart = max(abs(one - two) / two for one, two in zip(means[0], other, strict=True))
        rows.append(["together", name, f"{apart:.1e}"])
    return rows


PARTS: dict[str, tuple[str, Callable[[Bench], Rows]]] = {
    "rates": ("Rates of products", rates),
    "same": ("The same numbers", same),
    "cohorts": ("Cohorts", cohorts),
    "large": ("Large models", large),
    "studies": ("Studies", studies),
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
