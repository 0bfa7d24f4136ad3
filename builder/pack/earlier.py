"""An earlier template, known as it was left: where its frames lie, and how its sha256 came about."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from builder.pack.resumable import STATE_SIZE, STEP, Sum


class Record(NamedTuple):
    """Where a segment's frame lies in a template."""

    identity: str  # of the segment
    offset: int
    length: int
    tar_size: int  # bytes that it unpacks to


class Stat(NamedTuple):
    """What the kernel keeps of a file, all as long as nobody writes to it."""

    size: int
    modified: int  # nanoseconds since 1970, as the next
    changed: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stat:
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


class DamagedTemplateError(Exception):
    """The earlier template is not what it was."""


@dataclass(frozen=True)
class Earlier:
    """A template whose frames may be taken over as long as nobody has written to it."""

    path: Path
    stat: Stat
    sha256: str
    states: tuple[bytes, ...]  # of its sha256: see `builder.pack.resumable`
    records: tuple[Record, ...]

    @cached_property
    def frames(self) -> Mapping[str, Record]:
        return {record.identity: record for record in self.records}

    def told(self) -> dict[str, Any]:
        """All but the path, for JSON."""
        return {
            "step": STEP,
            "stat": self.stat,
            "sha256": self.sha256,
            "states": b"".join(self.states).hex(),
            "frames": self.records,
        }

    @classmethod
    def load(cls, path: Path, told: Mapping[str, Any]) -> Earlier | None:
        """The template at `path` that `told` tells of; None when it tells of none."""
        try:
            stat, sha256, states = Stat(*told["stat"]), told["sha256"], bytes.fromhex(told["states"])
            records = tuple(Record(*row) for row in told["frames"])
            is_known = told["step"] == STEP
        except (KeyError, TypeError, ValueError):
            return None
        cut = tuple(states[at : at + STATE_SIZE] for at in range(0, len(states), STATE_SIZE))
        is_whole = bool(cut) and len(cut[-1]) == STATE_SIZE and isinstance(sha256, str)
        if not is_known or not is_whole or not _are_counts(stat):
            return None
        return cls(path, stat, sha256, cut, records) if all(_lies_within(stat.size, each) for each in records) else None


def _lies_within(size: int, record: Record) -> bool:
    return _are_counts(record[1:]) and record.offset + record.length <= size


def _are_counts(numbers: Sequence[object]) -> bool:
    return all(type(number) is int and number >= 0 for number in numbers)


class Reading:
    """An earlier template, open as `descriptor`: to be written too where that is allowed.

    Methods raise DamagedTemplateError when the file cannot be read or ends too early.
    """

    def __init__(self, earlier: Earlier, descriptor: int) -> None:
        self.earlier = earlier
        self.descriptor = descriptor
        self._pool = ThreadPoolExecutor(1)
        self._is_closed = False
        self._check: Future[bool] | None = None

    def until(self, offset: int) -> Sum:
        """The sha256 of the first `offset` bytes, to go on with; what comes after them is read and checked meanwhile.

        What comes before is taken as it was left: were it damaged, the sum would not be that of the bytes.
        """
        self._check = self._pool.submit(self._is_sound_from, offset)
        return self._sum(offset, offset)

    def is_sound(self) -> bool:
        """Whether nothing was written to it, and what comes after the place that `until` was asked for is as it was.

        Waits for that to be read.
        """
        now = Stat.of(os.fstat(self.descriptor))
        was_written = (now.size, now.modified) != (self.earlier.stat.size, self.earlier.stat.modified)
        return not was_written and self._check is not None and self._check.result()

    def add(self, digest: Sum, start: int, length: int) -> None:
        """Hash `length` bytes from `start` on."""
        for part in self.parts(start, length):
            digest.update(part)

    def parts(self, start: int, length: int) -> Iterator[memoryview]:
        """`length` bytes from `start` on; each part until the next is asked for."""
        buffer = memoryview(bytearray(min(length, STEP)))
        for at in range(start, start + length, STEP):
            part = buffer[: min(start + length - at, STEP)]
            self._fill(part, at)
            yield part

    def is_at(self, path: Path) -> bool:
        """Whether this very file is the one at `path`."""
        try:
            return os.path.samestat(os.fstat(self.descriptor), os.stat(path, follow_symlinks=False))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """End what is read meanwhile and close the file; nothing but this may be asked for afterwards."""
        if not self._is_closed:
            self._is_closed = True
            self._pool.shutdown()
            os.close(self.descriptor)

    def _sum(self, offset: int, stop: int) -> Sum:
        """The sha256 up to `stop`, from the last state before `offset` on."""
        digest = Sum(self.earlier.states[: offset // STEP + 1])
        self.add(digest, digest.size, stop - digest.size)
        return digest

    def _is_sound_from(self, offset: int) -> bool:
        return self._sum(offset, self.earlier.stat.size).hexdigest() == self.earlier.sha256

    def _fill(self, part: memoryview, start: int) -> None:
        done = 0
        while done < len(part):
            if self._is_closed:
                raise DamagedTemplateError
            try:
                count = os.preadv(self.descriptor, [part[done:]], start + done)
            except OSError as error:
                raise DamagedTemplateError from error
            if count == 0:
                raise DamagedTemplateError
            done += count


@contextmanager
def opened(earlier: Earlier | None) -> Iterator[Reading | None]:
    """`earlier` for the block; None when it cannot be read or somebody has written to it since."""
    reading = _reading(earlier) if earlier else None
    try:
        yield reading
    finally:
        if reading is not None:
            reading.close()


def _reading(earlier: Earlier) -> Reading | None:
    try:
        descriptor = _open(earlier.path)
    except OSError:
        return None
    if Stat.of(os.fstat(descriptor)) == earlier.stat:
        return Reading(earlier, descriptor)
    os.close(descriptor)
    return None


def _open(path: Path) -> int:
    with suppress(OSError):
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
