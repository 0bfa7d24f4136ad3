"""The one way in which a deploy runs commands on a host: here or over ssh, for real or only shown.

What only looks goes through `Shell.ask` and always runs. What changes anything goes through `Shell.do`: it is recorded,
and with `dry` it is recorded only.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from builder.command import tail
from builder.errors import BuilderError


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    argv: tuple[str, ...]
    status: int  # 128 + N when signal N ended it
    out: bytes
    err: bytes

    @property
    def text(self) -> str:
        """Standard output, without the last newline."""
        return self.out.decode(errors="replace").rstrip("\n")

    def check(self, hint: str | None = None) -> Done:
        """Itself. Raises BuilderError with the command and what it said when its status is not 0."""
        if self.status != 0:
            said = tail(self.err) or tail(self.out) or "it said nothing"
            raise BuilderError(f"exit {self.status}: {said}", where=shown(self.argv), hint=hint)
        return self


class Channel(Protocol):
    """How a command reaches the host. Implementations: `Local` and `Ssh` in `builder.deploy.channel`."""

    @property
    def name(self) -> str:
        """As messages name it: ``this machine``, ``ssh root@pve``."""

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | Path | None = None,
        timeout: float | None = None,
        output: Callable[[bytes], None] | None = None,
    ) -> Done:
        """Run `argv` to its end with an empty environment but PATH, HOME and LC_ALL=C.

        `stdin` is fed as it is, a path's content streamed. `timeout` is in seconds. `output` gets the standard output
        piece by piece instead of `Done.out`. Raises AwayError when the host cannot be reached: LostError when the line
        dropped while the command ran, so that nobody knows how it ended, LateError when the time is over.
        """


class AwayError(BuilderError):
    """The host does not answer now: it cannot be reached."""


class LostError(AwayError):
    """The line to the host dropped while a command ran: look at the host's tasks and locks, assume nothing."""


class LateError(AwayError):
    """A command was not done in its time, as happens when a line is silently gone."""


@dataclass
class Shell:
    """Runs, records and checks the commands of one deploy."""

    channel: Channel
    dry: bool = False
    check: Callable[[Sequence[str]], None] = lambda argv: None
    """Refuses (UsageError) a command that the host would not know; called before anything runs."""
    record: list[str] = field(default_factory=list)
    """What `do` ran or would run, in order, as a person would type it."""

    def ask(
        self,
        *argv: str,
        stdin: bytes | None = None,
        timeout: float | None = 60,
        output: Callable[[bytes], None] | None = None,
    ) -> Done:
        """Run what changes nothing, dry or not. Raises BuilderError as `Channel.run` does."""
        self.check(argv)
        return self.channel.run(argv, stdin=stdin, timeout=timeout, output=output)

    def do(self, *argv: str, stdin: bytes | Path | None = None, timeout: float | None = None, note: str = "") -> Done:
        """Run what changes something; when dry it only goes to the record. `note` says what stdin is, if not a file.

        A secret goes through `stdin`, never `argv`. Raises BuilderError as `Channel.run` does.
        """
        self.check(argv)
        fed = f" < {shlex.quote(str(stdin))}" if isinstance(stdin, Path) else f" < [{note or 'input'}]" if stdin else ""
        self.record.append(shown(argv) + fed)
        if self.dry:
            return Done(tuple(argv), 0, b"", b"")
        return self.channel.run(argv, stdin=stdin, timeout=timeout)


def shown(argv: Sequence[str]) -> str:
    """A command as a person would type it."""
    return shlex.join(argv)
