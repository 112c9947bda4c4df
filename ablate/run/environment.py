"""Where a trial ran: stamped on its record, never part of its identity."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch


def environment(device: torch.device) -> dict[str, Any]:
    """Hardware, libraries and code version of this process."""
    from ablate import __version__

    facts: dict[str, Any] = {
        "ablate": __version__,
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "host": platform.node(),
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        "device": device.type,
    }
    if device.type == "cuda":
        facts |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return facts


def device_name(device: torch.device) -> str:
    """The model of the GPU, or of the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory used so far: on the GPU by this process, else resident in RAM."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@lru_cache(maxsize=1)
def git_commit() -> str:
    """The commit of the harness' own checkout, with a + when it was changed; empty when installed without one."""
    folder = Path(__file__).parent
    try:
        run = ["git", "-C", str(folder), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        answer = subprocess.run(run, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    tracked = (folder.parent.parent / "pyproject.toml").is_file() or os.environ.get("GIT_DIR")
    return answer.stdout.strip() if answer.returncode == 0 and tracked else ""


@lru_cache(maxsize=1)
def cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
