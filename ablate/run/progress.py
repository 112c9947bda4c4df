"""What a person sees while trials run: a live display on a terminal or in a notebook, plain lines elsewhere."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ablate.rows import PlannedTrial
from ablate.run.hours import duration
from ablate.terminal import broken
from ablate.train.job import Event

SHOWN = 8  # running trials listed at once
DRAWN_EVERY_S = 0.25  # drawing takes longer than an event
SHORTEST_BAR = 20  # beside its words


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    return Console().is_jupyter


def console_here() -> Console:
    """For a run from Python: in a notebook its lines are one output of the cell, not one each, and move no cursor."""
    if in_notebook():  # whose output claims to be a terminal
        return Console(highlight=False, force_jupyter=False, force_terminal=False)
    return Console(highlight=False)


class NotebookCell:
    """What `rich.live.Live` is on a terminal, for the output of a notebook's cell; ipywidgets are not needed."""

    def __init__(self, shown: RenderableType):
        self._shown = shown
        self._handle: Any = None

    def __enter__(self) -> NotebookCell:
        from IPython.display import display

        self._handle = display(_page(self._shown), raw=True, display_id=True)
        return self

    def update(self, shown: RenderableType) -> None:
        self._handle.update(_page(shown), raw=True)

    def __exit__(self, *exc: Any) -> None:
        self._handle.update({"text/plain": "", "text/html": ""}, raw=True)


def _page(shown: RenderableType) -> dict[str, str]:
    """Text as a notebook shows it."""
    console = Console(file=io.StringIO(), record=True, width=100, force_jupyter=False, highlight=False)
    console.print(shown)
    text = console.export_text(clear=False)
    code = '<pre style="white-space:pre;overflow-x:auto">{code}</pre>'
    return {"text/plain": text, "text/html": console.export_html(inline_styles=True, code_format=code)}


class ProgressView:
    """Counts and rates of the trials of one run, whichever of them are asked for first. `event` takes every event of
    an executor."""

    def __init__(self, trials: Mapping[str, PlannedTrial], console: Console):
        self.trials = trials
        self.console = console
        self.total = len(trials)
        self.ended: dict[str, str] = {}
        self.running: dict[str, Event] = {}
        self.reached: dict[str, float] = {}  # the part of each trial that is done
        self.failed = 0
        self._flops = _flops(trials)
        self._flops_done = 0.0
        self._tokens = 0  # trained in this run
        self.started = time.monotonic()
        self.trained_tokens: dict[str, int] = {}
        self._live: Live | NotebookCell | None = None
        self._drawn = 0.0

    def add(self, trials: Mapping[str, PlannedTrial]) -> None:
        """More trials than were known of."""
        self.trials = {**self.trials, **trials}
        self.total = len(self.trials)
        self._flops = _flops(self.trials)

    def __enter__(self) -> ProgressView:
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self._live = Live(self._render(), console=self.console, refresh_per_second=4, transient=True)
        elif in_notebook():
            self._live = NotebookCell(self._render())
        if self._live is not None:
            self._live.__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        if self._live is not None:
            self._live.update(self._render())
            self._live.__exit__(*exc)

    def event(self, event: Event) -> None:
        trial_id = event["id"]
        if trial_id not in self.trials:
            return
        if "tokens" in event:
            before = self.trained_tokens.get(trial_id, event["tokens"])  # a resumed trial begins with some
            self._tokens += event["tokens"] - before
            self.trained_tokens[trial_id] = event["tokens"]
        if event.get("steps"):  # none where a trial is measured alone
            self._reach(trial_id, event["step"] / event["steps"])
        if "status" in event:
            self.running.pop(trial_id, None)
            if event["status"] != "paused":
                self.failed += (event["status"] == "failed") - (self.ended.get(trial_id) == "failed")
                self.ended[trial_id] = event["status"]
                self._reach(trial_id, 1.0)
            self._say_ended(event)
        else:
            self.running[trial_id] = event
        if self._live is not None and (now := time.monotonic()) - self._drawn > DRAWN_EVERY_S:
            self._drawn = now
            self._live.update(self._render())

    def _say_ended(self, event: Event) -> None:
        trial = self.trials[event["id"]]
        row = trial.row
        result = f"loss {event['loss']:.4f}" if event.get("loss") is not None else event.get("error", "")
        color = {"finished": "green", "diverged": "yellow"}.get(event["status"], "red")
        count = f"[{len(self.ended):>{len(str(self.total))}}/{self.total}]"
        what = f"{row.variant} ({row.cell}) seed {trial.spec.seed}"
        said = f"{count} {event['status']:<8} {what}  {result}  {trial.id}"
        for number, line in enumerate(broken(said, self.console.width if self.console.is_terminal else None)):
            text = Text(line)
            if not number:
                text.stylize(color, len(count) + 1, len(count) + 1 + len(event["status"]))
            text.highlight_words([trial.id], "dim")
            self.console.print(text, soft_wrap=True)

    def fraction(self) -> float:
        """The part of the FLOPs to be done that is done."""
        return min(1.0, self._flops_done / self._flops) if self._flops else 1.0

    def _reach(self, trial_id: str, part: float) -> None:
        self._flops_done += self.trials[trial_id].row.flops * (part - self.reached.get(trial_id, 0.0))
        self.reached[trial_id] = part

    def tokens_per_s(self) -> float:
        return self._tokens / max(1e-9, time.monotonic() - self.started)

    def words(self) -> str:
        """`5 done, 2 running, 0 failed, 9 to go · 41k tokens/s · 3 min left`."""
        to_go = self.total - len(self.ended) - len(self.running)
        parts = [
            f"{len(self.ended) - self.failed} done, {len(self.running)} running, {self.failed} failed, {to_go} to go",
            f"{_short(self.tokens_per_s())} tokens/s",
        ]
        fraction, elapsed = self.fraction(), time.monotonic() - self.started
        if 0.01 < fraction < 1:
            parts.append(f"{duration(elapsed * (1 - fraction) / fraction)} left")
        return " · ".join(parts)

    def _render(self) -> Group:
        """Running trials; then the bar with its words, which stand below it where there is no room beside it."""
        lines: list[RenderableType] = [self._running_line(*each) for each in list(self.running.items())[:SHOWN]]
        if len(self.running) > SHOWN:
            lines.append(Text(f"  and {len(self.running) - SHOWN} more"))
        words = self.words()
        part = f"{self.fraction():4.0%} "
        beside = self.console.width - len(words) - len(part) - 1 >= SHORTEST_BAR
        bar = Table.grid(expand=True)
        bar.add_column(width=len(part))
        bar.add_column(ratio=1)
        cells: list[RenderableType] = [part, ProgressBar(total=1.0, completed=self.fraction())]
        if beside:
            bar.add_column(width=len(words) + 1)
            cells.append(Text(" " + words))
        bar.add_row(*cells)
        below = [] if beside else [Text(line) for line in broken(words, self.console.width, 0)]
        return Group(*lines, bar, *below)

    def _running_line(self, trial_id: str, event: Event) -> Text:
        """One line, however narrow the terminal is: a long name is cut, numbers are not."""
        trial = self.trials[trial_id]
        start = f"  {event['step'] / event['steps']:4.0%}  "
        end = f" ({trial.row.cell}) seed {trial.spec.seed}"
        end += f"  loss {event['loss']:.3f}" if event.get("loss") is not None else ""
        room = max(4, self.console.width - len(start) - len(end))
        name = trial.row.variant
        name = name if len(name) <= room else name[: room - 1] + "…"
        return Text(start + name + end, no_wrap=True, overflow="ellipsis")


def _flops(trials: Mapping[str, PlannedTrial]) -> float:
    return sum(trial.row.flops for trial in trials.values())


def _short(value: float) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.0f}"
