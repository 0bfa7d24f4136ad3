"""What a deploy did and how to take it back, on disk before it is done, for whoever has to finish.

One folder for each host and container id, under `state_root()`: a lock that dies with its process, and the journal,
JSON lines of which each is on disk before the next step begins. A line that was cut short by a crash is not there.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builder.errors import BuilderError

VERSION = 1


@dataclass(frozen=True)
class Undo:
    """One thing that takes a change back: the name of an operation and its values, both fit for JSON."""

    operation: str
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StepState:
    """A step that was begun."""

    name: str
    undo: tuple[Undo, ...]
    done: bool


@dataclass(frozen=True)
class Run:
    """A journal, read."""

    run: str
    started: str  # ISO 8601, UTC
    request: Mapping[str, Any]
    steps: tuple[StepState, ...]  # begun and not taken back, in order
    undoing: bool  # a roll-back was begun
    end: str | None  # "deployed" or "rolled back"; None: somebody must finish


def state_root() -> Path:
    """`$BUILDER_STATE`, else /var/lib/builder for root, else ~/.local/state/builder (XDG base directories)."""
    if given := os.environ.get("BUILDER_STATE"):
        return Path(given)
    if os.geteuid() == 0:
        return Path("/var/lib/builder")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "builder"


def folder_of(host: str, ctid: int) -> Path:
    """Where lock and journal of a container lie."""
    return state_root() / "deploy" / folder_name(host) / str(ctid)


def folder_name(host: str) -> str:
    """A host's name as a folder's."""
    return re.sub(r"[^A-Za-z0-9@._-]", "_", host)


class Journal:
    """The journal of one container, open for writing while its lock is held."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "journal.jsonl"

    def begin(self, run: str, request: Mapping[str, Any], started: str) -> None:
        """Start a new journal; the one before it, which has ended, is kept beside it."""
        if self.path.exists():
            os.replace(self.path, self.path.with_name("previous.jsonl"))
        self._write({"event": "begin", "version": VERSION, "run": run, "started": started, "request": request})

    def step(self, name: str, undo: tuple[Undo, ...]) -> None:
        """A step is about to begin."""
        listed = [[each.operation, dict(each.values)] for each in undo]
        self._write({"event": "step", "name": name, "undo": listed})

    def done(self, name: str) -> None:
        """A step is done."""
        self._write({"event": "done", "name": name})

    def undoing(self, reason: str) -> None:
        """What was done is about to be taken back."""
        self._write({"event": "undoing", "reason": reason})

    def undone(self, name: str) -> None:
        """A step is taken back."""
        self._write({"event": "undone", "name": name})

    def end(self, how: str) -> None:
        """Nobody needs to do anything any more."""
        self._write({"event": "end", "how": how})

    def read(self) -> Run | None:
        """The journal as it is; None when there is none. Raises BuilderError when it is not one of this version."""
        return read(self.path)

    def _write(self, event: Mapping[str, Any]) -> None:
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                self._cut_torn_line(fd)
                os.write(fd, json.dumps(event, sort_keys=True).encode() + b"\n")
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise BuilderError(f"cannot be written: {error.strerror}", where=self.path) from error

    @staticmethod
    def _cut_torn_line(fd: int) -> None:
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            whole = os.pread(fd, size, 0)
            os.ftruncate(fd, whole.rfind(b"\n") + 1)


def read(path: Path) -> Run | None:
    """The journal at `path`, None when there is none; see `Journal.read`."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BuilderError(f"cannot be read: {error.strerror}", where=path) from error
    if not lines:
        return None
    try:
        return _replay([json.loads(line) for line in lines])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        hint = "look at the container by hand, then remove the file"
        raise BuilderError("is no journal that this version can read", where=path, hint=hint) from error


def _replay(events: list[dict[str, Any]]) -> Run:
    first = events[0]
    if first["event"] != "begin" or first["version"] != VERSION:
        raise ValueError(first)
    steps: dict[str, StepState] = {}
    undoing, end = False, None
    for event in events[1:]:
        kind = event["event"]
        if kind == "step":
            undo = tuple(Undo(operation, values) for operation, values in event["undo"])
            steps[event["name"]] = StepState(event["name"], undo, done=False)
        elif kind == "done":
            steps[event["name"]] = StepState(event["name"], steps[event["name"]].undo, done=True)
        elif kind == "undone":
            del steps[event["name"]]
        elif kind == "undoing":
            undoing, end = True, None
        elif kind == "end":
            end = str(event["how"])
    return Run(first["run"], first["started"], first["request"], tuple(steps.values()), undoing, end)


@contextmanager
def locked(folder: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock in `folder` for the block. `what` names what is locked.

    Raises BuilderError, with the process that holds it, when another builder works on it; with `wait` waits for that.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BuilderError(f"cannot be written: {error.strerror}", where=folder) from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            holder = os.pread(fd, 20, 0).decode(errors="replace").strip()
            hint = "wait for it, or end it and run `builder rollback`"
            raise BuilderError(f"another builder works on it, process {holder}", where=what, hint=hint) from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def unfinished() -> tuple[tuple[str, int, Run], ...]:
    """Host, container id and journal of every run that somebody must finish, on this machine's records."""
    found = []
    root = state_root() / "deploy"
    for path in sorted(root.glob("*/*/journal.jsonl")):
        run = read(path)
        if run is not None and run.end is None and path.parent.name.isdigit():
            found.append((path.parent.parent.name, int(path.parent.name), run))
    return tuple(found)


def others(host: str, run: str = "") -> tuple[tuple[int, Run], ...]:
    """The unfinished runs on the host of this name, but for `run`, with the ids that they were begun for."""
    here = folder_name(host)
    return tuple((ctid, found) for name, ctid, found in unfinished() if name == here and found.run != run)
