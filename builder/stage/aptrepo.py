"""A folder of locked .debs that apt reads like an archive: no network, no signature, nothing newer to be had."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from builder.lock.model import Blob
from builder.stage import debfile
from builder.store.files import sha256_of

PLACE = "/run/builder/repo"
"""Where the folder is shown in the sandbox: what apt writes about it is the same wherever the store lies."""


def write(folder: Path, blobs: Sequence[Blob], locate: Callable[[Blob], Path]) -> str:
    """Make `folder` a flat archive (sources.list(5)) of the .debs `blobs`, which `locate` finds; its index.

    Holds them with nothing compressed: all processors do that here, where apt and dpkg would take one after the other,
    and some twice. Raises BuilderError for a file that is no .deb.
    """
    folder.mkdir()

    def paragraph(blob: Blob) -> str:
        plain = folder / blob.filename
        control = debfile.unpack(locate(blob), plain)
        return f"{control.rstrip()}\nFilename: {plain.name}\nSize: {plain.stat().st_size}\nSHA256: {sha256_of(plain)}\n"

    with ThreadPoolExecutor() as pool:
        index = "\n".join(pool.map(paragraph, blobs))
    data = index.encode(errors="surrogateescape")
    listed = f" {hashlib.sha256(data).hexdigest()} {len(data)} Packages"
    (folder / "Packages").write_bytes(data)
    (folder / "Release").write_text("\n".join(("Date: Thu, 01 Jan 1970 00:00:00 UTC", "SHA256:", listed, "")))
    return index


def copy(folder: Path, blobs: Sequence[Blob], locate: Callable[[Blob], Path]) -> None:
    """Make `folder` and copy `blobs` into it under their own names."""
    folder.mkdir()
    for blob in blobs:
        shutil.copyfile(locate(blob), folder / blob.filename)
