"""What all tests share: one thread, a small grid, the command line in this process or in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from installed import Installed

    from ablate.run.ledger import Ledger

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.pop("MLFLOW_TRACKING_URI", None)

# How long drawing an example takes says something of the machine, and a busy one fails no test
settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"  # reference data that the repository does not carry

TINY = """\
study: tiny
base:
  arch: {d_model: 16, n_heads: 2, depth: 1, position: learned}
  data: {corpus: kjv, tokenizer: bytes, seq_len: 16}
  train: {tokens: 6400, batch_tokens: 256, lr: 3e-3, eval_points: 3, eval_tokens: 512, final_eval_tokens: 1024}
variants:
  plain: {}
  rope: rope
seeds: 2
"""

Cli = Callable[..., subprocess.CompletedProcess[str]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take longest come first: a file is one process', and the end of a run is for short ones."""
    weights: Counter[Path] = Counter()
    for item in items:
        weights[item.path] += 3 * bool(item.get_closest_marker("ray")) or bool(item.get_closest_marker("slow"))
    items.sort(key=lambda item: -weights[item.path])


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def token_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that tests share: tokens and costs are looked up there by content."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def undisturbed_long(tmp_path_factory: pytest.TempPathFactory, token_cache: Path) -> Ledger:
    """What `runs.LONG` comes to when nobody disturbs it. Only read."""
    from runs import LONG, undisturbed

    return undisturbed(LONG, tmp_path_factory.mktemp("long"), token_cache)


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in an environment of its own. Only read."""
    from installed import install

    return install(tmp_path_factory.mktemp("installed"))


@pytest.fixture
def ledger(tmp_path: Path, token_cache: Path) -> Ledger:
    """A results folder of the test's own."""
    from runs import new_results

    return new_results(tmp_path / "results", token_cache)


@pytest.fixture
def other_ledger(tmp_path: Path, token_cache: Path) -> Ledger:
    from runs import new_results

    return new_results(tmp_path / "other", token_cache)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """`write(text, name="grid.yaml")`: a file in the test's own folder."""

    def write_file(text: str, name: str = "grid.yaml") -> Path:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        return file

    return write_file


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """`cli("plan", grid, ...)`: the command in a process of its own, in the test's own folder."""

    def run(*arguments: object, timeout: float = 300, **options: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "ablate", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            **options,  # type: ignore[call-overload]
        )

    return run


def shared(*parts: str) -> Path:
    """A file of the reference data. Skips the test, by the file's name, where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {'/'.join(parts)}, which is not part of the repository")
    return path
