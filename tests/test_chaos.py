"""Kills at random moments: see `chaos.py`, which does more of the same by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from chaos import Chaos, expected

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc"),
]


def test_a_study_whose_processes_are_killed(tmp_path: Path, token_cache: Path) -> None:
    """Nothing that ended is touched, nothing is left running, and the end is that of an undisturbed study."""
    chaos = Chaos(tmp_path, expected(tmp_path, token_cache))
    chaos.run(kills=12)


@pytest.mark.ray
def test_the_same_under_ray(tmp_path: Path, token_cache: Path) -> None:
    """Ray's own processes are among those that are killed."""
    chaos = Chaos(tmp_path, expected(tmp_path, token_cache), ray=True)
    chaos.run(kills=4)
