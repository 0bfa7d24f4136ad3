"""Tar headers as bytes: ustar, with a PAX header (POSIX.1-2001, pax) only where ustar cannot say it.

Written here and not by tarfile, because Proxmox's tar must get binary attribute values, names that are not UTF-8 and
sparse maps exactly, and because these bytes decide whether two builds are equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from builder.tree import Entry

BLOCK = 512
_SIZE_MAX = 8**11 - 1
_ID_MAX = 8**7 - 1
_TYPES = {"file": b"0", "hardlink": b"1", "link": b"2", "dir": b"5", "fifo": b"6"}

Ranges = Sequence[tuple[int, int]]
"""The parts of a file that hold data: offset and length, ascending."""


def member_name(entry: Entry) -> bytes:
    """The member's name in the tar: from `./`, and a folder's ends in a slash."""
    name = b"./" + entry.path.encode("utf-8", "surrogateescape")
    return name + b"/" if entry.type == "dir" and entry.path else name


def header(entry: Entry, ranges: Ranges | None = None) -> bytes:
    """All that stands before a member's data.

    With `ranges` the file is written in the sparse format 1.0 (GNU tar manual, "Storing Sparse Files"): what is
    returned ends with the map, and only the bytes in `ranges` follow.
    """
    name = member_name(entry)
    target = entry.target.encode("utf-8", "surrogateescape")
    if entry.type == "hardlink":
        target = b"./" + target
    size = entry.size
    xattrs = () if entry.type == "hardlink" else entry.xattrs
    records = {b"SCHILY.xattr." + key.encode("utf-8", "surrogateescape"): value for key, value in xattrs}
    sparse_map = b""
    if ranges is not None:
        sparse_map = _padded(b"%d\n" % len(ranges) + b"".join(b"%d\n%d\n" % pair for pair in ranges))
        records |= {
            b"GNU.sparse.major": b"1",
            b"GNU.sparse.minor": b"0",
            b"GNU.sparse.name": name,
            b"GNU.sparse.realsize": b"%d" % size,
        }
        size = len(sparse_map) + sum(length for _, length in ranges)
        folder, _, base = name.rpartition(b"/")
        name = folder + b"/GNUSparseFile.0/" + base
    elif len(name) > 100:
        records[b"path"] = name
    if len(target) > 100:
        records[b"linkpath"] = target
    for key, number, limit in ((b"size", size, _SIZE_MAX), (b"uid", entry.uid, _ID_MAX), (b"gid", entry.gid, _ID_MAX)):
        if number > limit:
            records[key] = b"%d" % number
    main = _ustar(name, _TYPES[entry.type], entry.mode, entry.uid, entry.gid, size, entry.mtime, target)
    return _pax(records) + main + sparse_map


def padding(size: int) -> bytes:
    """The zeros that follow a member's `size` bytes of data."""
    return bytes(-size % BLOCK)


def _padded(data: bytes) -> bytes:
    return data + padding(len(data))


def _pax(records: Mapping[bytes, bytes]) -> bytes:
    if not records:
        return b""
    body = b"".join(_record(key, value) for key, value in sorted(records.items()))
    return _ustar(b"././@PaxHeader", b"x", 0o644, 0, 0, len(body), 0, b"") + _padded(body)


def _record(key: bytes, value: bytes) -> bytes:
    """`LENGTH KEY=VALUE` and a newline, where the length counts itself."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _ustar(name: bytes, kind: bytes, mode: int, uid: int, gid: int, size: int, mtime: int, target: bytes) -> bytes:
    fields = (
        name[:100].ljust(100, b"\0"),
        b"%07o\0" % mode,
        b"%07o\0" % (uid if uid <= _ID_MAX else 0),
        b"%07o\0" % (gid if gid <= _ID_MAX else 0),
        b"%011o\0" % (size if size <= _SIZE_MAX else 0),
        b"%011o\0" % mtime,
        b" " * 8,
        kind,
        target[:100].ljust(100, b"\0"),
        b"ustar\x0000",
        bytes(32 + 32),
        b"%07o\0%07o\0" % (0, 0),
    )
    block = b"".join(fields).ljust(BLOCK, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
