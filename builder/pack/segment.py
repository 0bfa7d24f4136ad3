"""Cut the members of a template into segments: what becomes one zstd frame, and is known before a byte is read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii as quoted

import zstandard

from builder import canonical
from builder.pack.content import Member
from builder.pack.header import BLOCK
from builder.tree import Entry

FORMAT = 4
"""Raised when the same members would give other bytes: enters every identity."""

MEAN = 8 << 20
"""Bytes of tar in a segment, on average. Frames of 8 MiB cost 0.25 % in size against one frame."""

MOST = 16 << 20
"""A segment ends when it has reached this many bytes; a file above it is cut in pieces of this size, one a segment."""


@dataclass(frozen=True)
class Piece:
    """A member with its data, or one part of a large file's data: the `number`th `MOST` bytes of it."""

    member: Member
    number: int = 0

    @property
    def is_first(self) -> bool:
        return self.number == 0

    @property
    def start(self) -> int:
        return self.number * MOST

    @property
    def stop(self) -> int:
        return min(self.member.entry.size, self.start + MOST)

    @property
    def is_last(self) -> bool:
        return self.stop == self.member.entry.size


@dataclass(frozen=True)
class Segment:
    """Pieces that are compressed together, and the digest of all that decides the frame's bytes."""

    pieces: tuple[Piece, ...]
    identity: str
    size: int  # bytes of files


def cut(members: Iterable[Member], level: int) -> Iterator[Segment]:
    """The segments of a template, in order, as compressed with zstd's `level`.

    After each member a number drawn from the member's own digest decides whether the segment ends, so that the same
    run of members is cut alike wherever it stands and a change moves no cut but those beside it.
    """
    salt = canonical.digest([FORMAT, MEAN, MOST, level, zstandard.__version__, list(zstandard.ZSTD_VERSION)])
    pieces: list[Piece] = []
    digests: list[bytes] = []
    size = 0

    def flush() -> Iterator[Segment]:
        nonlocal size
        if pieces:
            yield Segment(tuple(pieces), _identity(salt, digests), size - BLOCK * len(pieces))
            pieces.clear()
            digests.clear()
            size = 0

    for member in members:
        digest = _digest(member.entry)
        if member.entry.size > MOST:
            yield from flush()
            for number in range(-(-member.entry.size // MOST)):
                piece = Piece(member, number)
                yield Segment((piece,), _identity(salt, [digest, b"%d" % number]), piece.stop - piece.start)
            continue
        pieces.append(Piece(member))
        digests.append(digest)
        length = BLOCK + member.entry.size
        size += length
        if size >= MOST or int.from_bytes(digest[:8], "big") < (length << 64) // MEAN:
            yield from flush()
    yield from flush()


def _digest(entry: Entry) -> bytes:
    return hashlib.sha256(row(entry).encode()).digest()


def row(entry: Entry) -> str:
    """All of `entry` that decides the bytes of its member, as `canonical.encode` would write it but much quicker.

    ``[path,type,mode,uid,gid,size,mtime,target,sha256,[[name,hex],...],sparse]``
    """
    xattrs = canonical.encode([[name, value.hex()] for name, value in entry.xattrs]).decode() if entry.xattrs else "[]"
    return (
        f'[{quoted(entry.path)},"{entry.type}",{entry.mode},{entry.uid},{entry.gid},{entry.size},{entry.mtime},'
        f'{quoted(entry.target)},"{entry.sha256}",{xattrs},{"true" if entry.sparse else "false"}]'
    )


def _identity(salt: str, digests: Sequence[bytes]) -> str:
    return hashlib.sha256(b"\n".join((salt.encode(), *digests))).hexdigest()
