"""Bring locked files into the store: in parallel, verified, resumed, from the first URL that has them."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from builder.errors import BuilderError
from builder.lock.model import Blob
from builder.progress import Progress, Silent
from builder.store.files import guarded
from builder.store.store import Store

if TYPE_CHECKING:
    import requests

JOBS = 8
"""Files fetched at a time."""


@dataclass(frozen=True)
class Fetched:
    """What a fetch did: of `files` with `size` bytes together, `fetched` were not in the store before."""

    files: int
    size: int
    fetched: int
    received: int  # bytes that came over the wire
    seconds: float


@dataclass(frozen=True)
class Retry:
    """How often and how long one URL is tried; the count starts anew whenever bytes arrived."""

    attempts: int = 5
    first_wait: float = 0.5  # seconds, doubled each time, give or take half
    longest_wait: float = 60.0  # seconds, also of what a server asks for

    def wait(self, attempt: int, asked: float) -> float:
        """Seconds between attempt number `attempt` (from 1), whose answer asked for `asked` seconds, and the next."""
        usual: float = self.first_wait * 2.0 ** (attempt - 1) * random.uniform(0.5, 1.5)
        return min(max(usual, asked), self.longest_wait)


def fetch(
    store: Store,
    blobs: Iterable[Blob],
    *,
    jobs: int = JOBS,
    progress: Progress | None = None,
    session: requests.Session | None = None,
    retry: Retry = Retry(),
) -> Fetched:
    """Make sure that the store has all `blobs`.

    Raises BuilderError naming the file and what each URL answered: a file that is gone everywhere does not stop the
    others, anything else does. Nothing unverified is kept under a final name; what came of a file stays in
    tmp/partial and the next fetch goes on from there.
    """
    started = time.monotonic()
    wanted = tuple({blob.sha256: blob for blob in blobs}.values())
    missing = sorted((blob for blob in wanted if not store.has(blob)), key=lambda blob: -blob.size)
    received = 0
    if missing:
        from builder.store.transfer import Fetcher, new_session  # a fetch with nothing to do loads no HTTP library

        _check_room(store, missing)
        with (progress or Silent()).task("fetch", sum(blob.size for blob in missing)) as task:
            received = Fetcher(store, session or new_session(jobs), retry, task).run(missing, jobs)
    size = sum(blob.size for blob in wanted)
    return Fetched(len(wanted), size, len(missing), received, time.monotonic() - started)


def _check_room(store: Store, missing: Sequence[Blob]) -> None:
    with guarded(store.root):
        partial = store.folder("tmp", "partial")
        had = sum((partial / blob.sha256).stat().st_size for blob in missing if (partial / blob.sha256).exists())
        free = shutil.disk_usage(store.root).free
    need = sum(blob.size for blob in missing) - had
    if need > free:
        raise BuilderError(
            f"{need:,} bytes to fetch, {free:,} free",
            where=store.root,
            hint="free some space, run `builder store gc`, or set BUILDER_STORE to a larger disk",
        )
