"""Unpack an archive that nobody vouches for."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from calendar import timegm
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import zstandard

from builder.errors import BuilderError

_COPY = 1 << 20
_HEADER_MAX = 1 << 20  # bytes of names and attributes of one member
_ZSTD_WINDOW = 1 << 27  # what `zstd -d` takes without being asked (zstd(1), --memory)
_RATIO_FROM = 64 << 20  # small archives may shrink as they like
_MTIME_MAX = (1 << 33) - 1  # what a ustar header can hold
_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    zstandard.ZstdError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
    IndexError,
    struct.error,
)


@dataclass(frozen=True)
class ExtractLimits:
    """What one archive may become."""

    size: int = 32 << 30  # bytes in all its files together
    members: int = 500_000
    ratio: int = 200  # bytes in its files to bytes of the archive, looked at from 64 MiB on


class _Member(NamedTuple):
    name: str
    kind: str  # dir | file | link | hardlink, or what makes it unwelcome
    mode: int
    mtime: int
    size: int
    target: str
    content: IO[bytes] | None


def extract(archive: Path, dest: Path, *, strip: int = 0, limits: ExtractLimits | None = None) -> None:
    """Unpack `archive`, a tar (plain, gz, xz, zst) or zip told by its first bytes, into the folder `dest`.

    `dest` is made, or added to where it exists; what is there stays. `strip` drops that many leading names of each
    member, and members that have no more. Files get mode 0644 or 0755, folders 0755, whole-second mtimes and the
    caller as owner. Refused, with nothing unpacked: `..`, absolute names, members through or links out of `dest`,
    absolute links, devices and fifos, a name that comes twice or is there already, and more than `limits` allows.
    Raises BuilderError naming archive and member.
    """
    limits = limits or ExtractLimits()
    try:
        for parent in [parent for parent in reversed(dest.parents) if not parent.exists()]:
            _make_folder(parent)
        with tempfile.TemporaryDirectory(prefix=".unpack-", dir=dest.parent) as scratch:
            root = Path(scratch, "root")
            _make_folder(root)
            _Unpacking(archive, root, strip, limits).run()
            _move(archive, root, dest)
    except OSError as error:
        raise BuilderError(error.strerror or str(error), where=error.filename or dest) from error


def files(
    archive: Path, scratch: Path, wanted: Callable[[bytes], bool], *, limits: ExtractLimits | None = None
) -> Iterator[tuple[str, Path]]:
    """Those files of `archive` whose first 512 bytes are `wanted`, in its order: name in it, and where it lies.

    That is inside the folder `scratch`, until the next one is asked for; the name is told as it is, and leads nowhere.
    Raises BuilderError naming the archive when it is damaged or holds more than `limits` allows.
    """
    limits = limits or ExtractLimits()
    place = scratch / "file"
    left = limits.size
    try:
        with closing(_members(archive, limits.size)) as members:
            for member in members:
                left -= max(member.size, 0)
                if left < 0:
                    raise BuilderError(f"unpacks to more than {limits.size:,} bytes", where=archive)
                if member.content is not None and wanted(head := member.content.read(tarfile.BLOCKSIZE)):
                    with open(place, "wb") as file:
                        file.write(head)
                        shutil.copyfileobj(member.content, file, _COPY)
                    yield member.name, place
    except _DAMAGED as error:
        raise BuilderError(f"not a sound archive ({error})", where=archive) from error
    except OSError as error:
        raise BuilderError(error.strerror or str(error), where=error.filename or archive) from error
    finally:
        place.unlink(missing_ok=True)


class _Unpacking:
    """One archive on its way into an empty folder of our own; knows what it made, so it never asks the disk."""

    def __init__(self, archive: Path, root: Path, strip: int, limits: ExtractLimits) -> None:
        self.archive = archive
        self.root = root
        self.strip = strip
        self.limits = limits
        self.made: dict[tuple[str, ...], str] = {(): "dir"}
        self.targets: dict[tuple[str, ...], str] = {}
        self.mtimes: dict[tuple[str, ...], int] = {}
        self.size = 0
        ratio_size = limits.ratio * archive.stat().st_size
        self.size_max = min(limits.size, max(ratio_size, _RATIO_FROM))

    def run(self) -> None:
        try:
            with closing(_members(self.archive, self.size_max)) as members:
                for count, member in enumerate(members, 1):
                    if count > self.limits.members:
                        raise self._refusal(f"more than {self.limits.members} members")
                    self._take(member)
        except _DAMAGED as error:
            raise self._refusal(f"not a sound archive ({error})") from error
        for parts in self.targets:
            if not self._stays_inside(parts):
                raise self._refusal("the link leaves the folder", "/".join(parts))
        for parts, mtime in reversed(self.mtimes.items()):
            os.utime(self._place(parts), (mtime, mtime), follow_symlinks=False)

    def _refusal(self, what: str, name: str = "") -> BuilderError:
        what = f"member {name!a}: {what}" if name else what
        return BuilderError(
            what, where=self.archive, hint="nothing of it was unpacked: see who made it, or pack it anew"
        )

    def _place(self, parts: tuple[str, ...]) -> str:
        return os.path.join(self.root, *parts)

    def _take(self, member: _Member) -> None:
        parts = self._parts(member.name)
        if member.size < 0:
            raise self._refusal("has a negative size", member.name)
        self.size += member.size
        if self.size > self.size_max:
            raise self._refusal(f"unpacks to more than {self.size_max:,} bytes", member.name)
        if parts is None:
            return
        if member.kind == "dir" and self.made.get(parts) == "dir":
            self.mtimes[parts] = min(max(member.mtime, 0), _MTIME_MAX)
            return
        if parts in self.made:
            raise self._refusal("comes twice", member.name)
        self._parents(parts, member.name)
        self._make(parts, member)
        self.made[parts] = member.kind
        if member.kind != "hardlink":
            self.mtimes[parts] = min(max(member.mtime, 0), _MTIME_MAX)

    def _parts(self, name: str) -> tuple[str, ...] | None:
        """The names of a member's path after `strip`; None when nothing is left."""
        if name.startswith("/") or "\0" in name:
            raise self._refusal("absolute or not a name", name)
        parts = tuple(part for part in name.split("/") if part not in ("", "."))
        if ".." in parts:
            raise self._refusal("leaves the folder", name)
        if len(parts) < self.strip or (self.strip and len(parts) == self.strip):
            return None
        return parts[self.strip :]

    def _parents(self, parts: tuple[str, ...], name: str) -> None:
        for length in range(1, len(parts)):
            parent = parts[:length]
            kind = self.made.get(parent)
            if kind is None:
                _make_folder(self._place(parent))
                self.made[parent] = "dir"
            elif kind != "dir":
                raise self._refusal(f"goes through {'/'.join(parent)!a}, which is no folder", name)

    def _make(self, parts: tuple[str, ...], member: _Member) -> None:
        place = self._place(parts)
        if member.kind == "dir":
            _make_folder(place)
        elif member.kind == "file":
            with open(place, "xb") as file:
                if member.content is not None:
                    shutil.copyfileobj(member.content, file, _COPY)
                written = file.tell()
            if written != member.size:
                raise self._refusal("ends early", member.name)
            os.chmod(place, 0o755 if member.mode & 0o100 else 0o644)
        elif member.kind == "link":
            if member.target.startswith("/") or not member.target:
                raise self._refusal(f"links to {member.target!a}, outside the folder", member.name)
            os.symlink(member.target, place)
            self.targets[parts] = member.target
        elif member.kind == "hardlink":
            source = self._parts(member.target)
            if source is None or self.made.get(source) not in ("file", "hardlink"):
                raise self._refusal(f"hard link to {member.target!a}, which is no file before it", member.name)
            os.link(self._place(source), place, follow_symlinks=False)
        else:
            raise self._refusal(f"is a {member.kind}", member.name)

    def _stays_inside(self, link: tuple[str, ...]) -> bool:
        """Whether following `link`, through every other link of the archive, never climbs above the folder."""
        here = list(link[:-1])
        todo = self.targets[link].split("/")[::-1]
        for _ in range(10_000):
            if not todo:
                return True
            name = todo.pop()
            if name == "..":
                if not here:
                    return False
                here.pop()
            elif name not in ("", "."):
                target = self.targets.get((*here, name))
                if target is None:
                    here.append(name)
                else:
                    todo += target.split("/")[::-1]
        return False


def _make_folder(path: str | Path) -> None:
    """A new folder of mode 0755, whatever the umask."""
    os.mkdir(path)
    os.chmod(path, 0o755)


def _move(archive: Path, root: Path, dest: Path) -> None:
    """Move what was unpacked into place: all of it, or nothing when a member is there already."""
    if not os.path.lexists(dest):
        os.rename(root, dest)
        return
    moves: list[tuple[str, str]] = []
    folders = [(os.fspath(root), os.fspath(dest))]
    while folders:
        source, target = folders.pop()
        if not stat.S_ISDIR(os.lstat(target).st_mode):
            raise BuilderError("is there already, and no folder", where=target, hint=f"unpacking {archive}")
        for name in os.listdir(source):
            pair = os.path.join(source, name), os.path.join(target, name)
            if not os.path.lexists(pair[1]):
                moves.append(pair)
            elif stat.S_ISDIR(os.lstat(pair[0]).st_mode):
                folders.append(pair)
            else:
                raise BuilderError("is there already", where=pair[1], hint=f"unpacking {archive}")
    for source, target in moves:
        os.rename(source, target)


def _members(archive: Path, size_max: int) -> Generator[_Member, None, None]:
    with open(archive, "rb") as file:
        magic = file.read(6)
        file.seek(0)
        if magic.startswith((b"PK\3\4", b"PK\5\6")):
            yield from _zip_members(file)
        else:
            with closing(_plain(magic, file)) as plain:
                # Headers and padding come on top of the files' bytes.
                stream = _Counted(plain, 2 * size_max + _RATIO_FROM)
                yield from _tar_members(stream)
                stream.finish()


def _plain(magic: bytes, file: IO[bytes]) -> IO[bytes] | gzip.GzipFile:
    if magic.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=file)
    if magic == b"\xfd7zXZ\0":
        return lzma.LZMAFile(file)
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        return io.BufferedReader(decompressor.stream_reader(file, read_across_frames=True, closefd=False))
    return file


class _Counted(io.RawIOBase):
    """A stream that refuses to become longer than a limit, and remembers its end."""

    def __init__(self, inner: IO[bytes] | gzip.GzipFile, limit: int) -> None:
        self._inner = inner
        self._left = limit
        self._tail = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._inner.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise tarfile.ReadError("unpacks to more than the limit")
        self._tail = (self._tail + data)[-tarfile.BLOCKSIZE :]
        return data

    def finish(self) -> None:
        """Read what is left, so that checksums are looked at; a tar ends in zeros (POSIX pax, "ustar")."""
        while self.read(_COPY):
            pass
        if any(self._tail):
            raise tarfile.ReadError("no end mark: cut short")


class Header(tarfile.TarInfo):
    """Refuses long names and PAX headers of a size that only an attack has, before they are read."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Header:
        info = super().frombuf(buf, encoding, errors)
        extra = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, b"K")
        if info.type in extra and info.size > _HEADER_MAX:
            raise tarfile.ReadError(f"a header of {info.size:,} bytes")
        return info


def _tar_members(stream: _Counted) -> Iterator[_Member]:
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=Header, encoding="utf-8", errors="surrogateescape") as tar:
        while (info := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # else it keeps them all
            kind = _tar_kind(info)
            content = tar.extractfile(info) if kind == "file" else None
            size = info.size if kind == "file" else 0
            yield _Member(info.name, kind, info.mode, int(info.mtime), size, info.linkname, content)


def _tar_kind(info: tarfile.TarInfo) -> str:
    if info.isreg():
        return "file"
    if info.isdir():
        return "dir"
    if info.issym():
        return "link"
    if info.islnk():
        return "hardlink"
    return "fifo" if info.isfifo() else "device" if info.isdev() else f"member of unknown type {info.type!r}"


def _zip_members(file: IO[bytes]) -> Iterator[_Member]:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            mode = info.external_attr >> 16
            kind = _zip_kind(info, mode)
            year, month, day, *clock = info.date_time  # month and day are 0 in some archives
            mtime = timegm((year, min(max(month, 1), 12), max(day, 1), *clock, 0, 0, 0))
            if kind == "link":
                if info.file_size > _HEADER_MAX:
                    raise zipfile.BadZipFile(f"a link target of {info.file_size:,} bytes")
                target = os.fsdecode(archive.read(info))
                yield _Member(info.filename, kind, mode, mtime, 0, target, None)
            elif kind == "file":
                with archive.open(info) as content:
                    yield _Member(info.filename, kind, mode, mtime, info.file_size, "", content)
            else:
                yield _Member(info.filename, kind, mode, mtime, 0, "", None)


def _zip_kind(info: zipfile.ZipInfo, mode: int) -> str:
    kind = stat.S_IFMT(mode)
    if info.is_dir() or kind == stat.S_IFDIR:
        return "dir"
    if kind in (0, stat.S_IFREG):
        return "file"
    return "link" if kind == stat.S_IFLNK else "device or fifo"
