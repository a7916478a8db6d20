"""Progress of long stages: what is being done, how far it is, and how much time is left.

A stage is opened around a loop and advanced from inside it:

    with progress.stage("capture", total=22, unit="blocks") as stage:
        for block in blocks:
            ...
            stage.advance()

Progress goes to stderr, never to stdout.  On a terminal it is a bar; elsewhere plain lines, at most
one every ``PLAIN_SECONDS``.  Stages may be nested.  Imports no torch, and rich only to draw a bar.
"""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichBars
    from rich.progress import TaskID

PLAIN_SECONDS = 5.0
"""Least time between two plain lines of one stage."""
WIDE_COLUMNS, BAR_WIDTH = 90, 24
"""On a narrower terminal there is no bar, only name and time left."""
WORTH_TELLING_SECONDS = 2.0
"""A stage that took less leaves no line behind."""


class Stage(Protocol):
    """One open stage."""

    def advance(self, amount: float = 1) -> None:
        """``amount`` more units are done; 0 at first: ready to start, what was before sets no
        pace.
        """

    def note(self, text: str) -> None:
        """Tell the user something, on a line of its own."""


class Progress(ABC):
    """Where stages report to."""

    @abstractmethod
    def stage(
        self,
        name: str,
        total: float | None = None,
        unit: str = "",
        *,
        expected_seconds: float | None = None,
    ) -> AbstractContextManager[Stage]:
        """Open a stage of ``total`` units (None: unknown).

        ``expected_seconds`` gives the time left before the first unit is done, e.g. from the price.
        """

    @abstractmethod
    def note(self, text: str) -> None:
        """Tell the user something, on a line of its own."""


def seconds_left(
    done: float, total: float | None, elapsed: float, expected_seconds: float | None = None
) -> float | None:
    """Time left at the pace so far; before the first unit, of the expectation; None if unknown."""
    if total is not None and done > 0 and elapsed > 0:
        return max(0.0, elapsed * (total - done) / done)
    return None if expected_seconds is None else max(0.0, expected_seconds - elapsed)


def format_seconds(seconds: float) -> str:
    """``0:07``, ``12:34`` or ``1:02:03``."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def format_count(count: float) -> str:
    """Whole from 100 on, else three digits."""
    return f"{count:.0f}" if count >= 100 else f"{count:.3g}"


class Meter:
    """How far one stage is; ``clock`` counts seconds."""

    def __init__(
        self,
        name: str,
        total: float | None,
        unit: str,
        expected_seconds: float | None,
        clock: Callable[[], float],
    ) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.expected_seconds, self.clock = expected_seconds, clock
        self.done = 0.0
        self.began = self.started = self.changed = clock()

    @property
    def elapsed(self) -> float:
        return self.clock() - self.began

    @property
    def left(self) -> float | None:
        """Time left; it counts down between two advances."""
        if not self.done:
            return seconds_left(0, self.total, self.elapsed, self.expected_seconds)
        left = seconds_left(self.done, self.total, self.changed - self.started)
        return None if left is None else max(0.0, left - (self.clock() - self.changed))

    def advance(self, amount: float) -> None:
        self.done += amount
        self.changed = self.clock()
        if not self.done:
            self.started = self.changed

    def amount_text(self) -> str:
        """``12/22 blocks``; empty where nothing was counted."""
        if self.total is None:
            return f"{format_count(self.done)} {self.unit}".strip() if self.done else ""
        return f"{format_count(self.done)}/{format_count(self.total)} {self.unit}".strip()

    def left_text(self) -> str:
        left = self.left
        return "" if left is None else f"{format_seconds(left)} left"

    def figures_text(self) -> str:
        """Amount, elapsed and left, as far as they are known."""
        parts = [self.amount_text(), format_seconds(self.elapsed), self.left_text()]
        return "  ".join(part for part in parts if part)

    def short_line(self, width: int) -> str:
        """Name and time left in at most ``width`` columns; the name gives way."""
        right = self.left_text() or format_seconds(self.elapsed)
        room = max(0, width - len(right) - 2)
        name = self.name if len(self.name) <= room else self.name[: max(0, room - 1)] + "\u2026"
        return f"{name}  {right}"[:width]

    def line(self) -> str:
        """``capture: 12/22 blocks, 0:34, 0:28 left``."""
        parts = [self.amount_text(), format_seconds(self.elapsed), self.left_text()]
        return f"{self.name}: " + ", ".join(part for part in parts if part)

    def finished_line(self) -> str:
        parts = [self.amount_text(), format_seconds(self.elapsed)]
        return f"{self.name}: " + ", ".join(part for part in parts if part)


class SilentProgress(Progress):
    """Says nothing; the default of the Python API."""

    @contextmanager
    def stage(
        self,
        name: str,
        total: float | None = None,
        unit: str = "",
        *,
        expected_seconds: float | None = None,
    ) -> Iterator[Stage]:
        yield self

    def advance(self, amount: float = 1) -> None:
        """A silent stage is the silent progress itself."""

    def note(self, text: str) -> None:
        """Says nothing."""


class PlainStage:
    """A stage that prints lines: the first after ``PLAIN_SECONDS``, or at once where it is expected
    to take that long.
    """

    def __init__(self, meter: Meter, note: Callable[[str], None]) -> None:
        self.meter, self.note = meter, note
        self.said = meter.began
        if (meter.expected_seconds or 0.0) >= PLAIN_SECONDS:
            note(meter.line())

    def advance(self, amount: float = 1) -> None:
        self.meter.advance(amount)
        if self.meter.clock() - self.said >= PLAIN_SECONDS and self.meter.done != self.meter.total:
            self.said = self.meter.clock()
            self.note(self.meter.line())


class PlainProgress(Progress):
    """Lines of text, for logs and pipes."""

    def __init__(
        self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.stream, self.clock = stream, clock

    @contextmanager
    def stage(
        self,
        name: str,
        total: float | None = None,
        unit: str = "",
        *,
        expected_seconds: float | None = None,
    ) -> Iterator[Stage]:
        meter = Meter(name, total, unit, expected_seconds, self.clock)
        yield PlainStage(meter, self.note)
        if meter.elapsed >= WORTH_TELLING_SECONDS:
            self.note(meter.finished_line())

    def note(self, text: str) -> None:
        print(text, file=self.stream or sys.stderr, flush=True)


class RichStage:
    """A stage that is a bar."""

    def __init__(
        self, meter: Meter, bars: RichBars, task: TaskID, note: Callable[[str], None]
    ) -> None:
        self.meter, self.bars, self.task, self.note = meter, bars, task, note

    def advance(self, amount: float = 1) -> None:
        self.meter.advance(amount)
        self.bars.update(self.task, completed=self.meter.done)


class RichProgress(Progress):
    """Bars on a terminal; a finished stage leaves one line, and only if it took long enough."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.console, self.clock = console, clock
        self.open_stages = 0
        self.bars = _bars(console)

    @contextmanager
    def stage(
        self,
        name: str,
        total: float | None = None,
        unit: str = "",
        *,
        expected_seconds: float | None = None,
    ) -> Iterator[Stage]:
        meter = Meter(name, total, unit, expected_seconds, self.clock)
        task = self.bars.add_task(name, total=total, meter=meter)
        self.bars.start()
        self.open_stages += 1
        try:
            yield RichStage(meter, self.bars, task, self.note)
        finally:
            self.open_stages -= 1
            self.bars.remove_task(task)
            if not self.open_stages:
                self.bars.stop()
                self.bars = _bars(self.console)
        if meter.elapsed >= WORTH_TELLING_SECONDS:
            self.note(meter.finished_line())

    def note(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False)


def _bars(console: Console) -> RichBars:
    """Name, bar, amount, elapsed and left on one line; gone when stopped."""
    from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task
    from rich.progress import Progress as RichBars
    from rich.table import Column
    from rich.text import Text

    class MeterColumn(ProgressColumn):
        """What the stage's own meter says; rich's estimate needs two advances, ours one."""

        max_refresh = 0.5

        def __init__(self, show: Callable[[Meter], str]) -> None:
            super().__init__(Column(no_wrap=True))
            self.show = show

        def render(self, task: Task) -> Text:
            return Text(self.show(task.fields["meter"]))

    spinner, bar = SpinnerColumn(), BarColumn(bar_width=BAR_WIDTH)
    name, figures = MeterColumn(lambda meter: meter.name), MeterColumn(Meter.figures_text)
    narrow = MeterColumn(lambda meter: meter.short_line(console.width - 3))
    wide = console.width >= WIDE_COLUMNS
    columns = (spinner, name, bar, figures) if wide else (spinner, narrow)
    return RichBars(*columns, console=console, transient=True)


def stderr_progress() -> Progress:
    """Bars if stderr is a terminal, plain lines if not."""
    if not sys.stderr.isatty():
        return PlainProgress()
    from rich.console import Console

    return RichProgress(Console(stderr=True))
