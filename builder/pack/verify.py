"""Whether a template is what its manifest, its checksums and its bill of materials say, without unpacking it."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from builder.errors import BuilderError
from builder.pack import manifest, publish
from builder.progress import Progress, Task
from builder.store.files import sha256_of
from builder.tree.archive import Header

_CHUNK = 1 << 20
_WINDOW = 1 << 27
_XATTR = "SCHILY.xattr."


@dataclass(frozen=True)
class Checked:
    """What was read, and every difference as the name of a file and what is wrong with it."""

    sha256: str  # of the template
    files: int  # members of its tar
    differences: tuple[tuple[str, str], ...]


class _Hashed(io.FileIO):
    """A file whose bytes are hashed and counted as they are read."""

    def __init__(self, path: Path, task: Task) -> None:
        super().__init__(path)
        self.digest = hashlib.sha256()
        self.size = 0
        self._task = task

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size) or b""
        self.digest.update(data)
        self.size += len(data)
        self._task.advance(len(data))
        return data


class _Counted(io.RawIOBase):
    """A stream that counts what is read of it."""

    def __init__(self, inner: zstandard.ZstdDecompressionReader) -> None:
        self.size = 0
        self._inner = inner

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._inner.read(size)
        self.size += len(data)
        return data


def verify(template: Path, parts: tuple[Path, Path, Path], progress: Progress) -> Checked:
    """Compare every member of `template` with its manifest, byte by byte, and the files beside it with its sha256.

    `parts` are the template, its manifest and its bill of materials. Raises BuilderError when the manifest is missing
    or unsound, or the template cannot be read.
    """
    told = manifest.read(parts[1])
    try:
        files = {str(file["path"]): file for file in told["files"]}
        wanted = str(told["sha256"]), int(told["size"]), int(told["tar_size"])
    except (TypeError, KeyError, ValueError) as error:
        raise manifest.unsound(parts[1]) from error
    try:
        with progress.task("verify", template.stat().st_size) as task, _Hashed(template, task) as source:
            count, tar_size, found = _members(source, files)
            while source.read(_CHUNK):
                pass
        sha256 = source.digest.hexdigest()
        names = "sha256", "size", "unpacked size"
        made = sha256, source.size, tar_size
        found += [
            (template.name, f"has {name} {is_}, its manifest says {said}")
            for name, is_, said in zip(names, made, wanted, strict=True)
            if is_ != said
        ]
        found += _checksums(parts, sha256)
        found += _bill(parts[2], sha256)
    except OSError as error:
        raise BuilderError(error.strerror or str(error), where=error.filename or template) from error
    return Checked(sha256, count, tuple(found))


def _members(source: _Hashed, files: Mapping[str, Mapping[str, Any]]) -> tuple[int, int, list[tuple[str, str]]]:
    """How many members the tar has, its size, and how they differ from `files`."""
    found: list[tuple[str, str]] = []
    seen: set[str] = set()
    reader = zstandard.ZstdDecompressor(max_window_size=_WINDOW).stream_reader(source, read_across_frames=True)
    stream = _Counted(reader)
    try:
        with tarfile.open(
            fileobj=stream, mode="r|", tarinfo=Header, bufsize=_CHUNK, encoding="utf-8", errors="surrogateescape"
        ) as tar:
            while (info := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # else it keeps them all
                path = _path(info.name)
                if path in seen:
                    found.append((path, "is in the template twice"))
                elif path not in files:
                    found.append((path, "is not in the manifest"))
                else:
                    found += [(path, what) for what in _differences(tar, info, files[path])]
                seen.add(path)
            while stream.read(_CHUNK):
                pass
    except (zstandard.ZstdError, tarfile.TarError) as error:
        found.append(("", f"is damaged after byte {stream.size:,} of its tar, the rest was not compared ({error})"))
    else:
        found += [(path, "is missing in the template") for path in files if path not in seen]
    return len(seen), stream.size, found


def _path(name: str) -> str:
    """A member's path as the manifest has it, '' for the root; other names as they are."""
    return "" if name in (".", "./") else name[2:] if name.startswith("./") else f"/{name}"


def _differences(tar: tarfile.TarFile, info: tarfile.TarInfo, told: Mapping[str, Any]) -> Iterator[str]:
    made = _describe(tar, info)
    said = {"xattrs": {}, "sparse": False, "target": "", **told}
    if info.islnk():
        said["xattrs"] = {}  # stand at the file's first name
    for name in ("type", *sorted((made.keys() | said.keys()) - {"path", "type"})):
        if made.get(name) != said.get(name):
            yield f"has {name} {made.get(name)}, its manifest says {said.get(name)}"


def _describe(tar: tarfile.TarFile, info: tarfile.TarInfo) -> dict[str, Any]:
    """A member in the manifest's words, its bytes read."""
    kind = _kind(info)
    made: dict[str, Any] = {
        "type": kind,
        "mode": f"{info.mode:04o}",
        "uid": info.uid,
        "gid": info.gid,
        "mtime": info.mtime,
        "target": _path(info.linkname) if kind == "hardlink" else info.linkname,
        "sparse": info.issparse(),
        "xattrs": {
            name.removeprefix(_XATTR): value.encode("utf-8", "surrogateescape").hex()
            for name, value in info.pax_headers.items()
            if name.startswith(_XATTR)
        },
    }
    if kind == "file" and (content := tar.extractfile(info)) is not None:
        digest = hashlib.sha256()
        while chunk := content.read(_CHUNK):
            digest.update(chunk)
        made |= {"size": info.size, "sha256": digest.hexdigest()}
    return made


def _kind(info: tarfile.TarInfo) -> str:
    kinds = {"dir": info.isdir(), "link": info.issym(), "hardlink": info.islnk(), "fifo": info.isfifo()}
    return next((kind for kind, is_ in kinds.items() if is_), "file" if info.isreg() else "device")


def _checksums(parts: tuple[Path, Path, Path], sha256: str) -> Iterator[tuple[str, str]]:
    sums = publish.read_sums(parts[0].parent)
    for path in parts:
        if path.name not in sums:
            yield path.name, f"is not in {publish.SUMS}"
        elif path.exists():
            found = sha256 if path == parts[0] else sha256_of(path)
            if found != sums[path.name]:
                yield path.name, f"has sha256 {found}, {publish.SUMS} says {sums[path.name]}"


def _bill(path: Path, sha256: str) -> Iterator[tuple[str, str]]:
    try:
        bill = json.loads(path.read_bytes())
        hashes = {row["content"] for row in bill["metadata"]["component"]["hashes"]}
        if bill["bomFormat"] != "CycloneDX":
            raise ValueError("another format")
    except FileNotFoundError:
        yield path.name, "is missing"
    except (ValueError, TypeError, KeyError, RecursionError):
        yield path.name, "is no CycloneDX bill of materials"
    else:
        if hashes != {sha256}:
            yield path.name, "is of another template"
