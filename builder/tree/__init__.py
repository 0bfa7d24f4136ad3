"""File trees: walk, digest, merge and unpack; the one place that knows owners, xattrs, holes and whiteouts."""

from builder.tree.archive import ExtractLimits, extract, files
from builder.tree.check import changed, verify
from builder.tree.entry import Entry
from builder.tree.index import Index, order
from builder.tree.stack import clashes, merge, resolve
from builder.tree.travel import contents, restore
from builder.tree.walk import normalise, scan

__all__ = [
    "Entry",
    "ExtractLimits",
    "Index",
    "changed",
    "clashes",
    "contents",
    "extract",
    "files",
    "merge",
    "normalise",
    "order",
    "resolve",
    "restore",
    "scan",
    "verify",
]
