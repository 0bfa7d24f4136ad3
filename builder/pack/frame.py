"""Turn a segment into its zstd frame, reading and verifying the files of the layers."""

from __future__ import annotations

import hashlib
import os
import struct
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import zstandard

from builder.errors import BuilderError
from builder.pack.content import Member
from builder.pack.header import Ranges, header, padding
from builder.pack.segment import MOST, Piece, Segment
from builder.tree import holes

END = bytes(1024)
"""What ends a tar: two blocks of zeros."""

PAGE = 4096
"""A frame takes whole pages, so that a file system that can share blocks between files may share frames."""

_SKIPPABLE = struct.Struct("<II")
_SKIPPABLE_MAGIC = 0x184D2A50


@dataclass(frozen=True)
class Frame:
    """A segment's frame, ready to be written."""

    data: bytes
    tar_size: int  # bytes that it unpacks to


class Chain:
    """The sha256 of a large file whose pieces are read by several threads: each adds its bytes when its turn comes."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._turn = 0
        self._missing: int | None = None
        self._change = threading.Condition()

    def add(self, number: int, data: memoryview) -> str:
        """Wait for the piece before, then add `data`; the digest so far. Raises RuntimeError when one before failed."""
        with self._change:
            self._change.wait_for(lambda: self._turn == number or self._lost_before(number))
            if self._turn != number:
                raise RuntimeError("an earlier piece of the file failed")
        self._digest.update(data)
        with self._change:
            self._turn += 1
            self._change.notify_all()
        return self._digest.hexdigest()

    def give_up(self, number: int) -> None:
        """Wake those who wait for piece `number`: it will never come."""
        with self._change:
            self._missing = number if self._missing is None else min(number, self._missing)
            self._change.notify_all()

    def _lost_before(self, number: int) -> bool:
        return self._missing is not None and self._missing < number


def compress(segment: Segment, level: int, chain: Chain | None, buffer: bytearray) -> Frame:
    """The frame of `segment`: checksummed, its content's size in its header, made by one thread.

    `chain` is shared by all segments of one large file, and None for others. `buffer` is this call's alone while it
    lasts; what is in it does not matter, and it grows as needed.
    Raises BuilderError naming layer and path when a file cannot be read, or is not what its layer's index says.
    """
    try:
        size = _fill(buffer, list(_tar_bytes(segment, chain)), chain)
    except BaseException:
        if chain is not None:
            chain.give_up(segment.pieces[0].number)
        raise
    with memoryview(buffer) as view, view[:size] as tar:
        return Frame(_padded(_compressor(level).compress(tar)), size)


def end_frame(level: int) -> Frame:
    """The frame that holds the tar's end."""
    return Frame(_compressor(level).compress(END), len(END))


def _compressor(level: int) -> zstandard.ZstdCompressor:
    """One for frames of up to `MOST` bytes, which the window holds whole.

    With zstd's own choice for its levels 3 and 4 the search costs a quarter more, for 0.6 % in size over a CUDA
    template: matches of five bytes are rare in machine code, and the tables outgrow a core's second cache.
    """
    chosen = zstandard.ZstdCompressionParameters.from_level(level, write_checksum=True)
    if chosen.strategy == zstandard.STRATEGY_DFAST:
        chosen = zstandard.ZstdCompressionParameters.from_level(
            level, window_log=24, chain_log=15, min_match=6, write_checksum=True
        )
    return zstandard.ZstdCompressor(compression_params=chosen)


def _padded(frame: bytes) -> bytes:
    """`frame` and a skippable frame (RFC 8878, 3.1.2) up to a whole number of `PAGE`s."""
    rest = -len(frame) % PAGE
    if 0 < rest < _SKIPPABLE.size:
        rest += PAGE
    return frame + _SKIPPABLE.pack(_SKIPPABLE_MAGIC, rest - _SKIPPABLE.size).ljust(rest, b"\0") if rest else frame


def _fill(buffer: bytearray, parts: Sequence[bytes | Piece], chain: Chain | None) -> int:
    """Put `parts` one after the other into `buffer`, the pieces' data read in place; the bytes in all."""
    size = sum(part.stop - part.start if isinstance(part, Piece) else len(part) for part in parts)
    if size > len(buffer):
        buffer.extend(bytes(size - len(buffer)))
    end = 0
    with memoryview(buffer) as view:
        for part in parts:
            start = end
            if isinstance(part, Piece):
                end += part.stop - part.start
                with view[start:end] as place:
                    _read(part, place, chain)
            else:
                end += len(part)
                view[start:end] = part
    return size


def _tar_bytes(segment: Segment, chain: Chain | None) -> Iterator[bytes | Piece]:
    """The bytes of the tar, and in their place the pieces that are to be read whole."""
    for piece in segment.pieces:
        entry = piece.member.entry
        if entry.type != "file" or entry.size == 0:
            yield header(entry)
            continue
        if entry.sparse:
            yield from _sparse_bytes(piece, chain)
        else:
            if piece.is_first:
                yield header(entry)
            yield piece
        if piece.is_last:
            yield padding(entry.size)  # what a sparse file leaves out is whole tar blocks


def _sparse_bytes(piece: Piece, chain: Chain | None) -> Iterator[bytes]:
    data = bytearray(piece.stop - piece.start)
    with memoryview(data) as view:
        _read(piece, view, chain)
    zeros = holes.zero_blocks(data, len(data))
    if piece.is_first:
        yield header(piece.member.entry, _sparse_map(piece, zeros))
    yield from (bytes(data[start : start + length]) for start, length in holes.data_ranges(zeros, len(data)))


def _sparse_map(piece: Piece, zeros: list[int]) -> Ranges:
    """The map of the whole file that begins with `piece`, whose own zero blocks are known."""
    size = piece.member.entry.size
    found = list(zeros)
    data = bytearray(MOST)
    for start in range(MOST, size, MOST):
        length = min(size - start, MOST)
        with memoryview(data) as view, view[:length] as place:
            _read_part(piece.member, start, place)
        found += [start + zero for zero in holes.zero_blocks(data, length)]
    return holes.data_ranges(found, size)


def _read(piece: Piece, place: memoryview, chain: Chain | None) -> None:
    """Read `piece` into `place`, verified unless new; of a large file the whole is verified with the last piece."""
    member = piece.member
    _read_part(member, piece.start, place)
    if member.is_new:
        return
    digest = hashlib.sha256(place).hexdigest() if chain is None else chain.add(piece.number, place)
    if piece.is_last and digest != member.entry.sha256:
        raise _damaged(member, "was changed after it was captured")


def _read_part(member: Member, start: int, place: memoryview) -> None:
    path = os.path.join(member.tree, member.entry.path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if os.fstat(descriptor).st_size != member.entry.size:
                raise _damaged(member, "has another size than when it was captured")
            count = os.preadv(descriptor, [place], start)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _damaged(member, error.strerror or str(error)) from error
    if count != len(place):
        raise _damaged(member, "ends early")


def _damaged(member: Member, what: str) -> BuilderError:
    return BuilderError(
        f"{member.entry.path!a} {what}",
        where=f"layer {member.layer}",
        hint="run `builder store verify`, then build again",
    )
