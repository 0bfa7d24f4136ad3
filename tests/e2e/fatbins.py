"""Fat binaries and ELF files made for tests, after the description in `builder.gpucode.fatbin`."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

SUFFIXES = {"": 0, "a": 0x100000, "f": 0x200000}


@dataclass(frozen=True)
class Code:
    """One entry: PTX or machine code."""

    kind: str  # ptx | cubin
    arch: int
    suffix: str = ""
    isa: tuple[int, int] = (8, 7)
    payload: bytes = b"code"
    options: bytes = b""

    def pack(self) -> bytes:
        """The entry's bytes, stored plain."""
        payload = self.payload + bytes(-len(self.payload) % 8)
        extra = b""
        if self.kind == "ptx":  # the driver wants options, even empty ones
            extra = struct.pack("<II", 72, len(self.options)) + self.options
            extra += bytes(8 - len(extra) % 8)
        minor_major = (self.isa[1], self.isa[0]) if self.kind == "ptx" else (7, 1)
        kind = {"ptx": 1, "cubin": 2}[self.kind]
        flags = 0x11 | SUFFIXES[self.suffix]
        head = struct.pack("<HHIQII", kind, 0x0101, 64 + len(extra), len(payload), 0, 64 if extra else 0)
        head += struct.pack("<HHIIIQQQ", *minor_major, self.arch, 0, 0, flags, 0, 0)
        return head + extra + payload


def container(*codes: Code, room: int = 0) -> bytes:
    """One container; `room` bytes of zeros follow, as slimming leaves them."""
    entries = b"".join(code.pack() for code in codes)
    return struct.pack("<4sHHQ", b"\x50\xed\x55\xba", 1, 16, len(entries)) + entries + bytes(room)


def elf(sections: Mapping[str, bytes]) -> bytes:
    """A little-endian ELF64 file with these sections and nothing to run."""
    names = b"\0" + b"".join(name.encode() + b"\0" for name in (*sections, ".shstrtab"))
    contents = {**sections, ".shstrtab": names}
    rows = [bytes(64)]
    body = b""
    for name, content in contents.items():
        offset = 64 + len(body)
        place = names.index(b"\0" + name.encode() + b"\0") + 1
        rows.append(struct.pack("<IIQQQQIIQQ", place, 1, 0, 0, offset, len(content), 0, 0, 8, 0))
        body += content + bytes(-len(content) % 8)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    head = struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 0, 64 + len(body), 0, 64, 0, 0, 64, len(rows), len(rows) - 1)
    return ident + head + body + b"".join(rows)
