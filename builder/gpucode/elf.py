"""The sections of an ELF64 file (elf(5)), by its headers alone."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from builder.errors import BuilderError
from builder.gpucode.view import View

MAGIC = b"\x7fELF"

_IDENT = MAGIC + b"\x02\x01"  # ELFCLASS64, ELFDATA2LSB: what runs on x86-64
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_NOBITS = 8  # SHT_NOBITS: takes no room in the file
_NAMES_MAX = 1 << 20  # bytes of all names together
_DAMAGED = "the section table of the ELF file is damaged or cut off"


@dataclass(frozen=True)
class Section:
    """A named part of a file."""

    name: str
    offset: int  # bytes from the start of the file
    size: int  # bytes

    @property
    def end(self) -> int:
        return self.offset + self.size


def sections(file: View) -> tuple[Section, ...]:
    """The sections that hold bytes, in the order of the table; none when `file` is no little-endian ELF64 file.

    Raises BuilderError when there is no table (what is in the file cannot be told then), or it or a section lies
    outside the file, and OSError.
    """
    if file.size < _HEADER.size:
        return ()
    ident, _, _, _, _, _, table, _, _, _, _, width, count, names = file.unpack(_HEADER, 0)
    if not ident.startswith(_IDENT):
        return ()
    if table == 0:
        raise BuilderError("the ELF file has no section table, so its GPU code is not found if it has any")
    if width != _SECTION.size or names >= count or table + width * count > file.size:
        raise BuilderError(_DAMAGED)
    rows = tuple(_SECTION.iter_unpack(file.read(table, width * count)))
    if len(rows) < count or rows[names][4] > file.size:
        raise BuilderError(_DAMAGED)
    strings = file.read(rows[names][4], min(rows[names][5], _NAMES_MAX))
    return tuple(_sections(file, rows, strings))


def _sections(file: View, rows: Iterable[tuple[int, ...]], strings: bytes) -> Iterator[Section]:
    for number, (name, kind, _, _, offset, size, *_) in enumerate(rows):
        if kind == _NOBITS:
            continue
        if offset + size > file.size:
            raise BuilderError(f"section {number} of the ELF file lies outside it: damaged or cut off")
        yield Section(strings[name : max(strings.find(b"\0", name), name)].decode("latin-1"), offset, size)
