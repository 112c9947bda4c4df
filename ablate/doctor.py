"""`ablate doctor`: what of this machine and of the results works, what is slow and why, and what to do about it.

Everything is looked at or measured here, in seconds; nothing is kept. A *problem* keeps trials from being trained or
kept; a *note* is slower or less than it could be.
"""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ablate.errors import plural

OK, NOTE, PROBLEM = "OK", "note", "problem"
FULL_GB, LOW_GB = 0.2, 5.0  # free space that a study cannot do with, and that it may outgrow
LOW_MEMORY_GB = 2.0
SYNCS, SLOW_SYNC_MS = 15, 20.0  # every record, checkpoint and lease waits for one or two
SLOWER = 1.5  # times as long: worth saying
WIDTH, PRODUCTS = 384, 5  # of the matrices by which types are compared


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what is so, and what to do where it should be otherwise."""

    status: str
    subject: str
    found: str
    advice: str = ""

    def tree(self) -> dict[str, str]:
        return asdict(self)


def examine(results: Path, full: bool = False) -> list[Finding]:
    """Look at everything; with `full` also start Ray and compile a model. What cannot be looked at is a problem."""
    from ablate.doctor_full import compiling, ray_starts
    from ablate.doctor_results import disk, layout, leases, mlflow_store

    here: list[Callable[[], Iterator[Finding]]] = [versions, devices, precision, cpus, memory, shared_memory]
    there: list[Callable[[Path], Iterator[Finding]]] = [disk, layout, leases, mlflow_store]
    looks: list[Callable[[], Iterator[Finding]]] = [*here, *(_at(look, results) for look in there)]
    looks += [_at(compiling, full), _at(ray_starts, full)]
    found: list[Finding] = []
    for look in looks:
        try:
            found += look()
        except Exception as error:  # a driver that fails, a file system that does not answer: said, and the rest told
            found.append(Finding(PROBLEM, look.__name__, f"cannot be looked at: {type(error).__name__}: {error}"))
    return found


def print_findings(findings: list[Finding]) -> None:
    """A line each, what to do below it, and a line of counts."""
    width = max(len(each.subject) for each in findings)
    for each in findings:
        print(f"{each.status:<8} {each.subject:<{width}}  {each.found}")
        if each.advice:
            print(f"{'':<8} {'':<{width}}  -> {each.advice}")
    counts = {status: sum(each.status == status for each in findings) for status in (OK, NOTE, PROBLEM)}
    print(f"{counts[OK]} {OK}, {plural(counts[NOTE], NOTE)}, {plural(counts[PROBLEM], PROBLEM)}")


def versions() -> Iterator[Finding]:
    """Python, and what trains, schedules and tracks."""
    from ablate import __version__

    said, missing = [f"ablate {__version__}", f"Python {platform.python_version()}"], []
    for name in ("torch", "ray", "mlflow"):
        try:
            said.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        advice = "install ablate anew, with its dependencies"
        yield Finding(PROBLEM, "versions", f"{', '.join(said)}; not installed: {', '.join(missing)}", advice)
    else:
        yield Finding(OK, "versions", ", ".join(said))


def devices() -> Iterator[Finding]:
    """The GPUs that torch sees, and one that it does not."""
    import torch

    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        said = f"{facts.name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free, CUDA {torch.version.cuda}"
        said += f", driver {driver}" if (driver := _driver()) else ""
        if free < total / 2:
            yield Finding(NOTE, "GPU", said, "other processes hold most of its memory: `nvidia-smi` lists them")
        else:
            yield Finding(OK, "GPU", said)
    if torch.cuda.device_count():
        return
    if not _driver():
        yield Finding(OK, "GPU", "none: trials are trained on the CPU")
    elif torch.version.cuda is None:
        advice = "install a torch with CUDA: the build of torch is chosen by the package index it comes from"
        yield Finding(
            NOTE, "GPU", f"driver {_driver()}, but torch {torch.__version__} is a build without CUDA", advice
        )
    else:
        advice = f"CUDA_VISIBLE_DEVICES is {os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')!r}; or a newer driver"
        yield Finding(NOTE, "GPU", f"driver {_driver()}, but torch (CUDA {torch.version.cuda}) sees none", advice)


def _driver() -> str:
    """The version of NVIDIA's driver; empty where there is none."""
    with suppress(OSError, IndexError):
        return Path("/proc/driver/nvidia/version").read_text().split("Module")[1].split()[0]
    return ""


def precision() -> Iterator[Finding]:
    """Whether bfloat16 is faster than float32 here, by products of matrices, and what trials use by themselves."""
    import torch

    cuda = torch.cuda.is_available()
    device, used = ("cuda", "bf16") if cuda else ("cpu", "fp32")
    ratio = _seconds(device, torch.bfloat16) / _seconds(device, torch.float32)
    said = f"train.precision auto is {used}; a product of matrices in bf16 takes {ratio:.2g} times as long as in fp32"
    if cuda:
        old = torch.cuda.get_device_capability()[0] < 8
        said += f" (compute capability {'.'.join(map(str, torch.cuda.get_device_capability()))})"
        yield Finding(NOTE if old else OK, "precision", said, "set train.precision: fp32" if old else "")
        return
    words = [name for name in ("amx_bf16", "avx512_bf16") if name in _cpu_flags()]
    said += f" (this CPU has {', '.join(words) or 'no instructions for it'})"
    advice = "train.precision: bf16 may pay at larger sizes: compare both" if ratio * SLOWER < 1 else ""
    yield Finding(OK, "precision", said, advice)


def _seconds(device: str, dtype: Any) -> float:
    """The median time of a product of matrices."""
    import torch

    a = torch.randn(WIDTH, WIDTH, device=device).to(dtype)
    times = []
    for _ in range(PRODUCTS + 1):
        begun = time.perf_counter()
        (a @ a).sum().item()
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])


def _cpu_flags() -> set[str]:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return set(line.split())
    return set()


def cpus() -> Iterator[Finding]:
    """Cores that are there, those that this process may use, what a container is given of them, and the load."""
    import torch

    from ablate.run.cores import usable
    from ablate.run.environment import cpu_model

    there, mine, quota = os.cpu_count() or 1, usable(), _quota()
    said = f"{cpu_model()}: {mine} of {there} cores allowed"
    if quota is not None and quota < mine:
        advice = f"`ablate run` starts {mine} workers, one a core: use --workers {max(1, int(quota))}"
        yield Finding(NOTE, "CPU", f"{said}, but the container's quota is {quota:g} cores", advice)
    elif (load := os.getloadavg()[0]) > SLOWER * there:
        advice = "trials share the cores with other work; times measured now are not those of a free machine"
        yield Finding(NOTE, "CPU", f"{said}; load {load:.1f}", advice)
    else:
        yield Finding(OK, "CPU", f"{said}; load {load:.1f}")
    asked = os.environ.get("OMP_NUM_THREADS")
    said = f"{torch.get_num_threads()} of torch in this process" + (f" (OMP_NUM_THREADS={asked})" if asked else "")
    yield Finding(OK, "threads", f"{said}; each worker of `ablate run` has one on a CPU")


def _quota() -> float | None:
    """Cores' worth of time that this process' group may have; None where there is no limit."""
    with suppress(OSError, ValueError):
        most, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if most == "max" else float(most) / float(period)
    return None


def memory() -> Iterator[Finding]:
    """RAM that can be had now."""
    from ablate.run.memory import free_ram

    free = free_ram() / 1e9
    said = f"{free:.1f} GB can be had now" if free < float("inf") else "the system does not say"
    if free < LOW_MEMORY_GB:
        yield Finding(NOTE, "memory", said, "use fewer --workers: each has torch loaded, and its trial beside")
    else:
        yield Finding(OK, "memory", said)


def shared_memory() -> Iterator[Finding]:
    """Room for Ray's object store."""
    from ablate.run.ray_executor import OBJECT_STORE

    needed = OBJECT_STORE / 1e6
    place = Path("/dev/shm")
    if not place.is_dir():
        yield Finding(OK, "/dev/shm", "there is none on this system")
        return
    size = shutil.disk_usage(place).total / 1e6
    if size < needed:
        advice = f"Ray keeps its objects on disk instead, which is slower: docker run --shm-size={needed * 2:.0f}m"
        yield Finding(NOTE, "/dev/shm", f"{size:,.0f} MB, less than Ray's {needed:,.0f}", advice)
    else:
        yield Finding(OK, "/dev/shm", f"{size:,.0f} MB, Ray takes {needed:,.0f}")


def sync_ms(folder: Path) -> float:
    """The median time in which a small file is written and synced in a folder."""
    times = []
    with tempfile.TemporaryDirectory(dir=folder, prefix=".doctor.") as place:
        for number in range(SYNCS):
            begun = time.perf_counter()
            with open(Path(place) / str(number), "wb") as stream:
                stream.write(b"x" * 4096)
                stream.flush()
                os.fsync(stream.fileno())
            times.append(1e3 * (time.perf_counter() - begun))
    return statistics.median(times)


def _at(look: Any, place: Any) -> Callable[[], Iterator[Finding]]:
    """A look at a place, with its name."""

    def looked() -> Iterator[Finding]:
        return look(place)  # type: ignore[no-any-return]

    looked.__name__ = look.__name__
    return looked
