"""What a trial takes of the time of the process that trains it."""

from __future__ import annotations

import time


class Clock:
    """Seconds of wall time, and of training. Where several trials share a process, each takes an equal part."""

    def __init__(self, sharers: int = 1):
        self.sharers = sharers
        self.train_s = 0.0
        self._wall_s = 0.0
        self._since = time.perf_counter()
        self._training: float | None = None

    def share(self, sharers: int) -> None:
        """From now on there are so many."""
        self._settle()
        self.sharers = sharers

    def train(self) -> None:
        """What follows is training."""
        self._training = time.perf_counter()

    def rest(self) -> None:
        """What follows is not."""
        if self._training is not None:
            self.train_s += (time.perf_counter() - self._training) / self.sharers
        self._training = None

    def wall_s(self) -> float:
        self._settle()
        return self._wall_s

    def _settle(self) -> None:
        now = time.perf_counter()
        self._wall_s += (now - self._since) / self.sharers
        self._since = now
        if self._training is not None:
            self.train_s += (now - self._training) / self.sharers
            self._training = now
