"""An earlier template: what its manifest tells of its frames, and the thread that reads it to see that it is sound."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

STEP = 16 << 20
"""Bytes read and hashed at a time: enough that threads seldom wait for the interpreter's lock in between."""


class Record(NamedTuple):
    """Where a segment's frame lies in a template."""

    identity: str  # of the segment
    offset: int
    length: int
    tar_size: int  # bytes that it unpacks to


class DamagedTemplateError(Exception):
    """The earlier template is not what its manifest says."""


@dataclass(frozen=True)
class Earlier:
    """A template whose frames may be taken over."""

    path: Path
    sha256: str
    size: int
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
            return cls(path, sums[path.name], size, {record.identity: record for record in records})
        except (OSError, ValueError, TypeError, KeyError):
            return None


def _lies_within(size: int, record: Record) -> bool:
    numbers = record.offset, record.length, record.tar_size
    return all(type(number) is int and number >= 0 for number in numbers) and record.offset + record.length <= size


class Reading:
    """An earlier template, open, and its sha256 up to any place of it.

    A thread reads it once from its start. The file is open to be written too where that is allowed.
    Making one raises OSError; methods raise DamagedTemplateError when the file cannot be read or ends too early.
    """

    def __init__(self, earlier: Earlier) -> None:
        self.earlier = earlier
        self.descriptor = _open(earlier.path)
        self.modified = os.fstat(self.descriptor).st_mtime_ns
        self._marks: list[Future[hashlib._Hash]] = [Future() for _ in range(earlier.size // STEP + 1)]
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._read, name="earlier template")
        self._thread.start()

    def until(self, offset: int) -> hashlib._Hash:
        """The sha256 of the first `offset` bytes, to go on with; waits until they are read."""
        number = offset // STEP
        digest = self._marks[number].result().copy()
        self.add(digest, number * STEP, offset - number * STEP)
        return digest

    def add(self, digest: hashlib._Hash, start: int, length: int) -> None:
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

    def is_sound(self) -> bool:
        """Whether the whole file is what `SHA256SUMS` said; waits until it is read."""
        return self.until(self.earlier.size).hexdigest() == self.earlier.sha256

    def is_at(self, path: Path) -> bool:
        """Whether this very file is the one at `path`."""
        try:
            return os.path.samestat(os.fstat(self.descriptor), os.stat(path, follow_symlinks=False))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """End the thread and close the file; nothing may be asked for after this."""
        if not self._stopped.is_set():
            self._stopped.set()
            self._thread.join()
            os.close(self.descriptor)

    def _read(self) -> None:
        digest = hashlib.sha256()
        buffers = [memoryview(bytearray(STEP)) for _ in range(2)]
        self._marks[0].set_result(digest.copy())
        with ThreadPoolExecutor(1) as ahead:
            filled = ahead.submit(self._fill, buffers[0], 0)
            for number, mark in enumerate(self._marks[1:], 1):
                try:
                    filled.result()
                except BaseException as error:
                    for later in self._marks[number:]:
                        later.set_exception(error)
                    return
                if mark is not self._marks[-1]:
                    filled = ahead.submit(self._fill, buffers[number % 2], number * STEP)
                digest.update(buffers[(number - 1) % 2])
                mark.set_result(digest.copy())

    def _fill(self, part: memoryview, start: int) -> None:
        done = 0
        while done < len(part):
            if self._stopped.is_set():
                raise DamagedTemplateError
            try:
                count = os.preadv(self.descriptor, [part[done:]], start + done)
            except OSError as error:
                raise DamagedTemplateError from error
            if count == 0:
                raise DamagedTemplateError
            done += count


def _open(path: Path) -> int:
    with suppress(OSError):
        return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
