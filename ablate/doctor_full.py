"""What `ablate doctor` says of torch.compile and of Ray; whether they work is tried where all is asked for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec

from ablate.doctor import NOTE, OK, PROBLEM, Finding

PATIENCE_S = 60.0
COMPILED = "import torch; assert float(torch.compile(lambda x: x + 1)(torch.zeros(3, device={device!r})).sum()) == 3"
STARTED = """
import ray
ray.init(address="local", num_cpus=1, num_gpus=0, object_store_memory={store}, include_dashboard=False,
         log_to_driver=False, logging_level="ERROR")
assert ray.get(ray.remote(lambda: 1).remote()) == 1
ray.shutdown()
"""


def compiling(full: bool) -> Iterator[Finding]:
    """Whether torch.compile finds a compiler. On CPUs nothing is compiled."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    missing = [] if compiler and shutil.which(compiler) else ["a C++ compiler"]
    if device == "cuda" and find_spec("triton") is None:
        missing.append("triton")
    needed = "" if device == "cuda" else " (not needed: trials on a CPU are not compiled)"
    if missing:
        status, advice = (NOTE, "install it, or long trials run uncompiled") if device == "cuda" else (OK, "")
        yield Finding(status, "torch.compile", f"{' and '.join(missing)} is missing{needed}", advice)
    elif not full:
        yield Finding(OK, "torch.compile", f"compiler {compiler}{needed}; --full tries it")
    elif trouble := _trouble(COMPILED.format(device=device)):
        advice = "long trials run uncompiled; the headers of Python may be missing" if device == "cuda" else ""
        yield Finding(NOTE if advice else OK, "torch.compile", f"does not work: {trouble}{needed}", advice)
    else:
        yield Finding(OK, "torch.compile", f"works, with {compiler}{needed}")


def ray_starts(full: bool) -> Iterator[Finding]:
    """Whether a Ray cluster of this machine alone can be started, as --executor ray does."""
    from ablate.run.ray_executor import OBJECT_STORE

    if not full:
        yield Finding(OK, "Ray", "not tried: --full starts it; --executor local does without")
    elif trouble := _trouble(STARTED.format(store=OBJECT_STORE)):
        yield Finding(PROBLEM, "Ray", f"cannot start: {trouble}", "use --executor local, which does without")
    else:
        yield Finding(OK, "Ray", "starts, and runs a task")


def _trouble(code: str) -> str:
    """What is wrong with running some Python in a process of its own: its last words; empty where nothing is."""
    settings = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=settings,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"it took more than {PATIENCE_S:.0f} s"
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
