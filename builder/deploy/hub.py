"""The model hub: what a repository holds at a commit, and its files, byte by byte where a download was cut short.

huggingface_hub speaks to it and is imported only here, when something is asked.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from builder.errors import BuilderError
from builder.progress import Task

WANTED = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "LICENSE*", "USE_POLICY*", "NOTICE*")
"""What is fetched: no pickles and no code, which would run when the model is loaded."""
UNWANTED = ("original/*", "onnx/*", "openvino/*", "*/onnx/*", "coreml/*")
"""The same weights again, in forms that vLLM does not read."""
PART = ".part"
"""Ends the name of a file that is not complete yet."""

_CHUNK = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9_.+@=,() -]+(/[A-Za-z0-9_.+@=,() -]+)*")


@dataclass(frozen=True)
class Access:
    """Which hub, and as whom."""

    endpoint: str | None = None  # None: $HF_ENDPOINT, else the public one
    token: str | None = field(default=None, repr=False)  # None: the one that `hf auth login` has kept, if any


@dataclass(frozen=True)
class Remote:
    """A file of a repository, as the hub lists it."""

    path: str  # relative
    size: int  # bytes
    sha256: str | None  # of files in large file storage
    blob: str | None  # else git's name of the content


@dataclass(frozen=True)
class Listing:
    """What of a repository is fetched, at one commit."""

    revision: str
    files: tuple[Remote, ...]


def listing(access: Access, repository: str, revision: str | None) -> Listing:
    """The files of `repository` at `revision`, at its newest commit without one.

    Raises BuilderError when the hub cannot be reached, refuses, or has no model there that vLLM can read.
    """
    from huggingface_hub import HfApi

    where = f"{repository} on the model hub"
    with _told(where):
        api = HfApi(endpoint=access.endpoint, token=access.token, library_name="builder")
        info = api.model_info(repository, revision=revision, files_metadata=True)
    commit = info.sha or ""
    if not re.fullmatch("[0-9a-f]{40}", commit) or (revision is not None and commit != revision):
        raise BuilderError(f"answered with commit {commit!a} for {revision or 'the newest'}", where=where)
    wanted = [entry for entry in info.siblings or () if _is_wanted(entry.rfilename)]
    files = tuple(sorted((_remote(entry, where) for entry in wanted), key=lambda file: file.path))
    if not any(file.path == "config.json" for file in files):
        raise BuilderError("has no config.json: that is no model", where=where)
    if not any(file.path.endswith(".safetensors") for file in files):
        raise BuilderError("has no weights as safetensors, and pickled ones are not fetched", where=where)
    return Listing(commit, files)


def download(access: Access, repository: str, revision: str, file: Remote, part: Path, task: Task) -> str:
    """Bring `file` to `part`, going on where an earlier download has stopped; its sha256.

    A content that is not what the hub has listed is removed. Raises BuilderError.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined] # documented, but not in __all__

    url = hf_hub_url(repository, file.path, revision=revision, endpoint=access.endpoint)
    headers = build_hf_headers(token=access.token, library_name="builder")
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open("ab", buffering=0) as out:
        try:
            fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BuilderError("another download writes it", where=part, hint="wait for it") from error
        if out.tell() > file.size:
            out.truncate(0)
        out.seek(0, os.SEEK_END)
        task.advance(out.tell())
        with _told(f"{repository}: {file.path}"):
            http_get(
                url,
                out,
                resume_size=out.tell(),
                headers=headers,
                expected_size=file.size,
                displayed_filename=file.path,
                tqdm_class=_bar(task),
            )
        os.fsync(out.fileno())
    digest, blob = _digests(part, file.size)
    if file.sha256 not in (None, digest) or file.blob not in (None, blob):
        part.unlink()
        wanted = f"sha256 {file.sha256}" if file.sha256 else f"git blob {file.blob}"
        what = f"{file.path} arrived with sha256 {digest}, and the hub lists {wanted}: removed"
        raise BuilderError(what, where=repository, hint="try again")
    return digest


def _digests(path: Path, size: int) -> tuple[str, str]:
    """sha256 of the content, and git's name of it."""
    digest, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            blob.update(chunk)
    return digest.hexdigest(), blob.hexdigest()


def _is_wanted(path: str) -> bool:
    name = path.rpartition("/")[2]
    return any(fnmatch(name, form) for form in WANTED) and not any(fnmatch(path, form) for form in UNWANTED)


def _remote(entry: Any, where: str) -> Remote:
    if not _NAME.fullmatch(entry.rfilename) or {".", ".."} & set(entry.rfilename.split("/")):
        raise BuilderError(f"lists a file {entry.rfilename!a}: no such name is written", where=where)
    sha256 = entry.lfs.sha256 if entry.lfs else None
    blob = None if entry.lfs else entry.blob_id
    known = re.fullmatch("[0-9a-f]{64}", sha256 or "") or re.fullmatch("[0-9a-f]{40}", blob or "")
    if not isinstance(entry.size, int) or not known:
        raise BuilderError(f"lists {entry.rfilename!a} without its size and hash", where=where)
    return Remote(entry.rfilename, entry.size, sha256, blob)


@contextmanager
def _told(where: str) -> Iterator[None]:
    """The hub's errors as one line with a way out; nothing else of huggingface_hub's reaches the terminal."""
    from huggingface_hub import errors
    from huggingface_hub.utils.logging import set_verbosity

    set_verbosity(logging.CRITICAL)
    try:
        yield
    except errors.GatedRepoError as error:
        hint = "accept its terms on the hub, then give --token-file FILE with a token of that account"
        raise BuilderError(
            "is gated: the hub gives it to nobody who has not accepted its terms", where=where, hint=hint
        ) from error
    except errors.RevisionNotFoundError as error:
        raise BuilderError("has no such revision", where=where, hint="look at Revision in the profile") from error
    except errors.RepositoryNotFoundError as error:
        hint = "look at Repository in the profile; a private one needs --token-file FILE"
        raise BuilderError("there is no such repository, or not for you", where=where, hint=hint) from error
    except errors.HfHubHTTPError as error:
        hint = (
            "look at the token"
            if error.response.status_code in (401, 403)
            else "try again: it goes on where it stopped"
        )
        raise BuilderError(f"the hub answers {error.response.status_code}", where=where, hint=hint) from error
    except errors.OfflineModeIsEnabled as error:
        raise BuilderError("HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set", where=where, hint="unset it") from error
    except Exception as error:  # its errors have no class in common
        name = (isinstance(error, OSError) and error.strerror) or type(error).__name__
        raise BuilderError(
            f"the download failed ({name})", where=where, hint="try again: it goes on where it stopped"
        ) from error


def _bar(task: Task) -> Any:
    """A class in the place of tqdm's that reports to `task`."""

    class Bar:
        def __init__(self, *_: object, **__: object) -> None:
            pass

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, amount: float = 1) -> None:
            task.advance(int(amount))

        def close(self) -> None:
            pass

    return Bar
