"""Entries of a recipe that name what a stage takes: ``SOURCE[:TARGET]``, ``url:NAME[:TARGET]``, a script."""

from __future__ import annotations

import os
from pathlib import Path

from builder.errors import BuilderError, UsageError
from builder.lock.model import Blob, Lock, UrlRequest
from builder.recipe.model import Recipe
from builder.recipe.tables import source, url_name


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


def file(recipe: Recipe, entry: str) -> Path:
    """The file or folder of the recipe that an entry names, itself no symbolic link."""
    return (recipe.directory / source(entry)).resolve()


def script(recipe: Recipe, entry: str) -> Path:
    """The same for a program to be run in the template. Raises UsageError when it cannot be run."""
    path = file(recipe, entry)
    if not path.is_file() or not os.access(path, os.X_OK):
        raise UsageError("is not executable", where=path, hint=f"chmod +x {path}")
    return path


def target(entry: str) -> str:
    """The place in the template that an entry names; the root when it names none, as in mkosi."""
    parts = entry.split(":", 2 if is_url(entry) else 1)
    wanted = 3 if is_url(entry) else 2
    return parts[-1] if len(parts) == wanted else "/"
