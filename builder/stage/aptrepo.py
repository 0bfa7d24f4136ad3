"""A folder of locked .debs that apt reads like an archive: no network, no signature, nothing newer to be had."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from builder.command import run
from builder.lock.model import Blob

PLACE = "/run/builder/repo"
"""Where the folder is shown in the sandbox: what apt writes about it is the same wherever the store lies."""


def write(folder: Path, blobs: Sequence[Blob], locate: Callable[[Blob], Path]) -> None:
    """Make `folder` a flat archive (sources.list(5)) of the .debs `blobs`, which `locate` finds.

    Holds copies: whatever is done to them does not reach the store. Raises BuilderError for a file that is no .deb.
    """
    copy(folder, blobs, locate)
    index = "\n".join(_paragraphs(folder, blobs)).encode(errors="surrogateescape")
    listed = f" {hashlib.sha256(index).hexdigest()} {len(index)} Packages"
    lines = ("Date: Thu, 01 Jan 1970 00:00:00 UTC", "SHA256:", listed, "")
    (folder / "Packages").write_bytes(index)
    (folder / "Release").write_text("\n".join(lines))


def copy(folder: Path, blobs: Sequence[Blob], locate: Callable[[Blob], Path]) -> None:
    """Make `folder` and copy `blobs` into it under their own names."""
    folder.mkdir()
    for blob in blobs:
        shutil.copyfile(locate(blob), folder / blob.filename)


def _paragraphs(folder: Path, blobs: Sequence[Blob]) -> Iterator[str]:
    def control(blob: Blob) -> str:
        fields = run(["dpkg-deb", "--field", str(folder / blob.filename)], env={"PATH": "/usr/bin:/bin"})
        return fields.decode(errors="surrogateescape")

    with ThreadPoolExecutor() as pool:
        for blob, fields in zip(blobs, pool.map(control, blobs), strict=True):
            yield f"{fields.rstrip()}\nFilename: {blob.filename}\nSize: {blob.size}\nSHA256: {blob.sha256}\n"
