"""A switch by which one thread ends what others run."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class StoppedError(Exception):
    """This work was ended from outside: nobody waits for it any more."""


class Stop:
    """Off until `pull` is called, from any thread; then every run under it ends, and none begins."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pulled = False
        self._running: set[subprocess.Popen[bytes]] = set()

    def pull(self) -> None:
        """End all that runs under this switch, for good."""
        with self._lock:
            self._pulled = True
            for process in self._running:
                process.terminate()

    def check(self) -> None:
        """Raise StoppedError once the switch was pulled: for long work that runs no process."""
        if self._pulled:
            raise StoppedError

    @contextmanager
    def over(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        """Let `pull` terminate `process` while the block lasts. Raises StoppedError when it did."""
        with self._lock:
            self._running.add(process)
            if self._pulled:
                process.terminate()
        try:
            yield
        finally:
            with self._lock:
                self._running.discard(process)
        self.check()
