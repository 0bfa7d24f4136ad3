"""Where a file's content has holes worth keeping.

A hole is decided by content, never by how a file system happens to have allocated the file: the same bytes give the
same holes on every machine.
"""

from __future__ import annotations

from collections.abc import Iterable

BLOCK = 16 << 10
"""An aligned block of this many zero bytes is a hole."""

WORTH = 1 << 20
"""A file is sparse when its holes are at least this many bytes together, and half of it."""

_ZEROS = bytes(BLOCK)


def zero_blocks(data: bytes | bytearray, length: int) -> list[int]:
    """Offsets of the whole, aligned zero blocks in the first `length` bytes of `data`."""
    return [start for start in range(0, length - BLOCK + 1, BLOCK) if data.startswith(_ZEROS, start)]


def are_worth(zeros: int, size: int) -> bool:
    """Whether `zeros` bytes in holes make a file of `size` bytes a sparse one.

    GNU tar (1.34) writes what is not a hole of such a file 512 bytes at a time, which costs more than to write a few
    zeros: CUDA's libraries, of which half a percent are zeros, took a host a tenth longer to unpack as sparse ones.
    """
    return zeros >= WORTH and 2 * zeros >= size


def data_ranges(zeros: Iterable[int], size: int) -> list[tuple[int, int]]:
    """Offset and length of what lies between the zero blocks (ascending) of a file of `size` bytes.

    A file that ends in a hole ends with the range (size, 0): how a sparse map says where the file ends.
    """
    ranges: list[tuple[int, int]] = []
    start = 0
    for zero in zeros:
        if zero > start:
            ranges.append((start, zero - start))
        start = zero + BLOCK
    return [*ranges, (start, size - start)]
