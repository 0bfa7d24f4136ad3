"""A terminal of its own for a command, joined to the caller's: what runs inside has no hand on the caller's.

A program that shares a terminal can type into it (TIOCSTI, ioctl_tty(2)), and so have commands run outside when it has
ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import termios
import tty
from collections.abc import Iterator
from types import FrameType
from typing import IO

_CHUNK = 65536


Ends = tuple[int, IO[bytes]]
"""A terminal: the side that is read and written here, and the one that the command has."""


@contextlib.contextmanager
def opened() -> Iterator[Ends | None]:
    """A new terminal of the size of stdin's; None where stdin is none. Closed at the end."""
    if not os.isatty(0):
        yield None
        return
    ours, number = os.openpty()
    try:
        with open(number, "rb", buffering=0) as theirs:
            _same_size(ours)
            yield ours, theirs
    finally:
        os.close(ours)


def join(ends: Ends) -> None:
    """Pass on what is typed and shown until nobody has the command's side open any more; it is closed here.

    The caller's terminal is raw meanwhile: keys such as Ctrl-C go to the command.
    """
    ours, theirs = ends
    theirs.close()
    out = next((number for number in (1, 2) if os.isatty(number)), 0)
    before = termios.tcgetattr(0)
    resized = signal.signal(signal.SIGWINCH, lambda number, frame: _same_size(ours, frame))
    try:
        tty.setraw(0, termios.TCSADRAIN)
        _relay(ours, out)
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
        signal.signal(signal.SIGWINCH, resized)


def _relay(ours: int, out: int) -> None:
    watched = [ours, 0]
    while True:
        ready, _, _ = select.select(watched, [], [])
        if ours in ready:
            try:
                shown = os.read(ours, _CHUNK)
            except OSError:  # EIO: the last one that had it open is gone
                return
            if not shown:
                return
            _write(out, shown)
        if 0 in ready:
            typed = os.read(0, _CHUNK)
            if typed:
                _write(ours, typed)
            else:
                watched = [ours]


def _write(to: int, data: bytes) -> None:
    while data:
        data = data[os.write(to, data) :]


def _same_size(ours: int, frame: FrameType | None = None) -> None:
    fcntl.ioctl(ours, termios.TIOCSWINSZ, fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8)))
