"""Write a template's file: frames in order, from an earlier template where it has them, compressed where not."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from builder.pack.frame import Chain, Frame, compress, end_frame
from builder.pack.segment import MOST, Segment
from builder.progress import Progress


class Record(NamedTuple):
    """Where a segment's frame lies in a template."""

    identity: str  # of the segment
    offset: int
    length: int
    sha256: str  # of the frame's bytes
    tar_size: int  # bytes that it unpacks to


@dataclass(frozen=True)
class Earlier:
    """A template whose frames may be copied."""

    path: Path
    frames: Mapping[str, Record] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path, manifest: Path) -> Earlier | None:
        """The template at `path` with the frames that `manifest` tells of; None when either is missing or unsound."""
        try:
            told = json.loads(manifest.read_bytes())
            size = path.stat().st_size
            records = [Record(*row) for row in told["frames"]]
            if told["size"] != size or not all(_lies_within(size, record) for record in records):
                return None
            return cls(path, {record.identity: record for record in records})
        except (OSError, ValueError, TypeError, KeyError):
            return None


def _lies_within(size: int, record: Record) -> bool:
    numbers = record.offset, record.length, record.tar_size
    return all(type(number) is int and number >= 0 for number in numbers) and record.offset + record.length <= size


class DamagedFrameError(Exception):
    """A frame of the earlier template is not what its manifest says."""


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

    Memory: about 50 MB, and for each thread four segments.
    Raises BuilderError when a layer's file is not what it was, OSError when the disk is full, DamagedFrameError when a
    frame of `earlier` is damaged; then `path` holds nothing of use.
    """
    reusable = _reusable(segments, earlier)
    digest = hashlib.sha256()
    records: list[Record] = []
    offset = tar_size = 0
    estimate = sum(piece.stop - piece.start for segment in segments for piece in segment.pieces)
    with (
        open(path, "xb") as file,
        closing(_frames(segments, reusable, level, jobs, earlier)) as frames,
        progress.task("pack", estimate) as task,
    ):
        for segment, frame in frames:
            file.write(frame.data)
            digest.update(frame.data)
            records.append(Record(segment.identity, offset, len(frame.data), frame.sha256, frame.tar_size))
            offset += len(frame.data)
            tar_size += frame.tar_size
            task.advance(sum(piece.stop - piece.start for piece in segment.pieces))
        end = end_frame(level)
        file.write(end.data)
        digest.update(end.data)
        file.flush()
        os.fsync(file.fileno())
    reused = sum(segment.identity in reusable for segment in segments)
    return Written(digest.hexdigest(), offset + len(end.data), tar_size + end.tar_size, tuple(records), reused)


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


def _frames(
    segments: Sequence[Segment], reusable: Mapping[str, Record], level: int, jobs: int, earlier: Earlier | None
) -> Generator[tuple[Segment, Frame], None, None]:
    """Each segment with its frame, in order; a bounded number are ahead of the one that is asked for."""
    pool = ThreadPoolExecutor(jobs)
    descriptor = None if earlier is None else os.open(earlier.path, os.O_RDONLY | os.O_CLOEXEC)
    waiting: deque[tuple[Segment, Future[Frame]]] = deque()
    chain: Chain | None = None
    try:
        for segment in segments:
            record = reusable.get(segment.identity)
            if record is not None and descriptor is not None:
                waiting.append((segment, pool.submit(_copy, descriptor, record)))
            else:
                if segment.pieces[0].is_first:
                    chain = Chain() if _is_large(segment) else None
                waiting.append((segment, pool.submit(compress, segment, level, chain)))
            if len(waiting) > 2 * jobs:
                ready, future = waiting.popleft()
                yield ready, future.result()
        while waiting:
            ready, future = waiting.popleft()
            yield ready, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        if descriptor is not None:
            os.close(descriptor)


def _copy(descriptor: int, record: Record) -> Frame:
    data = os.pread(descriptor, record.length, record.offset)
    if hashlib.sha256(data).hexdigest() != record.sha256:
        raise DamagedFrameError(record.identity)
    return Frame(data, record.sha256, record.tar_size)
