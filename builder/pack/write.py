"""Write a template's file: frames in order, from an earlier template where it has them, compressed where not."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

from builder.pack.frame import Chain, Frame, compress, end_frame
from builder.pack.segment import MOST, Segment
from builder.progress import Progress
from builder.store.files import sha256_of, write_all


class Record(NamedTuple):
    """Where a segment's frame lies in a template."""

    identity: str  # of the segment
    offset: int
    length: int
    tar_size: int  # bytes that it unpacks to


@dataclass(frozen=True)
class Earlier:
    """A template whose frames may be copied."""

    path: Path
    sha256: str
    frames: Mapping[str, Record]

    @classmethod
    def load(cls, path: Path, manifest: Path, sums: Mapping[str, str]) -> Earlier | None:
        """The template at `path` with the frames that `manifest` tells of.

        None when one of them is missing or not as `sums` (file name to sha256) has it. The template's own bytes
        are looked at when they are used.
        """
        try:
            text = manifest.read_bytes()
            if hashlib.sha256(text).hexdigest() != sums[manifest.name]:
                return None
            told = json.loads(text)
            size = path.stat().st_size
            records = [Record(*row) for row in told["frames"]]
            if told["size"] != size or not all(_lies_within(size, record) for record in records):
                return None
            return cls(path, sums[path.name], {record.identity: record for record in records})
        except (OSError, ValueError, TypeError, KeyError):
            return None


def _lies_within(size: int, record: Record) -> bool:
    numbers = record.offset, record.length, record.tar_size
    return all(type(number) is int and number >= 0 for number in numbers) and record.offset + record.length <= size


class DamagedTemplateError(Exception):
    """The earlier template is not what its manifest says."""


@dataclass(frozen=True)
class Written:
    """The file's digest and sizes, and where each segment lies in it."""

    sha256: str
    size: int
    tar_size: int
    records: tuple[Record, ...]
    reused: int  # segments whose frames were copied


def write_template(
    path: Path, segments: Sequence[Segment], level: int, jobs: int, earlier: Earlier | None, progress: Progress
) -> Written:
    """Make the template at `path` with `jobs` threads; its sha256 is taken while it is written, and it ends on disk.

    Frames are copied from `earlier` while all of it is hashed, by blocks that both files share where the file system
    can do that (copy_file_range(2)). Memory: about 50 MB, and for each thread four segments.
    Raises BuilderError when a layer's file is not what it was, OSError when the disk is full, DamagedTemplateError when
    `earlier` is damaged; then `path` holds nothing of use.
    """
    reusable = _reusable(segments, earlier)
    records: list[Record] = []
    with (
        open(path, "xb", buffering=0) as file,
        open(earlier.path if earlier is not None else os.devnull, "rb", buffering=0) as source,
        ThreadPoolExecutor(1) as beside,
        closing(_frames(segments, reusable, level, jobs)) as frames,
        progress.task("pack", sum(map(_size, segments))) as task,
    ):
        sound = beside.submit(_is_sound, earlier) if earlier is not None and reusable else None
        out = _Output(file.fileno())
        for segment, frame in frames:
            start = out.size
            if isinstance(frame, Record):
                out.copy(source.fileno(), frame.offset, frame.length)
            else:
                out.write(frame.data)
            records.append(Record(segment.identity, start, out.size - start, frame.tar_size))
            task.advance(_size(segment))
        end = end_frame(level)
        out.write(end.data)
        if sound is not None and not sound.result():
            raise DamagedTemplateError
        os.fsync(file.fileno())
    tar_size = sum(record.tar_size for record in records) + end.tar_size
    return Written(out.digest.hexdigest(), out.size, tar_size, tuple(records), len(reusable))


def _reusable(segments: Sequence[Segment], earlier: Earlier | None) -> Mapping[str, Record]:
    """The frames to copy. A large file's come all from there or none: it is verified as a whole."""
    known = {} if earlier is None else earlier.frames
    incomplete = {
        segment.pieces[0].member.entry.path
        for segment in segments
        if _is_large(segment) and segment.identity not in known
    }
    return {
        segment.identity: known[segment.identity]
        for segment in segments
        if segment.identity in known and segment.pieces[0].member.entry.path not in incomplete
    }


def _is_large(segment: Segment) -> bool:
    return segment.pieces[0].member.entry.size > MOST


def _size(segment: Segment) -> int:
    return sum(piece.stop - piece.start for piece in segment.pieces)


def _is_sound(earlier: Earlier) -> bool:
    try:
        return sha256_of(earlier.path) == earlier.sha256
    except OSError:
        return False


def _frames(
    segments: Sequence[Segment], reusable: Mapping[str, Record], level: int, jobs: int
) -> Generator[tuple[Segment, Frame | Record], None, None]:
    """Each segment with its frame or where to copy it from, in order; `2 * jobs` are ahead of the one asked for."""
    pool = ThreadPoolExecutor(jobs)
    buffers: SimpleQueue[bytearray] = SimpleQueue()
    for _ in range(jobs):
        buffers.put(bytearray())
    waiting: deque[tuple[Segment, Record | Future[Frame]]] = deque()
    chain: Chain | None = None

    def made(segment: Segment, chain: Chain | None) -> Frame:
        buffer = buffers.get()
        try:
            return compress(segment, level, chain, buffer)
        finally:
            buffers.put(buffer)

    try:
        for segment in segments:
            record = reusable.get(segment.identity)
            if record is not None:
                waiting.append((segment, record))
            else:
                if segment.pieces[0].is_first:
                    chain = Chain() if _is_large(segment) else None
                waiting.append((segment, pool.submit(made, segment, chain)))
            if len(waiting) > 2 * jobs:
                yield _ready(*waiting.popleft())
        while waiting:
            yield _ready(*waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _ready(segment: Segment, found: Record | Future[Frame]) -> tuple[Segment, Frame | Record]:
    return segment, found.result() if isinstance(found, Future) else found


@dataclass
class _Output:
    """A file that is written from its start, and the digest of what is in it."""

    descriptor: int
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)
    size: int = 0

    def write(self, data: bytes | memoryview) -> None:
        write_all(self.descriptor, data)
        self._count(data)

    def copy(self, source: int, start: int, length: int) -> None:
        """Append a part of the file open as `source`. Raises DamagedTemplateError when it ends before."""
        try:
            data = os.pread(source, length, start)
        except OSError as error:
            raise DamagedTemplateError from error
        if len(data) != length:
            raise DamagedTemplateError
        done = 0
        with suppress(OSError):  # where it does not work between two files, they are written
            while copied := os.copy_file_range(source, self.descriptor, length - done, start + done):
                done += copied
        write_all(self.descriptor, memoryview(data)[done:])
        self._count(data)

    def _count(self, data: bytes | memoryview) -> None:
        self.digest.update(data)
        self.size += len(data)
