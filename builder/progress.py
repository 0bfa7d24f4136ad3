"""How long work reports: one narrow interface, so that only the command line ever prints."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Task(Protocol):
    """One running piece of work."""

    def advance(self, amount: int) -> None:
        """Count `amount` more units (bytes, files) as done; safe to call from any thread."""

    def note(self, text: str) -> None:
        """Replace the short text beside the bar."""


class Progress(Protocol):
    """Where tasks are shown. Implementations: `Silent` here, the terminal's in `builder.console`."""

    def task(self, name: str, total: int | None = None, unit: str = "B") -> AbstractContextManager[Task]:
        """A task that lives for a `with` block; `total` in `unit`s, None when unknown."""

    def say(self, line: str) -> None:
        """One finished step, as one line (shown on stderr, dropped by `Silent`)."""


class _SilentTask:
    def advance(self, amount: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass


class Silent:
    """Shows nothing: for tests and for `--json`."""

    def task(self, name: str, total: int | None = None, unit: str = "B") -> AbstractContextManager[Task]:
        return nullcontext(_SilentTask())

    def say(self, line: str) -> None:
        pass
