"""Fat binaries: read them, and judge what a card's driver would take from them. Knows nothing of templates."""

from builder.gpucode.fatbin import Container, Entry, Kind, read
from builder.gpucode.select import Choice, Target, Verdict, capability, choose

__all__ = ["Choice", "Container", "Entry", "Kind", "Target", "Verdict", "capability", "choose", "read"]
