"""A template in a file of its own."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from builder.pack.earlier import Reading
from builder.pack.frame import PAGE

_BLOCK = 8 << 20
"""Bytes written at a time."""

_REFUSED = (errno.EINVAL, errno.EOPNOTSUPP)
"""What file systems say that take O_DIRECT when it is set and not when it is used, or not at such a place."""


class NewFile:
    """A new template in an empty file, open as `descriptor`.

    Its frames go to the disk itself where the file system can do that (open(2), O_DIRECT): to copy what nobody reads
    soon into the page cache costs more than to hash it, and takes the place of layers that are yet to be packed.
    What is kept of the earlier template are blocks that both files share where the file system can do that
    (copy_file_range(2)).
    """

    def __init__(self, descriptor: int, reading: Reading | None) -> None:
        self._descriptor = descriptor
        self._reading = reading
        self._block = mmap.mmap(-1, _BLOCK)  # begins with a page, as the disk wants it
        self._filled = 0
        self._is_direct = False
        with suppress(OSError):
            self._set_direct(True)

    def add(self, data: bytes | memoryview) -> None:
        """Go on with `data`. Raises OSError."""
        while data:
            part = data[: _BLOCK - self._filled]
            self._block[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            data = data[len(part) :]
            if self._filled == _BLOCK:
                self._flush()

    def keep(self, start: int, length: int) -> None:
        """Go on with a part of the earlier template, after whole pages. Raises OSError or DamagedTemplateError."""
        assert self._reading is not None
        self._flush()
        stop = start + length
        with self._through_cache(), suppress(OSError):  # where it does not work between two files, they are written
            while copied := os.copy_file_range(self._reading.descriptor, self._descriptor, stop - start, start):
                start += copied
        for part in self._reading.parts(start, stop - start):
            self.add(part)

    def finish(self) -> None:
        """Bring all to the disk. Raises OSError."""
        self._flush()
        os.fsync(self._descriptor)

    def _flush(self) -> None:
        if self._is_direct and self._filled % PAGE:  # the end
            self._set_direct(False)
        with memoryview(self._block) as block:
            at = 0
            while at < self._filled:
                try:
                    at += os.write(self._descriptor, block[at : self._filled])
                except OSError as error:
                    if error.errno not in _REFUSED or not self._is_direct:
                        raise
                    self._set_direct(False)
        self._filled = 0

    @contextmanager
    def _through_cache(self) -> Iterator[None]:
        was_direct = self._is_direct
        if was_direct:
            self._set_direct(False)
        yield
        if was_direct:
            self._set_direct(True)

    def _set_direct(self, wanted: bool) -> None:
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags | os.O_DIRECT if wanted else flags & ~os.O_DIRECT)
        self._is_direct = wanted
