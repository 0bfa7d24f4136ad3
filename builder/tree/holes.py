"""Where a file's content has holes worth keeping.

A hole is decided by content, never by how a file system happens to have allocated the file: the same bytes give the
same holes on every machine.
"""

from __future__ import annotations

BLOCK = 16 << 10
"""An aligned block of this many zero bytes is a hole."""

WORTH = 1 << 20
"""A file is sparse when its holes are at least this many bytes together."""

_ZEROS = bytes(BLOCK)


def zero_blocks(data: bytes | bytearray, length: int) -> list[int]:
    """Offsets of the whole, aligned zero blocks in the first `length` bytes of `data`."""
    return [start for start in range(0, length - BLOCK + 1, BLOCK) if data.startswith(_ZEROS, start)]
