"""Everything that reaches the terminal: progress bars, finished steps, tables and JSON."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bars
from rich.progress import Task as Row
from rich.table import Table

from builder.progress import Progress, Silent, Task


class _Bar:
    def __init__(self, bars: Bars, task: TaskID) -> None:
        self._bars, self._task = bars, task

    def advance(self, amount: int) -> None:
        self._bars.advance(self._task, amount)

    def note(self, text: str) -> None:
        self._bars.update(self._task, note=text)


class _Amount(ProgressColumn):
    """How much of a task is done, by the columns of its unit; nothing where the total is not known."""

    def __init__(self) -> None:
        super().__init__()
        self._bytes = (BarColumn(24), DownloadColumn(), TransferSpeedColumn())
        self._others = (BarColumn(24), MofNCompleteColumn(), TextColumn("{task.fields[unit]}"))

    def render(self, task: Row) -> Table:
        grid = Table.grid(padding=(0, 1))
        if task.fields["known"]:
            grid.add_row(*(column(task) for column in (self._bytes if task.fields["unit"] == "B" else self._others)))
        return grid


class Terminal:
    """Progress on stderr: bars only where stderr is a terminal, finished steps always. Threads may share one."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._lock = threading.Lock()
        self._bars: Bars | None = None
        self._running = 0

    def task(self, name: str, total: int | None = None, unit: str = "B") -> AbstractContextManager[Task]:
        if not self._console.is_terminal:
            return Silent().task(name)
        return self._bar(name, total, unit)

    def say(self, line: str) -> None:
        with suppress(OSError):  # whoever closed the terminal does not want the work, or its roll-back, to end there
            click.echo(line, err=True)

    @contextmanager
    def _bar(self, name: str, total: int | None, unit: str) -> Iterator[Task]:
        with self._shown() as bars:
            task = bars.add_task(name, total=total, note="", unit=unit, known=total is not None)
            yield _Bar(bars, task)
            bars.update(task, total=1 if total is None else total, completed=total or 1, note="")

    @contextmanager
    def _shown(self) -> Iterator[Bars]:
        """The bars of all tasks that run at the same time."""
        with self._lock:
            if self._bars is None:
                columns = (SpinnerColumn(finished_text="✓"), TextColumn("{task.description}"), _Amount())
                notes = TextColumn("{task.fields[note]}")
                self._bars = Bars(*columns, TimeElapsedColumn(), notes, console=self._console)
                self._bars.start()
            bars = self._bars
            self._running += 1
        try:
            yield bars
        finally:
            with self._lock:
                self._running -= 1
                if self._running == 0:
                    bars.stop()
                    self._bars = None


def progress(as_json: bool) -> Progress:
    """The terminal's progress, or silence when the output is for machines."""
    return Silent() if as_json else Terminal()


def print_json(value: Any) -> None:
    """`value` as indented JSON on stdout."""
    click.echo(json.dumps(value, indent=2, sort_keys=True))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[str] = ()) -> None:
    """Rows under column heads on stdout; columns named in `right` are set flush right. Plain text in a pipe."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    width = None if sys.stdout.isatty() else 200
    Console(highlight=False, markup=False, width=width).print(table)


def human(size: float) -> str:
    """A number of bytes with a binary unit: '4.1 GiB'."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
