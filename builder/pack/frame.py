"""Turn a segment into its zstd frame, reading and verifying the files of the layers."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import zstandard

from builder.errors import BuilderError
from builder.pack.content import Member
from builder.pack.header import Ranges, header, padding
from builder.pack.segment import MOST, Piece, Segment
from builder.tree import holes

END = bytes(1024)
"""What ends a tar: two blocks of zeros."""


@dataclass(frozen=True)
class Frame:
    """A segment's frame, ready to be written."""

    data: bytes
    sha256: str  # of `data`
    tar_size: int  # bytes that it unpacks to


class Chain:
    """The sha256 of a large file whose pieces are read by several threads: each adds its bytes when its turn comes."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._turn = 0
        self._broken = False
        self._change = threading.Condition()

    def add(self, number: int, data: bytes) -> str:
        """Wait for piece `number` - 1, then add `data`; the digest so far. Raises RuntimeError when a piece failed."""
        with self._change:
            self._change.wait_for(lambda: self._broken or self._turn == number)
            if self._broken:
                raise RuntimeError("an earlier piece of the file failed")
        self._digest.update(data)
        with self._change:
            self._turn += 1
            self._change.notify_all()
        return self._digest.hexdigest()

    def give_up(self) -> None:
        """Wake those who wait: a piece will never come."""
        with self._change:
            self._broken = True
            self._change.notify_all()


def compress(segment: Segment, level: int, chain: Chain | None) -> Frame:
    """The frame of `segment`: checksummed, its content's size in its header, made by one thread.

    `chain` is shared by all segments of one large file, and None for others.
    Raises BuilderError naming layer and path when a file cannot be read, or is not what its layer's index says.
    """
    try:
        raw = b"".join(_tar_bytes(segment, chain))
    except BaseException:
        if chain is not None:
            chain.give_up()
        raise
    return _frame(raw, level)


def end_frame(level: int) -> Frame:
    """The frame that holds the tar's end."""
    return _frame(END, level)


def _frame(raw: bytes, level: int) -> Frame:
    data = zstandard.ZstdCompressor(level=level, write_checksum=True).compress(raw)
    return Frame(data, hashlib.sha256(data).hexdigest(), len(raw))


def _tar_bytes(segment: Segment, chain: Chain | None) -> Iterator[bytes]:
    for piece in segment.pieces:
        entry = piece.member.entry
        if entry.type != "file" or entry.size == 0:
            yield header(entry)
            continue
        data = _read(piece, chain)
        zeros = holes.zero_blocks(data, len(data)) if entry.sparse else []
        if piece.is_first:
            yield header(entry, _sparse_map(piece, zeros) if entry.sparse else None)
        if zeros:
            yield from (data[start : start + length] for start, length in holes.data_ranges(zeros, len(data)))
        else:
            yield data
        if piece.is_last:
            yield padding(entry.size)  # what a sparse file leaves out is whole tar blocks


def _sparse_map(piece: Piece, zeros: list[int]) -> Ranges:
    """The map of the whole file that begins with `piece`, whose own zero blocks are known."""
    size = piece.member.entry.size
    found = list(zeros)
    for start in range(MOST, size, MOST):
        data = _read_part(piece.member, start, min(size, start + MOST))
        found += [start + zero for zero in holes.zero_blocks(data, len(data))]
    return holes.data_ranges(found, size)


def _read(piece: Piece, chain: Chain | None) -> bytes:
    """The bytes of `piece`, verified unless new; of a large file the whole is verified with the last piece."""
    member = piece.member
    data = _read_part(member, piece.start, piece.stop)
    if member.is_new:
        return data
    digest = hashlib.sha256(data).hexdigest() if chain is None else chain.add(piece.number, data)
    if piece.is_last and digest != member.entry.sha256:
        raise _damaged(member, "was changed after it was captured")
    return data


def _read_part(member: Member, start: int, stop: int) -> bytes:
    place = os.path.join(member.tree, member.entry.path)
    try:
        descriptor = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if os.fstat(descriptor).st_size != member.entry.size:
                raise _damaged(member, "has another size than when it was captured")
            data = os.pread(descriptor, stop - start, start)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _damaged(member, error.strerror or str(error)) from error
    if len(data) != stop - start:
        raise _damaged(member, "ends early")
    return data


def _damaged(member: Member, what: str) -> BuilderError:
    return BuilderError(
        f"{member.entry.path!a} {what}",
        where=f"layer {member.layer}",
        hint="run `builder store verify`, then build again",
    )
