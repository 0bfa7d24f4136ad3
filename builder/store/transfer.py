"""The work of a fetch: threads, mirrors, attempts, and files that go on where the last run ended."""

from __future__ import annotations

import fcntl
import os
import queue
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import requests

from builder.errors import BuilderError
from builder.lock.model import Blob
from builder.lock.web import shown
from builder.progress import Task
from builder.store import http
from builder.store.download import Retry
from builder.store.files import chunks, guarded, write_all
from builder.store.http import new_session
from builder.store.store import Store

__all__ = ["Fetcher", "new_session"]


_Answer = http.RefusedError | http.TransientError


class _StoppedError(Exception):
    """Another thread failed, or the user interrupted."""


class _GoneError(BuilderError):
    """No URL has the file any more."""


class _Partial:
    """A file of tmp/partial that this builder alone writes: its bytes so far, and their running hash."""

    def __init__(self, path: Path, fd: int, limit: int, task: Task) -> None:
        self.path, self.fd, self._limit, self._task = path, fd, limit, task
        self._digest = sha256()
        self.done = 0
        with guarded(path):
            for part in chunks(fd):
                self._count(part)
        if self.done > limit:
            self.restart()

    def append(self, part: bytes) -> None:
        """Add `part`. Raises BuilderError when the disk is full."""
        with guarded(self.path):
            write_all(self.fd, part)
        self._count(part)

    def _count(self, part: bytes) -> None:
        self._digest.update(part)
        self.done += len(part)
        self._task.advance(len(part))

    def restart(self) -> None:
        """Forget all bytes."""
        with guarded(self.path):
            os.ftruncate(self.fd, 0)
            os.lseek(self.fd, 0, os.SEEK_SET)
        self._task.advance(-self.done)
        self.done = 0
        self._digest = sha256()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


class Fetcher:
    def __init__(self, store: Store, session: requests.Session, retry: Retry, task: Task) -> None:
        self._store, self._session, self._retry, self._task = store, session, retry, task
        self._stop = threading.Event()
        self._received = 0
        self._counting = threading.Lock()

    def run(self, blobs: Sequence[Blob], jobs: int) -> int:
        """Fetch all; the bytes received. Threads are daemons: one that waits for a dead server holds up no exit."""
        todo: queue.SimpleQueue[Blob] = queue.SimpleQueue()
        done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        for blob in blobs:
            todo.put(blob)

        def work() -> None:
            while not self._stop.is_set():
                try:
                    blob = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    self._one(blob)
                    done.put(None)
                except BaseException as error:
                    done.put(error)

        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(jobs, len(blobs)))]
        gone: list[_GoneError] = []
        try:
            for thread in threads:
                thread.start()
            for _ in blobs:
                error = done.get()
                if isinstance(error, _GoneError):
                    gone.append(error)
                elif error is not None:
                    raise error
        finally:
            self._stop.set()
            deadline = time.monotonic() + 1
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
        if gone:
            raise _all_gone(gone)
        return self._received

    def _one(self, blob: Blob) -> None:
        with self._partial(blob) as partial:
            if partial is None:
                return
            answers: list[tuple[str, _Answer]] = []
            for url in blob.urls:
                answer = self._from(url, blob, partial)
                if answer is None:
                    with guarded(partial.path):
                        os.fsync(partial.fd)
                    self._store.publish(partial.path, blob.sha256)
                    return
                answers.append((url, answer))
        raise _failure(blob, answers)

    @contextmanager
    def _partial(self, blob: Blob) -> Iterator[_Partial | None]:
        """The partial file under its lock; None when another builder finished it while this one waited."""
        path = self._store.folder("tmp", "partial") / blob.sha256
        while True:
            with guarded(path):
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                self._lock(fd)
                if not _is(path, fd):
                    continue
                if self._store.has(blob):
                    self._task.advance(blob.size)
                    path.unlink()
                    yield None
                    return
                partial = _Partial(path, fd, blob.size, self._task)
                try:
                    yield partial
                finally:
                    if partial.done == 0:
                        path.unlink(missing_ok=True)
                return
            finally:
                os.close(fd)

    def _lock(self, fd: int) -> None:
        while not _locks(fd):
            self._pause(0.1)

    def _pause(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise _StoppedError

    def _from(self, url: str, blob: Blob, partial: _Partial) -> _Answer | None:
        """Fetch from one URL with all its attempts; None when the file is whole and right, else the last answer."""
        attempt = 0
        restarted = False
        while True:
            before = partial.done
            try:
                self._attempt(url, blob, partial)
                return None
            except http.MisfitError as misfit:
                partial.restart()
                if restarted or before == 0:
                    return misfit
                restarted = True
            except http.RefusedError as refused:
                return refused
            except http.TransientError as transient:
                attempt = 1 if partial.done > before else attempt + 1
                if attempt >= self._retry.attempts:
                    return transient
                self._task.note(f"{blob.filename}: {transient}")
                self._pause(self._retry.wait(attempt, transient.wait))

    def _attempt(self, url: str, blob: Blob, partial: _Partial) -> None:
        if partial.done < blob.size or blob.size == 0:
            with http.reading(self._session, url, partial.done) as body:
                if body.size not in (None, blob.size):
                    raise http.RefusedError(f"expected {blob.size:,} bytes, got {body.size:,}")
                if body.start != partial.done:
                    partial.restart()
                for part in body.parts:
                    self._receive(part, blob, partial)
        if partial.done < blob.size:
            raise http.TransientError(f"ended after {partial.done:,} of {blob.size:,} bytes")
        if partial.sha256 != blob.sha256:
            raise http.MisfitError(f"expected sha256 {blob.sha256}, got {partial.sha256}")

    def _receive(self, part: bytes, blob: Blob, partial: _Partial) -> None:
        if self._stop.is_set():
            raise _StoppedError
        if partial.done + len(part) > blob.size:
            raise http.MisfitError(f"expected {blob.size:,} bytes, got more")
        partial.append(part)
        with self._counting:
            self._received += len(part)


def _locks(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is(path: Path, fd: int) -> bool:
    """Whether `path` still names the open file: another builder may have finished and renamed it."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def _failure(blob: Blob, answers: Sequence[tuple[str, _Answer]]) -> BuilderError:
    said = ", ".join(f"{shown(url)}: {answer}" for url, answer in answers) or "the lock has no URL"
    if any(isinstance(answer, http.TransientError) for _, answer in answers):
        return BuilderError(said, where=blob.filename, hint="run the command again: it goes on where it was")
    gone = all(isinstance(answer, http.RefusedError) and answer.gone for _, answer in answers)
    kind = _GoneError if gone else BuilderError
    return kind(said, where=blob.filename, hint=f"run `builder lock RECIPE --upgrade {_name(blob)}`")


def _name(blob: Blob) -> str:
    """The package that a file name stands for: NAME_VERSION_ARCH.deb, NAME-VERSION-....whl."""
    return re.split(r"_" if blob.filename.endswith(".deb") else r"-\d", blob.filename, maxsplit=1)[0]


def _all_gone(errors: Sequence[_GoneError]) -> BuilderError:
    if len(errors) == 1:
        return errors[0]
    names = " ".join(f"--upgrade {(error.hint or '').rstrip('`').rpartition(' ')[2]}" for error in errors)
    files = "; ".join(f"{error.where}: {error.what}" for error in errors)
    return BuilderError(f"{len(errors)} files are gone: {files}", hint=f"run `builder lock RECIPE {names}`")
