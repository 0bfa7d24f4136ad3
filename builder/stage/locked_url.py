"""Entries of a recipe that name a `[[Url]]`: ``url:NAME`` or ``url:NAME:TARGET``."""

from __future__ import annotations

from builder.errors import BuilderError
from builder.lock.model import Blob, Lock, UrlRequest
from builder.recipe.model import Recipe
from builder.recipe.tables import url_name


def is_url(entry: str) -> bool:
    """Whether an entry names a `[[Url]]`, and no file of the recipe."""
    return entry.startswith("url:")


def request(recipe: Recipe, entry: str) -> UrlRequest:
    """What the lock is asked for."""
    url = recipe.url(url_name(entry))
    return UrlRequest(url.lock_id, url.url, url.sha256, url.size)


def locked(recipe: Recipe, lock: Lock, entry: str) -> Blob:
    """The locked file. Raises BuilderError when the lock has none."""
    url = recipe.url(url_name(entry))
    try:
        return lock.urls[url.lock_id]
    except KeyError:
        raise BuilderError(f"the lock has no file for [[Url]] {url.name}", hint="run `builder lock`") from None
