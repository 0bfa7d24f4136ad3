"""Locking one file of the web."""

from __future__ import annotations

import hashlib
from urllib.parse import unquote, urlsplit

import requests

from builder.errors import BuilderError
from builder.lock import web
from builder.lock.model import Blob, UrlRequest
from builder.progress import Progress

_CHUNK = 1 << 20


def resolve_url(request: UrlRequest, session: requests.Session, progress: Progress) -> Blob:
    """The file that `request` names.

    A published sha256 and size are taken as they are; otherwise the whole file is read once to learn them. Raises
    BuilderError with the URL when it cannot be read, ends early, or differs from what of the two is published.
    """
    filename = _filename(request.url)
    if request.sha256 is not None and request.size is not None:
        return Blob(request.sha256, request.size, filename, (request.url,))
    digest, size = hashlib.sha256(), 0
    with web.get(session, request.url, {"Accept-Encoding": "identity"}) as response:
        length = response.headers.get("Content-Length", "")
        expected = int(length) if length.isdecimal() else None
        with progress.task(f"{request.id}: reading", expected) as task:
            for chunk in response.iter_content(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
                task.advance(len(chunk))
    if expected not in (None, size):
        raise BuilderError(f"ended after {size} of {expected} bytes", where=web.shown(request.url))
    blob = Blob(digest.hexdigest(), size, filename, (request.url,))
    for what, published, found in (("sha256", request.sha256, blob.sha256), ("size", request.size, blob.size)):
        if published not in (None, found):
            raise BuilderError(
                f"its {what} is {found}, the recipe says {published}",
                where=web.shown(request.url),
                hint=f"find out why before you change [[Url]] {request.id}",
            )
    return blob


def _filename(url: str) -> str:
    name = unquote(urlsplit(url).path).rstrip("/").rpartition("/")[2]
    if not name:
        raise BuilderError("the URL names no file", where=web.shown(url))
    return name
