"""Fat binaries: the machine code and PTX that nvcc puts into a library, one container for each translation unit.

    container   u32 0xBA55ED50 | u16 1 | u16 16, its header's size | u64 size of the entries that follow
    entry  +0   u16 kind | u16 0x0101 | u32 size of its header | u64 size of its payload as stored
          +16   u32 packed size or 0 | u32 offset of the options or 0 | u16 minor, u16 major of the code version
          +28   u32 architecture | u32 offset, u32 length of a name | u64 flags | u64 0 | u64 unpacked size or 0

NVIDIA publishes no description. This one was read from the libraries of PyPI's CUDA 12 wheels and compared with what
cuobjdump lists of them. Only headers are read.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from builder.errors import BuilderError
from builder.gpucode import elf
from builder.gpucode.elf import Section
from builder.gpucode.view import View

MAGIC = b"\x50\xed\x55\xba"
SECTIONS = (".nv_fatbin", "__nv_relfatbin")
"""The sections that hold containers; the second those of relocatable device code."""

_CONTAINER = struct.Struct("<4sHHQ")
_ENTRY = struct.Struct("<HHIQIIHHIIIQQQ")
_ENTRY_VERSION = 0x0101
_HEADER_MAX = 4096
_SPECIFIC = 0x100000
_FAMILY = 0x200000
_MOST = 100_000  # containers and entries of one file; the fullest library known has 9,000
_ZEROS = bytes(1 << 16)


class Kind(Enum):
    """What an entry holds."""

    PTX = 1
    CUBIN = 2  # machine code


@dataclass(frozen=True, slots=True)
class Entry:
    """PTX or machine code for one architecture."""

    kind: Kind
    arch: int  # ten times the compute capability: 120 for 12.0
    suffix: str  # "a": this architecture only; "f": its family; "": no restriction
    version: tuple[int, int]  # of PTX: its ISA, as in (8, 7)
    offset: int  # of its header, bytes from the start of the file
    header: int  # bytes
    size: int  # bytes of the payload as stored
    unpacked: int  # bytes of the payload itself

    @property
    def name(self) -> str:
        """As nvcc names it: compute_90, sm_120a."""
        return f"{'compute' if self.kind is Kind.PTX else 'sm'}_{self.arch}{self.suffix}"

    @property
    def end(self) -> int:
        return self.offset + self.header + self.size


@dataclass(frozen=True, slots=True)
class Container:
    """What one translation unit brought."""

    section: str  # "" in a bare fat binary
    offset: int  # bytes from the start of the file
    entries: tuple[Entry, ...]

    @property
    def size(self) -> int:
        """Bytes of all payloads as stored."""
        return sum(entry.size for entry in self.entries)


def holds(head: bytes) -> bool:
    """Whether a file that begins like this may have GPU code; 4 bytes tell."""
    return head[:4] in (elf.MAGIC, MAGIC)


def read(path: Path) -> tuple[Container, ...]:
    """The containers of an ELF64 file, or of a bare fat binary, in the order of the file; none in any other file.

    Raises BuilderError when the file cannot be read or has GPU code that is not laid out as described above.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if size < _CONTAINER.size or not holds(os.pread(file.fileno(), 4, 0)):
                return ()
            return tuple(_containers(View(file.fileno(), size)))
    except BuilderError as error:
        raise BuilderError(error.what, where=path, hint="get the file again") from error
    except OSError as error:
        raise BuilderError(error.strerror or str(error), where=path) from error


def _containers(file: View) -> Iterator[Container]:
    left = _MOST
    end = 0
    for section in _sections(file):
        if section.offset < end:
            raise BuilderError("two sections of GPU code overlap: damaged")
        end = section.end
        for container in _section(file, section):
            left -= 1 + len(container.entries)
            if left < 0:
                raise BuilderError(f"more than {_MOST:,} pieces of GPU code: damaged")
            yield container


def _sections(file: View) -> list[Section]:
    if file.read(0, len(MAGIC)) == MAGIC:
        return [Section("", 0, file.size)]
    found = [section for section in elf.sections(file) if section.name in SECTIONS and section.size]
    return sorted(found, key=lambda section: section.offset)


def _section(file: View, section: Section) -> Iterator[Container]:
    at = section.offset
    while at < section.end:
        if section.end - at < _CONTAINER.size:
            raise BuilderError(f"the container at {at:#x} is cut off")
        magic, version, header, size = file.unpack(_CONTAINER, at)
        start = at + _CONTAINER.size
        if (magic, version, header) != (MAGIC, 1, _CONTAINER.size) or start + size > section.end:
            raise BuilderError(f"no container of a known layout at {at:#x} in {section.name or 'the file'}")
        yield Container(section.name, at, tuple(_entries(file, start, start + size)))
        at = _after_zeros(file, start + size, section.end)


def _entries(file: View, at: int, end: int) -> Iterator[Entry]:
    while at < end:
        if end - at < _ENTRY.size:
            raise BuilderError(f"the entry at {at:#x} is cut off")
        (kind, version, header, size, _, _, minor, major, arch, _, _, flags, _, unpacked) = file.unpack(_ENTRY, at)
        known = version == _ENTRY_VERSION and kind in (Kind.PTX.value, Kind.CUBIN.value)
        if not known or not _ENTRY.size <= header <= _HEADER_MAX or at + header + size > end:
            raise BuilderError(f"no entry of a known layout at {at:#x}")
        suffix = "a" if flags & _SPECIFIC else "f" if flags & _FAMILY else ""
        entry = Entry(Kind(kind), arch, suffix, (major, minor), at, header, size, unpacked or size)
        yield entry
        at = entry.end


def _after_zeros(file: View, at: int, end: int) -> int:
    """The first byte from `at` on that is not zero, or `end`; a file's holes are skipped, not read."""
    while at < end:
        block = file.read(at, min(len(_ZEROS), end - at))
        if not block or not _ZEROS.startswith(block):
            return at + len(block) - len(block.lstrip(b"\0"))
        at = file.after_hole(at + len(block))
    return end
