"""Progress and messages: bars with time left on a terminal, a plain line now and then where output goes to a file."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PLAIN_SECONDS = 10.0  # between plain lines
PLAIN_WIDTH = 140  # columns, where output goes to a file


class Bar:
    """One running count."""

    def __init__(self, label: str, total: int, progress: Progress | None, console: Console) -> None:
        self._label, self._total, self._done = label, total, 0
        self._progress, self._console = progress, console
        self._task: TaskID | None = None
        self._started = self._told = time.perf_counter()
        if progress is not None:
            self._task = progress.add_task(label, total=total, note="")

    def advance(self) -> None:
        self.to(self._done + 1)

    def to(self, done: int, note: str = "", total: int | None = None) -> None:
        """Show that `done` of all are done; `total` where it is known better by now."""
        self._done = done
        if total is not None and total != self._total:
            self._total = total
            if self._progress is not None and self._task is not None:
                self._progress.update(self._task, total=total)
        now = time.perf_counter()
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, note=note)
        elif now - self._told >= PLAIN_SECONDS or (
            done == self._total and now - self._started >= PLAIN_SECONDS
        ):
            self._told = now
            left = (now - self._started) / max(done, 1) * (self._total - done)
            self._console.print(
                f"{self._label}: {done}/{self._total}  {note}  {left:.0f} s left",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )


class Stages:
    """Counts that follow one another, each named when it begins."""

    def __init__(self, progress: Progress | None, console: Console) -> None:
        self._progress, self._console = progress, console
        self._bars: dict[str, Bar] = {}

    def to(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` of `stage` are done."""
        if stage not in self._bars:
            self._bars[stage] = Bar(stage, total, self._progress, self._console)
        self._bars[stage].to(done)


class Terminal:
    """Where a command talks to its user: standard output, so that errors alone are on standard error."""

    def __init__(self) -> None:
        terminal = sys.stdout.isatty()
        self._console = Console(file=sys.stdout, width=None if terminal else PLAIN_WIDTH)

    def say(self, text: str) -> None:
        """One line as it is; file names are not taken for markup."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    @property
    def width(self) -> int:
        """Columns there are to write in."""
        return self._console.width

    def print(self, renderable: object) -> None:
        """A rich table or the like."""
        self._console.print(renderable)

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator[Bar]:
        """A count from 0 to `total`."""
        with self._maybe_progress() as progress:
            yield Bar(label, total, progress, self._console)

    @contextmanager
    def stages(self) -> Iterator[Stages]:
        """Several counts, one after another."""
        with self._maybe_progress() as progress:
            yield Stages(progress, self._console)

    @contextmanager
    def _maybe_progress(self) -> Iterator[Progress | None]:
        if not self._console.is_terminal:
            yield None
            return
        columns = (
            TextColumn("{task.description:<24}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self._console) as progress:
            yield progress


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed: the step is finished and the state saved. Pressed again, it stops at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    pressed = False

    def handler(number: int, frame: object) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
