"""The ways to a new template: change the one that it replaces, copy what is the same in one, or pack everything."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from builder.pack import patch, publish
from builder.pack.earlier import DamagedTemplateError, Reading, Record, Stat
from builder.pack.newfile import NewFile
from builder.pack.segment import Segment
from builder.pack.write import Written, reusable, write_template
from builder.progress import Progress


@dataclass(frozen=True)
class Work:
    """A template to be made: from what, where, and how it is described."""

    segments: Sequence[Segment]
    level: int
    jobs: int
    scratch: Path
    dest: Path
    template: str  # file name
    tell: Callable[[Written], Mapping[str, str]]
    """Writes into `scratch` what is to lie beside the template; the sha256 of each file, the template's included."""


class _PatchError(Exception):
    """The earlier template is lost: the file system failed while it was changed."""


def make(work: Work, reading: Reading | None, progress: Progress) -> tuple[Written, Stat]:
    """Put the template into `dest`, with all that is the same in the one that is `reading` taken from there.

    What was written, and the file as it was when that was done: what comes to it later shows in its times.
    `reading` is closed when nothing can be taken from it: a template that is gone must not keep its place on the disk.
    Raises BuilderError and OSError.
    """
    if reading is not None:
        frames = reusable(work.segments, reading.earlier)
        try:
            if frames:
                return _patched(work, frames, reading, progress) or _written(work, frames, reading, progress)
        except DamagedTemplateError:
            progress.say(f"{reading.earlier.path} is damaged: not used, packing everything again")
        except _PatchError as error:
            progress.say(f"{reading.earlier.path} could not be changed ({error}): packing everything again")
        reading.close()
    return _written(work, {}, None, progress)


def _written(
    work: Work, frames: Mapping[str, Record], reading: Reading | None, progress: Progress
) -> tuple[Written, Stat]:
    path = work.scratch / work.template
    path.unlink(missing_ok=True)
    with open(path, "xb", buffering=0) as file:
        out = NewFile(file.fileno(), reading)
        written = write_template(out, work.segments, frames, work.level, work.jobs, reading, progress)
        out.finish()
        stat = Stat.of(os.fstat(file.fileno()))
    place = work.dest / work.template
    there = Stat.of(place.lstat()) if place.exists() else None
    publish.place(work.scratch, work.dest, work.template, work.tell(written))
    is_kept = there is not None and there.inode == place.lstat().st_ino  # it was read and is the same
    return written, there if there and is_kept else stat


def _patched(
    work: Work, frames: Mapping[str, Record], reading: Reading, progress: Progress
) -> tuple[Written, Stat] | None:
    """None when the earlier template is another file, used by others, or to be changed in most of its parts."""
    replaced = reading.earlier.path == work.dest / work.template
    kept = sum(record.length for record in frames.values())
    if not replaced or 2 * kept < reading.earlier.stat.size or not patch.is_possible(reading, work.scratch):
        return None
    with tempfile.TemporaryFile(dir=work.scratch, buffering=0) as spill, ExitStack() as stack:
        out = patch.Patch(spill)
        written = write_template(out, work.segments, frames, work.level, work.jobs, reading, progress)
        sums = work.tell(written)
        is_same = written.sha256 == reading.earlier.sha256
        try:
            stack.enter_context(patch.alone(reading))
        except OSError:
            return None
        if not is_same:
            publish.withdraw(work.scratch, work.dest, work.template, sums)
            if not reading.is_at(work.scratch / work.template):
                os.rename(work.scratch / work.template, work.dest / work.template)
                return None
            try:
                patch.apply(out, reading.descriptor)
            except OSError as error:
                raise _PatchError(error.strerror or error) from error
        stat = Stat.of(os.fstat(reading.descriptor))
        publish.place(work.scratch, work.dest, work.template, sums, stays=is_same)
    return written, stat
