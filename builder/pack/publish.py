"""Put finished files into the artifacts folder so that a kill at any moment leaves nothing wrong there."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from builder.errors import BuilderError
from builder.store.files import sha256_of, sync

SUMS = "SHA256SUMS"
_WORK = ".pack-"


@contextmanager
def workplace(dest: Path) -> Iterator[Path]:
    """An empty folder in `dest` (made when missing) that is removed afterwards; one at a time, others wait.

    What a killed run left there is removed first. Raises BuilderError when `dest` cannot be written.
    """
    try:
        dest.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(dest, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            for left in dest.glob(f"{_WORK}*"):
                shutil.rmtree(left)
            with tempfile.TemporaryDirectory(prefix=_WORK, dir=dest) as scratch:
                yield Path(scratch)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _failure(error, dest) from error


def _failure(error: OSError, dest: Path) -> BuilderError:
    what = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return BuilderError(what, where=dest, hint="free some space or name another folder with --output")
    denied = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR)
    hint = "name a folder of yours with --output" if denied else None
    return BuilderError(what, where=error.filename or dest, hint=hint)


def place(scratch: Path, dest: Path, template: str, sums: Mapping[str, str], *, stays: bool = False) -> None:
    """Move the files named in `sums` (name to sha256) from `scratch` to `dest`; `template` is the one that counts.

    While a template is replaced neither the old nor the new one is there: the old one goes first, the new one comes
    after all that describes it, and `SHA256SUMS` last. With `stays` it is there already, known to be the new one.
    Raises OSError.
    """
    known = read_sums(dest)
    there = {template} if stays else set()
    if all(known.get(name) == digest and (name in there or _has(dest / name, digest)) for name, digest in sums.items()):
        return
    _forget(scratch, dest, sums)
    kept = read_sums(dest)
    if not stays:
        (dest / template).unlink(missing_ok=True)
    for name in sorted(sums.keys() - there, key=lambda name: (name == template, name)):
        os.replace(scratch / name, dest / name)
    _write_sums(scratch, dest, kept | dict(sums) | _unlisted(dest, kept | dict(sums)))


def withdraw(scratch: Path, dest: Path, template: str, names: Iterable[str]) -> None:
    """Move `template` from `dest` to `scratch`, after `SHA256SUMS` tells nothing of `names` any more.

    All that is on the disk before this returns: what is then written to the file is never seen in `dest`, not even
    after a power cut. Raises OSError.
    """
    _forget(scratch, dest, names)
    os.rename(dest / template, scratch / template)
    sync(dest)


def _forget(scratch: Path, dest: Path, names: Iterable[str]) -> None:
    """Take `names`, and what is not there, off `SHA256SUMS`."""
    known = read_sums(dest)
    gone = set(names)
    kept = {name: digest for name, digest in known.items() if name not in gone and (dest / name).exists()}
    if known != kept:
        _write_sums(scratch, dest, kept)


def write_text(path: Path, text: str) -> str:
    """Write a file and make sure that it is on disk; its sha256. Raises OSError."""
    data = text.encode()
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(data).hexdigest()


def _has(path: Path, sha256: str) -> bool:
    return path.exists() and sha256_of(path) == sha256


def read_sums(dest: Path) -> dict[str, str]:
    """What `SHA256SUMS` says, by file name; lines that are not of its form are dropped. Raises OSError."""
    try:
        lines = (dest / SUMS).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return {}
    return {line[66:]: line[:64] for line in lines if len(line) > 66 and line[64:66] == "  " and "/" not in line}


def _write_sums(scratch: Path, dest: Path, sums: Mapping[str, str]) -> None:
    if sums:
        write_text(scratch / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())))
        os.replace(scratch / SUMS, dest / SUMS)
    else:  # sha256sum(1) takes an empty list for a damaged one
        (dest / SUMS).unlink(missing_ok=True)
    sync(dest)


def _unlisted(dest: Path, sums: Mapping[str, str]) -> dict[str, str]:
    """Templates in the folder that `SHA256SUMS` has lost sight of."""
    return {path.name: sha256_of(path) for path in dest.glob("*.tar.zst") if path.name not in sums}
