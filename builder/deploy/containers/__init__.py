"""Containers from containers.toml or phoenix_lxc_configs.json."""

from __future__ import annotations

from pathlib import Path

from builder.deploy.containers import phoenix, toml
from builder.deploy.containers.model import Finding, Loaded
from builder.deploy.containers.select import select

__all__ = ["FILES", "Finding", "Loaded", "load", "select"]

FILES = ("containers.toml", "phoenix_lxc_configs.json")
"""Where containers are looked for in the current folder, in this order."""


def load(path: Path | None) -> Loaded:
    """The containers of the file at `path`: JSON is the phoenix form, all else TOML. None is the first of `FILES` that
    the current folder has; without any there are no containers.

    Raises UsageError, with file and line, for a file that cannot be read.
    """
    if path is None:
        path = next((found for found in map(Path, FILES) if found.exists()), None)
    if path is None:
        return Loaded()
    return phoenix.load(path) if path.suffix == ".json" else toml.load(path)
