"""One training step: ours against plain PyTorch, one thread, CPU time."""

from __future__ import annotations

import statistics
import time

import torch

from ablate.build import build_model
from ablate.spec import ArchSpec
from ablate.train.optim import decay_groups
from benchmarks.measure import interleaved, median_ms, ratio
from benchmarks.plain_gpt import SHAPES, PlainGPT, optimizer_of, train_step

REPEAT = {"tiny": 20, "small": 2, "med": 1}
ROUNDS = {"tiny": 30, "small": 24, "med": 8}


def ours(arch: ArchSpec, length: int, x: torch.Tensor, y: torch.Tensor, bf16: bool = False):
    """Our training step on a fixed batch, as `train/run.py` makes it."""
    model = build_model(arch, 256, length).train()
    optimizer = torch.optim.AdamW(decay_groups(model, 0.1), lr=1e-3, betas=(0.9, 0.95), fused=True)
    parameters = list(model.parameters())

    def step() -> float:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            out, _ = model(x)
            loss = model.head.objective(out, y, 0.0, 0.0)[0].mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()
        return loss.item()

    return step


def matmul_peak() -> float:
    """GFLOP/s of a large float32 product on one thread."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    seconds = interleaved({"matmul": lambda: a @ b}, rounds=15)["matmul"]
    return 2 * 1024**3 / statistics.median(seconds) / 1e9


def table() -> list[list[str]]:
    torch.set_num_threads(1)
    rows = [["shape", "plain, ms", "ours, ms", "plain / ours", "share of matmul peak", "ours, bf16 / fp32"]]
    peak = matmul_peak()
    for name, (d, depth, heads, length, batch) in SHAPES.items():
        x, y = torch.randint(0, 256, (2, batch, length))
        plain = PlainGPT(d, depth, heads, length)
        optimizer = optimizer_of(plain)
        arch = ArchSpec(d_model=d, depth=depth, n_heads=heads)
        sides = {
            "plain": lambda plain=plain, optimizer=optimizer, x=x, y=y: train_step(plain, optimizer, x, y),
            "ours": ours(arch, length, x, y),
            "bf16": ours(arch, length, x, y, bf16=True),
        }
        seconds = interleaved(sides, ROUNDS[name], REPEAT[name], time.process_time)
        gflop = 3 * forward_flops(d, depth, length) * batch * length / 1e9
        share = gflop / statistics.median(seconds["ours"]) / peak
        rows.append(
            [
                f"{name} (d{d} L{depth} H{heads} T{length} B{batch})",
                median_ms(seconds["plain"]),
                median_ms(seconds["ours"]),
                ratio(seconds["plain"], seconds["ours"]),
                f"{share:.0%} of {peak:.0f} GFLOP/s",
                ratio(seconds["ours"], seconds["bf16"]),
            ]
        )
    return rows


def forward_flops(d: int, depth: int, length: int) -> int:
    """FLOPs a token: 2 per multiply-accumulate of the matrices (12 d^2 a layer), full attention, the head."""
    return depth * (24 * d * d + 4 * length * d) + 2 * 256 * d
