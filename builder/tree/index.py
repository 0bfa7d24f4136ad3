"""The index of a tree: its members in order, one digest over them, and the stat data that shows later changes."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from builder.errors import BuilderError
from builder.tree.entry import Entry

_MAGIC = b"builder index 1"


STAT = struct.Struct("<qqqQ")
"""What the kernel keeps of a member, all as long as its bytes stay: size, mtime and ctime in nanoseconds, inode."""


def order(path: str) -> str:
    """The sort key of a path: name by name, so that a folder's whole content follows it at once."""
    return path.replace("/", "\0")


@dataclass(frozen=True)
class Index:
    """A tree's members sorted by `order`, their digest, and one packed `STAT` a member (none when made by hand)."""

    entries: tuple[Entry, ...]
    digest: str
    stats: bytes = b""

    @classmethod
    def of(cls, entries: Iterable[Entry], stats: bytes = b"") -> Index:
        """The index of `entries`, which are in order.

        The digest is the sha256 over one line a member, in order: the JSON array
        ``[path,type,mode,uid,gid,size,mtime,target,sha256,[[name,hex],...],opaque,sparse]``, ASCII, without blanks,
        ended by a newline. Nothing of `stats` enters it.
        """
        kept = tuple(entries)
        return cls(kept, hashlib.sha256(_lines(kept)).hexdigest(), stats)

    @property
    def size(self) -> int:
        """Bytes in files; a file with several names counts once."""
        return sum(entry.size for entry in self.entries)

    @property
    def files(self) -> int:
        """How many files there are; one with several names counts as often."""
        return sum(entry.type in ("file", "hardlink") for entry in self.entries)

    def save(self, path: Path) -> None:
        """Write the index as one checksummed zstd frame. Raises BuilderError when it cannot be written."""
        lines = _lines(self.entries)
        body = b"%b %b %d\n%b%b" % (_MAGIC, self.digest.encode(), len(lines), lines, self.stats)
        try:
            path.write_bytes(zstandard.ZstdCompressor(level=1, write_checksum=True).compress(body))
        except OSError as error:
            raise BuilderError(error.strerror or str(error), where=path) from error

    @classmethod
    def load(cls, path: Path) -> Index:
        """The index that `save` wrote. Raises BuilderError when it cannot be read or is damaged."""
        try:
            body = zstandard.ZstdDecompressor().decompress(path.read_bytes())
            header, _, rest = body.partition(b"\n")
            magic, digest, length = header.rsplit(b" ", 2)
            lines, stats = rest[: int(length)], rest[int(length) :]
            if magic != _MAGIC or hashlib.sha256(lines).hexdigest().encode() != digest:
                raise ValueError("digest does not match")
            rows = json.loads(b"[%b]" % lines.rstrip(b"\n").replace(b"\n", b","))
            return cls(tuple(map(_entry, rows)), digest.decode(), stats)
        except OSError as error:
            raise BuilderError(error.strerror or str(error), where=path) from error
        except (ValueError, TypeError, MemoryError, zstandard.ZstdError) as error:
            raise BuilderError(f"damaged index of a layer ({error})", where=path, hint="rebuild the layer") from error


def _lines(entries: Iterable[Entry]) -> bytes:
    encode = json.JSONEncoder(separators=(",", ":")).encode
    return "".join(
        encode((*entry[:9], [(name, value.hex()) for name, value in entry.xattrs], entry.opaque, entry.sparse)) + "\n"
        for entry in entries
    ).encode("ascii")


def _entry(row: list[Any]) -> Entry:
    row[9] = tuple((name, bytes.fromhex(value)) for name, value in row[9]) if row[9] else ()
    return Entry._make(row)
