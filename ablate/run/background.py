"""The mirror on a thread of its own: no trial waits for MLflow, and an outage of its server loses nothing."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from ablate.run.tracking import Mirror


@dataclass(frozen=True)
class Patience:
    """How long is waited before the next try, in seconds: twice as long each time, less up to half of it by chance,
    so that many drivers do not come back to a server at once. `end_s` is for all tries after the study's own end."""

    first_s: float = 1.0
    most_s: float = 60.0
    end_s: float = 20.0

    def pauses(self) -> Iterator[float]:
        """Without end."""
        chance, pause = random.Random(), self.first_s  # its own: nobody's numbers depend on it
        while True:
            yield pause * chance.uniform(0.5, 1.0)
            pause = min(2 * pause, self.most_s)


PATIENCE = Patience()


class BackgroundMirror:
    """Publishes trials as they end. While the study runs it goes on trying; at its end for `patience.end_s` more."""

    def __init__(self, mirror: Mirror, patience: Patience | None = None):
        self.mirror = mirror
        self.patience = patience or PATIENCE
        self._waiting: queue.Queue[str | None] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._crashed: BaseException | None = None

    def add(self, trial_id: str) -> None:
        """Have a trial published that has ended."""
        self._waiting.put(trial_id)
        self._start()

    def close(self) -> str | None:
        """Publish what is waiting, and give the parents their status; return what went wrong, if anything did."""
        if self.mirror.open:
            self._start()
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join()
        if self._crashed is not None:
            raise self._crashed
        return self.mirror.trouble

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()

    def _work(self) -> None:
        try:
            left = self._while_it_runs()
            self._at_the_end(left)
        except BaseException as error:  # of the mirror itself: MLflow's are its trouble
            self._crashed = error

    def _while_it_runs(self) -> list[str]:
        """Until the study ends; returns what is not published yet."""
        left: list[str] = []
        pauses, pause = self.patience.pauses(), 0.0
        while True:
            ended = self._collect(left, pause)
            if ended:
                return left
            left = self.mirror.publish(left)
            if left:
                pause = next(pauses)
            else:
                pauses, pause = self.patience.pauses(), 0.0

    def _collect(self, left: list[str], pause: float) -> bool:
        """Add what has come to what is left; without a pause wait for something. True when the study has ended."""
        deadline = time.monotonic() + pause
        while True:
            wait = deadline - time.monotonic() if left else None
            if wait is not None and wait <= 0 and self._waiting.empty():
                return False
            try:
                found = self._waiting.get(timeout=wait and max(wait, 0.001))
            except queue.Empty:
                return False
            if found is None:
                return True
            left.append(found)

    def _at_the_end(self, left: list[str]) -> None:
        until = time.monotonic() + self.patience.end_s
        for pause in self.patience.pauses():
            left = self.mirror.publish(left)
            if not left and self.mirror.close():
                return
            if not self.mirror.passing or time.monotonic() + pause > until:
                return
            time.sleep(pause)
