"""Locks: every byte that enters a template, by name, version, URL, size and sha256."""

from builder.lock.compare import Change, collect, diff, record, stale, unasked
from builder.lock.files import read, write

__all__ = ["Change", "collect", "diff", "read", "record", "stale", "unasked", "write"]
