"""Take whole pages out of the middle of a file, or make room for some, without moving what follows.

fallocate(2) with FALLOC_FL_COLLAPSE_RANGE and FALLOC_FL_INSERT_RANGE, which Python lacks: ext4 and XFS know them. The
numbers are those of linux/falloc.h. What follows leaves the page cache.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from pathlib import Path

_COLLAPSE_RANGE = 0x08
_INSERT_RANGE = 0x20

_libc = ctypes.CDLL(None, use_errno=True)


def insert(descriptor: int, offset: int, length: int) -> None:
    """Make a hole of `length` bytes at `offset`, which lies before the file's end. Raises OSError."""
    _fallocate(descriptor, _INSERT_RANGE, offset, length)


def collapse(descriptor: int, offset: int, length: int) -> None:
    """Take out `length` bytes from `offset` on, which end before the file does. Raises OSError."""
    _fallocate(descriptor, _COLLAPSE_RANGE, offset, length)


def works(folder: Path, page: int) -> bool:
    """Whether files in `folder` can be shifted by `page` bytes."""
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            os.ftruncate(file.fileno(), 3 * page)
            insert(file.fileno(), page, page)
            collapse(file.fileno(), page, page)
        except OSError:
            return False
        return os.fstat(file.fileno()).st_size == 3 * page


def _fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    if _libc.fallocate(descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(length)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
