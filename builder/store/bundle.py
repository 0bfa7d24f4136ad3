"""Blobs and layers as one tar stream, from one store to another: CI caches, machines without a network.

    builder-store.json             what follows, first of all
    blobs/sha256/ab/HEX            a blob, as it is
    layers/KEY/index               a layer's index
    layers/KEY/000000, 000001 ...  the bytes of its files in the order of the index, in zstd frames of 8 MiB

Nothing but plain files of these names is taken. A blob is known by its sha256 and a layer by its index, so that what
is damaged on the way is left out and all else still taken. A layer's key does not prove its content, as with every
cache of built things: import what you or those you trust have exported.
"""

from __future__ import annotations

import errno
import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import IO, Any, NamedTuple

import zstandard

from builder import canonical, tree
from builder.errors import BuilderError
from builder.lock.model import Blob
from builder.progress import Progress, Task
from builder.store.files import CHUNK, failure, open_unmarked
from builder.store.layer import Layer
from builder.store.store import Store
from builder.tree import Index

_FORMAT = 2
_TABLE = "builder-store.json"
_TABLE_MAX = 64 << 20
_INDEX_MAX = 1 << 30
_FRAME = 8 << 20
_LEVEL = 3
"""zstd's: level 1 takes two thirds of the CPU time and writes a quarter more of the layers."""


@dataclass(frozen=True)
class Taken:
    """What an import brought into the store, what was there before, and what was not sound."""

    blobs: int
    layers: int
    size: int  # bytes in files of those taken
    there: int  # blobs and layers
    left_out: tuple[tuple[str, str], ...]  # what, and why


def write(store: Store, blobs: Iterable[Blob], layers: Sequence[Layer], out: IO[bytes], progress: Progress) -> None:
    """Write `blobs` and `layers`, all of them in `store`, to `out`.

    Raises BuilderError when one cannot be read, OSError when `out` cannot be written.
    """
    blobs = tuple(blobs)
    table = {
        "format": _FORMAT,
        "blobs": [[blob.filename, blob.sha256, blob.size] for blob in blobs],
        "layers": [[layer.key, layer.digest, layer.size, layer.facts] for layer in layers],
    }
    total = sum(blob.size for blob in blobs) + sum(layer.size for layer in layers)
    with (
        progress.task("export", total) as task,
        tarfile.open(fileobj=out, mode="w|", format=tarfile.GNU_FORMAT, bufsize=CHUNK) as tar,
    ):
        _add(tar, _TABLE, json.dumps(table, sort_keys=True).encode())
        for blob in blobs:
            _add_blob(tar, store, blob)
            task.advance(blob.size)
        for layer in layers:
            with open_unmarked(layer.tree.parent / "index") as file:
                _add(tar, f"layers/{layer.key}/index", file.read())
            compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
            for number, frame in enumerate(_frames(tree.contents(layer.index, layer.tree))):
                _add(tar, f"layers/{layer.key}/{number:06}", compressor.compress(frame))
                task.advance(len(frame))


def _add_blob(tar: tarfile.TarFile, store: Store, blob: Blob) -> None:
    info = tarfile.TarInfo(_blob_name(blob))
    info.size = blob.size
    with open_unmarked(store.path(blob.sha256)) as file:
        tar.addfile(info, file)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _blob_name(blob: Blob) -> str:
    return f"blobs/sha256/{blob.sha256[:2]}/{blob.sha256}"


def _frames(pieces: Iterable[bytes]) -> Iterator[bytes]:
    frame = bytearray()
    for piece in pieces:
        frame += piece
        while len(frame) >= _FRAME:
            yield bytes(frame[:_FRAME])
            del frame[:_FRAME]
    if frame:
        yield bytes(frame)


class _DamagedError(Exception):
    """This blob or layer is not sound; others may be."""


class _File(tarfile.TarInfo):
    """The header of a plain file; any other kind of member stops the import before more is read."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _File:
        info = super().frombuf(buf, encoding, errors)
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or info.size < 0:
            raise _refusal(info.name, "is no plain file")
        return info


class _Told(NamedTuple):
    """A layer as the archive's table tells it."""

    key: str
    digest: str
    size: int
    facts: Mapping[str, Any]


class _Part(NamedTuple):
    """A member: which blob or layer it belongs to, its name there ("" for a blob) and what is in it."""

    owner: str
    name: str
    size: int
    file: IO[bytes]


def read(store: Store, source: IO[bytes], progress: Progress) -> Taken:
    """Take what the archive `source` holds into `store`, each blob and layer when it is whole and verified.

    What the store has stays as it is; what is damaged, or missing from half an archive, is told in
    `Taken.left_out`. Raises BuilderError when `source` is no archive of `write`, has a member that none of those has,
    or the disk is full; what was taken before stays. Raises OSError when `source` cannot be read.
    """
    left_out: dict[str, str] = {}
    taken: list[Blob | _Told] = []
    there = 0
    try:
        with tarfile.open(fileobj=source, mode="r|", tarinfo=_File, ignore_zeros=True, bufsize=CHUNK) as tar:
            items = _table(tar)
            left_out = dict.fromkeys(items, "is missing: the archive is damaged or cut short")
            with progress.task("import", sum(item.size for item in items.values())) as task:
                for name, parts in groupby(_parts(tar, items), key=lambda part: part.owner):
                    if name not in left_out:
                        continue
                    try:
                        if _take(store, items[name], parts, task):
                            taken.append(items[name])
                        else:
                            there += 1
                        del left_out[name]
                    except _DamagedError as error:
                        left_out[name] = str(error)
    except tarfile.TarError as error:
        if not left_out:
            raise _foreign() from error
    blobs = sum(isinstance(item, Blob) for item in taken)
    size = sum(item.size for item in taken)
    told = tuple((_title(items[name]), why) for name, why in left_out.items())
    return Taken(blobs, len(taken) - blobs, size, there, told)


def _refusal(name: str, what: str) -> BuilderError:
    return BuilderError(f"member {name!a} {what}", hint="nothing more of it was taken: see who made it")


def _foreign() -> BuilderError:
    return BuilderError("is no archive of `builder store export`, or its beginning is damaged", hint="export it anew")


def _title(item: Blob | _Told) -> str:
    return item.filename if isinstance(item, Blob) else f"layer {item.facts['stage']} of {item.facts['recipe']}"


def _table(tar: tarfile.TarFile) -> dict[str, Blob | _Told]:
    """What the archive holds, by the beginnings of its members' names."""
    info = tar.next()
    if info is None or info.name != _TABLE or info.size > _TABLE_MAX:
        raise _foreign()
    try:
        told = json.loads(_content(tar, info).read())
        if told["format"] != _FORMAT:
            raise ValueError("another format")
        blobs = [Blob(_sha256(sha256), int(size), _text(name), ()) for name, sha256, size in told["blobs"]]
        layers = [_told(*row) for row in told["layers"]]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _foreign() from error
    return {**{_blob_name(blob): blob for blob in blobs}, **{f"layers/{layer.key}": layer for layer in layers}}


def _told(key: str, digest: str, size: int, facts: Mapping[str, Any]) -> _Told:
    if canonical.digest(facts["body"]) != key:
        raise ValueError("a key that is not its body's")
    known = {name: _text(facts[name]) for name in ("recipe", "stage", "kind")}
    over = [_sha256(name) for name in facts["over"]]
    return _Told(key, _sha256(digest), int(size), {**known, "body": facts["body"], "over": over})


def _sha256(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise ValueError("no sha256")
    return text


def _text(text: str) -> str:
    """`text` when it may be shown on a terminal."""
    if not isinstance(text, str) or not text.isprintable():
        raise ValueError("no text")
    return text


def _content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(info)
    if file is None:
        raise _refusal(info.name, "is no plain file")
    return file


def _parts(tar: tarfile.TarFile, items: Mapping[str, object]) -> Iterator[_Part]:
    while (info := tar.next()) is not None:
        layer, _, name = info.name.rpartition("/")
        if info.name in items:
            yield _Part(info.name, "", info.size, _content(tar, info))
        elif layer in items and re.fullmatch("index|[0-9]{6}", name):
            yield _Part(layer, name, info.size, _content(tar, info))
        else:
            raise _refusal(info.name, "is none that an export has")


def _take(store: Store, item: Blob | _Told, parts: Iterator[_Part], task: Task) -> bool:
    """Take a blob or a layer into the store; False when it is there. Raises _DamagedError."""
    task.note(_title(item))
    if store.has(item) if isinstance(item, Blob) else store.layer(item.key) is not None:
        task.advance(item.size)
        return False
    if isinstance(item, Blob):
        _take_blob(store, item, next(parts), task)
    else:
        _take_layer(store, item, parts, task)
    return True


def _take_blob(store: Store, blob: Blob, part: _Part, task: Task) -> None:
    if part.size != blob.size:
        raise _DamagedError(f"has {part.size} bytes, not {blob.size}")
    try:
        store.add_stream(_chunks(part.file, task), blob.sha256)
    except BuilderError as error:
        if isinstance(error.__cause__, OSError):
            raise
        raise _DamagedError("does not have its sha256") from error


def _chunks(file: IO[bytes], task: Task) -> Iterator[bytes]:
    while chunk := file.read(CHUNK):
        task.advance(len(chunk))
        yield chunk


def _take_layer(store: Store, told: _Told, parts: Iterator[_Part], task: Task) -> None:
    with store.draft(told.key) as draft:
        try:
            index = _index(draft.scratch / "index", next(parts))
            tree.restore(index, draft.upper, _pieces(parts, task))
            found = tree.scan(draft.upper)
        except BuilderError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.ENOSPC, errno.EDQUOT):
                raise failure(error.__cause__, store.root) from error
            raise _DamagedError(error.what) from error
        if index.digest != told.digest:
            raise _DamagedError("has another index")
        if found.digest != told.digest:
            pairs = zip(index.entries, found.entries, strict=False)
            first = next((said.path for said, made in pairs if said != made), "")
            raise _DamagedError(f"differs from its index, first in {first!a}")
        draft.commit(found, told.facts)


def _index(place: Path, part: _Part) -> Index:
    """The index in `part`, written to `place` on the way. Its stat data are those of another place."""
    if part.name != "index" or part.size > _INDEX_MAX:
        raise _DamagedError("has no index")
    try:
        data = part.file.read()
        if not 0 < zstandard.frame_content_size(data) <= _INDEX_MAX:
            raise _DamagedError("has an index of unlikely size")
        place.write_bytes(data)
        return Index.load(place)
    except (zstandard.ZstdError, RecursionError) as error:
        raise _DamagedError("has a damaged index") from error
    except OSError as error:
        raise failure(error, place) from error


def _pieces(parts: Iterator[_Part], task: Task) -> Iterator[bytes]:
    """What the frames of a layer hold, one by one."""
    decompressor = zstandard.ZstdDecompressor()
    for number, part in enumerate(parts):
        if part.name != f"{number:06}" or part.size > 2 * _FRAME:
            raise _DamagedError("lacks a part")
        try:
            data = part.file.read()
            if not 0 < zstandard.frame_content_size(data) <= _FRAME:
                raise _DamagedError("has a part of unlikely size")
            piece = decompressor.decompress(data)
        except zstandard.ZstdError as error:
            raise _DamagedError("has a damaged part") from error
        task.advance(len(piece))
        yield piece
