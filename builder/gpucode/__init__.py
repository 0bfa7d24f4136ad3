"""Fat binaries: read them, and judge what a card's driver would take from them. Knows nothing of templates."""

from builder.gpucode.fatbin import Container, Entry, Kind, read
from builder.gpucode.report import Architecture, Unit, architectures, units, verdicts
from builder.gpucode.scan import Library, scan
from builder.gpucode.select import Choice, Target, Verdict, capability, choose

__all__ = [
    "Architecture",
    "Choice",
    "Container",
    "Entry",
    "Kind",
    "Library",
    "Target",
    "Unit",
    "Verdict",
    "architectures",
    "capability",
    "choose",
    "read",
    "scan",
    "units",
    "verdicts",
]
