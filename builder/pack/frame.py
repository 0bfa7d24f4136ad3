"""Turn a segment into its zstd frame, reading and verifying the files of the layers."""

from __future__ import annotations

import hashlib
import os
import struct
import threading
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
    filler: bytes  # a skippable frame (RFC 8878, 3.1.2) up to a whole number of `PAGE`s
    tar_size: int  # bytes that both unpack to


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


class Buffers:
    """What one thread at a time makes segments in. They grow as needed, and what is in them does not matter."""

    def __init__(self) -> None:
        self.tar = bytearray()
        self.piece = bytearray()
        self.size = 0  # bytes of `tar` that are in use

    def put(self, data: bytes | memoryview) -> None:
        """The tar goes on with `data`."""
        with self.place(len(data)) as place:
            place[:] = data

    def place(self, length: int) -> memoryview:
        """The tar goes on with `length` bytes that are to be put here; to be released before anything else is put."""
        start, self.size = self.size, self.size + length
        return _grown(self.tar, self.size)[start : self.size]


def _grown(buffer: bytearray, size: int) -> memoryview:
    if size > len(buffer):
        buffer.extend(bytes(size - len(buffer)))
    return memoryview(buffer)


def compress(segment: Segment, level: int, chain: Chain | None, buffers: Buffers) -> Frame:
    """The frame of `segment`: checksummed, its content's size in its header, made by one thread.

    `chain` is shared by all segments of one large file, and None for others.
    Raises BuilderError naming layer and path when a file cannot be read, or is not what its layer's index says.
    """
    buffers.size = 0
    try:
        for piece in segment.pieces:
            _put(piece, chain, buffers)
    except BaseException:
        if chain is not None:
            chain.give_up(segment.pieces[0].number)
        raise
    with memoryview(buffers.tar) as view, view[: buffers.size] as tar:
        data = _compressor(level).compress(tar)
    return Frame(data, _filler(len(data)), buffers.size)


def end_frame(level: int) -> Frame:
    """The frame that holds the tar's end."""
    return Frame(_compressor(level).compress(END), b"", len(END))


def _compressor(level: int) -> zstandard.ZstdCompressor:
    """One for frames of up to `MOST` bytes.

    With zstd's own choice for its levels 3 and 4 the search costs more: matches of five bytes are rare in machine code,
    and the tables outgrow a core's second cache. Level 3 looks for one match at each place and not for a long and a
    short one, which takes nearly a fifth of the time off, for 0.4 % in size over a CUDA template and 1.7 % over a small
    system. A window of 4 MiB costs 0.3 % against that of a whole frame, whose decompression takes a tenth longer: it
    keeps a buffer of the window's size, which outgrows the caches.
    """
    own: dict[str, int] = {}
    if level == 3:
        own = {"strategy": zstandard.STRATEGY_FAST, "target_length": 0, "hash_log": 17, "min_match": 6}
    elif level == 4:
        own = {"chain_log": 15, "min_match": 6}
    if own:
        own["window_log"] = 22
    chosen = zstandard.ZstdCompressionParameters.from_level(level, write_checksum=True, **own)
    return zstandard.ZstdCompressor(compression_params=chosen)


def _filler(size: int) -> bytes:
    """What follows a frame of `size` bytes."""
    rest = -size % PAGE
    if 0 < rest < _SKIPPABLE.size:
        rest += PAGE
    return _SKIPPABLE.pack(_SKIPPABLE_MAGIC, rest - _SKIPPABLE.size).ljust(rest, b"\0") if rest else b""


def _put(piece: Piece, chain: Chain | None, buffers: Buffers) -> None:
    entry = piece.member.entry
    if entry.type != "file" or entry.size == 0:
        buffers.put(header(entry))
        return
    if entry.sparse:
        _put_sparse(piece, chain, buffers)
    else:
        if piece.is_first:
            buffers.put(header(entry))
        with buffers.place(piece.stop - piece.start) as place:
            _read(piece, place, chain)
    if piece.is_last:
        buffers.put(padding(entry.size))  # what a sparse file leaves out is whole tar blocks


def _put_sparse(piece: Piece, chain: Chain | None, buffers: Buffers) -> None:
    length = piece.stop - piece.start
    with _grown(buffers.piece, length) as view:
        with view[:length] as data:
            _read(piece, data, chain)
        zeros = holes.zero_blocks(buffers.piece, length)
        if piece.is_first:
            buffers.put(header(piece.member.entry, _sparse_map(piece, zeros)))
        for start, count in holes.data_ranges(zeros, length):
            buffers.put(view[start : start + count])


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
