"""Why a run ends before its work is done: a signal, the end of its time, or `ablate pause`."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console

LOOK_EVERY_S = 1.0
INTERRUPTED, TIME_IS_UP, PAUSED = "interrupted", "time is up", "paused"


class Stop:
    """Asks a run to stop, once; `reason` is empty until then. `pause` is the file that asks for it."""

    def __init__(self, console: Console, pause: Path, deadline: float | None = None):
        self.console, self.pause = console, pause
        self.deadline = deadline  # by `time.monotonic`
        self.event = threading.Event()
        self.reason = ""

    def ask(self, reason: str) -> None:
        if self.event.is_set():
            return
        self.reason = reason
        self.event.set()
        self.console.print(f"{reason}: trials under way leave a checkpoint (Ctrl-C to stop at once)")

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Listen to signals, look at the clock and for the file, which belongs to this run from here on."""
        self.pause.unlink(missing_ok=True)
        over = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(over,), daemon=True)
        watcher.start()
        try:
            with self._signals():
                yield
        finally:
            over.set()
            watcher.join()

    def _watch(self, over: threading.Event) -> None:
        while not self.event.is_set():
            left = LOOK_EVERY_S if self.deadline is None else self.deadline - time.monotonic()
            if left <= 0:
                self.ask(TIME_IS_UP)
            elif self.pause.exists():
                self.ask(PAUSED)
            elif over.wait(min(left, LOOK_EVERY_S)):
                return

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM ask to stop; a second one insists."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, frame: FrameType | None) -> None:
            if self.event.is_set():
                raise KeyboardInterrupt
            self.ask(INTERRUPTED)

        old = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
