"""What must not be cut short by a person's second Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that ask a program to end."""


@contextmanager
def shielded() -> Iterator[None]:
    """Let the signals that ask for an end do nothing for the block; those that came meanwhile are forgotten.

    They are caught and not ignored: what is ignored stays so in the programs that are started, which must end by them.
    In another thread than the main one, which alone runs handlers (Python's signal module), the block is run as it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[signal.Signals, Any] = {number: signal.signal(number, lambda *_: None) for number in NUMBERS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore() -> None:
    """Ignore them from now on: all is done, and what is left is the program's own end."""
    for number in NUMBERS:
        signal.signal(number, signal.SIG_IGN)
