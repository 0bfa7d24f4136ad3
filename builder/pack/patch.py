"""Turn an earlier template into the new one where it lies: only what is new is written.

Two steps. `Patch` collects the new frames beside the earlier template, which is only read; all that can go wrong with
layers, space or the earlier template itself goes wrong there. `apply` then changes the file, in well under a second.
"""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

from builder.pack import shift
from builder.pack.earlier import DamagedTemplateError, Reading, Stat
from builder.pack.frame import PAGE
from builder.pack.resumable import STEP
from builder.store.files import write_all


class Edit(NamedTuple):
    """At a place in the earlier template: so many bytes go, so many new ones come."""

    offset: int
    old: int
    new: int


@dataclass
class Patch:
    """What makes a new template of an earlier one. Its new bytes are in `spill`, in the order of `edits`.

    After the edits the new template goes on with the earlier one up to `at`, then with `new` new bytes, and ends.
    """

    spill: IO[bytes]
    edits: list[Edit] = field(default_factory=list)
    at: int = 0
    new: int = 0

    def add(self, data: bytes) -> None:
        """The new template goes on with `data`. Raises OSError."""
        write_all(self.spill.fileno(), data)
        self.new += len(data)

    def keep(self, start: int, length: int) -> None:
        """The new template goes on with this part of the earlier one. Raises DamagedTemplateError when it goes back."""
        if start < self.at:
            raise DamagedTemplateError
        if start != self.at or self.new:
            self.edits.append(Edit(self.at, start - self.at, self.new))
        self.at, self.new = start + length, 0


def is_possible(reading: Reading, scratch: Path) -> bool:
    """Whether the earlier template may be patched, as far as can be known before: `scratch` lies beside it."""
    try:
        if fcntl.fcntl(reading.descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDWR:
            return False
        with alone(reading):
            return shift.works(scratch, PAGE)
    except OSError:
        return False


@contextmanager
def alone(reading: Reading) -> Iterator[None]:
    """Nobody else has the earlier template open or under another name; who opens it now waits for the block's end, or
    for as long as the kernel lets them wait (45 s: proc(5), lease-break-time).

    A write lease (fcntl(2), "Leases"). Raises OSError when somebody has, or when leases cannot be had there.
    """
    descriptor = reading.descriptor
    # For who waits the kernel sends a signal: one that does nothing unless asked for, in place of SIGIO, which kills.
    fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    try:
        status = os.fstat(descriptor)
        is_own = status.st_uid == os.geteuid() and status.st_nlink == 1
        if not is_own or Stat.of(status) != reading.earlier.stat:
            raise OSError("has another name or owner, or was written to")
        yield
    finally:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def apply(patch: Patch, descriptor: int) -> None:
    """Make the earlier template, open as `descriptor`, the new one, and bring it to the disk.

    Raises OSError when the disk is full; then the file is neither the old template nor the new one.
    """
    moved = 0
    patch.spill.seek(0)
    for edit in patch.edits:  # whole pages each
        place = edit.offset + moved
        if edit.new > edit.old:
            shift.insert(descriptor, place, edit.new - edit.old)
        elif edit.new < edit.old:
            shift.collapse(descriptor, place, edit.old - edit.new)
        _copy(patch.spill.fileno(), descriptor, place, edit.new)
        moved += edit.new - edit.old
    end = patch.at + moved
    _copy(patch.spill.fileno(), descriptor, end, patch.new)
    os.ftruncate(descriptor, end + patch.new)
    os.fsync(descriptor)


def _copy(source: int, target: int, place: int, length: int) -> None:
    """Write the next `length` bytes of `source` at `place`. Raises OSError."""
    os.lseek(target, place, os.SEEK_SET)
    while length:
        data = os.read(source, min(length, STEP))
        if not data:
            raise OSError("the new frames end early")
        write_all(target, data)
        length -= len(data)
