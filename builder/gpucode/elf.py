"""The sections of an ELF64 file (elf(5)), by its headers alone."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from mmap import mmap

from builder.errors import BuilderError

MAGIC = b"\x7fELF"

_IDENT = MAGIC + b"\x02\x01"  # ELFCLASS64, ELFDATA2LSB: what runs on x86-64
_HEADER_SIZE = 64
_SECTION = struct.Struct("<IIQQQQIIQQ")
_NOBITS = 8  # SHT_NOBITS: takes no room in the file
_XINDEX = 0xFFFF  # SHN_XINDEX: the number does not fit and stands in section 0
_NAME_MAX = 256


@dataclass(frozen=True)
class Section:
    """A named part of a file."""

    name: str
    offset: int  # bytes from the start of the file
    size: int  # bytes

    @property
    def end(self) -> int:
        return self.offset + self.size


def sections(data: mmap | bytes) -> tuple[Section, ...]:
    """The sections that hold bytes, in the order of the table; none when `data` is no little-endian ELF64 file.

    Raises BuilderError when the table, a name or a section lies outside the file.
    """
    if len(data) < _HEADER_SIZE or data[: len(_IDENT)] != _IDENT:
        return ()
    (table,) = struct.unpack_from("<Q", data, 0x28)
    width, count, names = struct.unpack_from("<HHH", data, 0x3A)
    if table == 0:
        return ()
    if width != _SECTION.size or table + width > len(data):
        raise BuilderError("the section table of the ELF file is damaged or cut off")
    first = _SECTION.unpack_from(data, table)
    count = count or first[5]
    names = first[6] if names == _XINDEX else names
    if table + width * count > len(data) or names >= count:
        raise BuilderError("the section table of the ELF file is damaged or cut off")
    return tuple(_sections(data, table, count, names))


def _sections(data: mmap | bytes, table: int, count: int, names: int) -> Iterator[Section]:
    strings = _SECTION.unpack_from(data, table + _SECTION.size * names)[4]
    for at in range(table, table + _SECTION.size * count, _SECTION.size):
        name, kind, _, _, offset, size, *_ = _SECTION.unpack_from(data, at)
        start = strings + name
        if start > len(data) or (kind != _NOBITS and offset + size > len(data)):
            raise BuilderError(f"section {(at - table) // _SECTION.size} lies outside the file: damaged or cut off")
        if kind != _NOBITS:
            yield Section(data[start : start + _NAME_MAX].partition(b"\0")[0].decode("latin-1"), offset, size)
