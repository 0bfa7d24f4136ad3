"""Write a template's file: frames in order, from an earlier template where it has them, compressed where not."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol

from builder.pack.earlier import DamagedTemplateError, Earlier, Reading, Record
from builder.pack.frame import Buffers, Chain, Frame, compress, end_frame
from builder.pack.resumable import STEP, Sum
from builder.pack.segment import MOST, Segment
from builder.progress import Progress


@dataclass(frozen=True)
class Written:
    """The file's digest, with the states that lead to it, and sizes, and where each segment lies in it."""

    sha256: str
    states: tuple[bytes, ...]  # see `builder.pack.resumable`
    size: int
    tar_size: int
    records: tuple[Record, ...]
    reused: int  # segments whose frames were copied


class Output(Protocol):
    """Where the frames of a new template go, in order."""

    def add(self, data: bytes) -> None:
        """Go on with new bytes. Raises OSError."""

    def keep(self, start: int, length: int) -> None:
        """Go on with a part of the earlier template. Raises OSError or DamagedTemplateError."""


def write_template(
    out: Output,
    segments: Sequence[Segment],
    reusable: Mapping[str, Record],
    level: int,
    jobs: int,
    reading: Reading | None,
    progress: Progress,
) -> Written:
    """Make the template of `segments` in `out` with `jobs` threads, `reusable` frames from the one that is `reading`.

    Its sha256 is taken meanwhile, up to the first new frame from the earlier template's states. Memory: about 50 MB,
    and for each thread four segments.
    Raises BuilderError when a layer's file is not what it was, OSError when the disk is full, DamagedTemplateError when
    the earlier template was written to meanwhile, or is damaged after the first new frame; then `out` holds nothing of
    use.
    """
    records: list[Record] = []
    total = _Sum(reading)
    total_size = sum(segment.size for segment in segments)
    with closing(_frames(segments, reusable, level, jobs)) as frames, progress.task("pack", total_size) as task:
        for segment, frame in frames:
            start = total.size
            if isinstance(frame, Record):
                out.keep(frame.offset, frame.length)
                total.keep(frame.offset, frame.length)
            else:
                for data in (frame.data, frame.filler):
                    out.add(data)
                    total.add(data)
            records.append(Record(segment.identity, start, total.size - start, frame.tar_size))
            task.advance(segment.size)
        end = end_frame(level)
        out.add(end.data)
        total.add(end.data)
        sha256, states = total.result()
    if reading is not None and not reading.is_sound():
        raise DamagedTemplateError
    tar_size = sum(record.tar_size for record in records) + end.tar_size
    return Written(sha256, states, total.size, tar_size, tuple(records), len(reusable))


def reusable(segments: Sequence[Segment], earlier: Earlier) -> Mapping[str, Record]:
    """The frames to take over. A large file's come all from there or none: it is verified as a whole."""
    known = earlier.frames
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
    segments: Sequence[Segment], reusable: Mapping[str, Record], level: int, jobs: int
) -> Generator[tuple[Segment, Frame | Record], None, None]:
    """Each segment with its frame or where to copy it from, in order; `2 * jobs` are ahead of the one asked for."""
    pool = ThreadPoolExecutor(jobs)
    free: SimpleQueue[Buffers] = SimpleQueue()
    for _ in range(jobs):
        free.put(Buffers())
    waiting: deque[tuple[Segment, Record | Future[Frame]]] = deque()
    chain: Chain | None = None

    def made(segment: Segment, chain: Chain | None) -> Frame:
        buffers = free.get()
        try:
            return compress(segment, level, chain, buffers)
        finally:
            free.put(buffers)

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


class _Sum:
    """The sha256 and size of a new template. As long as it is the same as the earlier one nothing is hashed again."""

    def __init__(self, reading: Reading | None) -> None:
        self.size = 0
        self._reading = reading
        self._digest: Sum | None = None
        self._start, self._stop = 0, 0  # a part of the earlier template that comes next

    def add(self, data: bytes) -> None:
        self._settled().update(data)
        self.size += len(data)

    def keep(self, start: int, length: int) -> None:
        if start != self._stop or (self._digest is not None and self._stop - self._start >= STEP):
            self._settled()
            self._start = start
        self._stop = start + length
        self.size += length

    def result(self) -> tuple[str, tuple[bytes, ...]]:
        """The sha256, and its states."""
        digest = self._settled()
        return digest.hexdigest(), tuple(digest.states)

    def _settled(self) -> Sum:
        if self._reading is None:
            self._digest = self._digest or Sum()
        elif self._digest is None:
            self._digest = self._reading.until(self._stop)
        else:
            self._reading.add(self._digest, self._start, self._stop - self._start)
        self._start = self._stop
        return self._digest
