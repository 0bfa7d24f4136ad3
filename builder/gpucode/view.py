"""A file of which only what is asked for is read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from struct import Struct
from typing import Any

from builder.errors import BuilderError


@dataclass(frozen=True, slots=True)
class View:
    """An open file. No memory map: threads wait for the disk side by side, and a file cut meanwhile is no SIGBUS."""

    fd: int
    size: int  # bytes

    def read(self, at: int, size: int) -> bytes:
        """Up to `size` bytes at `at`, fewer at the end of the file. Raises OSError."""
        return os.pread(self.fd, size, at)

    def unpack(self, layout: Struct, at: int) -> tuple[Any, ...]:
        """The fields at `at`, which the caller knows to lie in the file. Raises OSError, and BuilderError otherwise."""
        data = self.read(at, layout.size)
        if len(data) < layout.size:
            raise BuilderError("became shorter while it was read")
        return layout.unpack(data)

    def after_hole(self, at: int) -> int:
        """`at`, or where the hole ends in which it lies (lseek(2), SEEK_DATA)."""
        try:
            return max(at, os.lseek(self.fd, at, os.SEEK_DATA))
        except OSError:  # ENXIO: nothing but a hole up to the end of the file
            return self.size
