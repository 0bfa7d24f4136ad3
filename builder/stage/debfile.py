"""The file format of Debian packages (deb(5)): an ar(1) archive of two tars, control and data."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import zstandard

from builder.errors import BuilderError

_MAGIC = b"!<arch>\n"
_HEADER = 60  # bytes: the name in 16, time, owner, group and mode up to 48, then the size
_CONTROL_MAX = 1 << 20  # bytes
_DAMAGE = (
    *(EOFError, ValueError, tarfile.TarError),
    *(gzip.BadGzipFile, zlib.error, lzma.LZMAError, zstandard.ZstdError),
)
_OPEN: Mapping[str, Callable[[Any], Any]] = {
    "": lambda file: file,
    ".bz2": bz2.open,
    ".gz": gzip.open,
    ".lzma": lzma.open,
    ".xz": lzma.open,
    ".zst": lambda file: zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True),
}


def unpack(packed: Path, plain: Path) -> str:
    """Write the package `packed` to `plain` with neither tar compressed, and return its control file.

    dpkg, which unpacks one package after the other, takes it as the same. Raises BuilderError for what is no package.
    """
    try:
        with packed.open("rb") as source, plain.open("w+b") as target:
            return _unpack(source, target).decode(errors="surrogateescape")
    except _DAMAGE as error:
        raise BuilderError(f"is no Debian package: {error}", where=plain.name) from error


def _unpack(source: IO[bytes], target: IO[bytes]) -> bytes:
    if source.read(len(_MAGIC)) != _MAGIC:
        raise ValueError("no ar archive")
    target.write(_MAGIC)
    control = b""
    while header := source.read(_HEADER):
        name, tar, compression = header[:16].decode().rstrip(" /").partition(".tar")
        size = int(header[48:58])
        data = io.BytesIO(source.read(size + size % 2)[:size])
        start = target.seek(_HEADER, os.SEEK_CUR)
        if len(data.getbuffer()) != size or compression not in _OPEN:
            raise ValueError(f"its {name}.tar{compression} ends early, or is compressed in a way that is not known")
        with _OPEN[compression](data) as content:
            shutil.copyfileobj(content, target, 1 << 20)
        end = target.tell()
        target.write(b"\n" * (end % 2))
        target.seek(start - _HEADER)
        target.write(f"{name + tar:16}".encode() + header[16:48] + f"{end - start:<10}`\n".encode())
        if name == "control":
            control = _control(target)
        target.seek(0, os.SEEK_END)
    if not control:
        raise ValueError("no control file")
    return control


def _control(file: IO[bytes]) -> bytes:
    """The file `control` in the tar that begins where `file` stands."""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            if member.name.removeprefix("./") == "control" and member.isreg() and member.size <= _CONTROL_MAX:
                found = tar.extractfile(member)
                text = found.read() if found else b""
                if b"\n\n" in text.strip():
                    raise ValueError("its control file has two paragraphs")
                return text
    return b""
