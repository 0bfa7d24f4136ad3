"""Times as indexes and recipes write them (RFC 3339), to the second."""

from __future__ import annotations

import re
from datetime import datetime, timezone


def moment(text: str) -> datetime:
    """The time that `text` names, fractions of a second dropped; UTC when it names no zone. Raises ValueError."""
    found = datetime.fromisoformat(re.sub(r"\.\d+", "", text).upper().replace("Z", "+00:00"))
    return found.replace(tzinfo=timezone.utc) if found.tzinfo is None else found.astimezone(timezone.utc)


def rfc3339(when: datetime) -> str:
    """`when`, in UTC, as locks write it: 2025-10-16T00:00:00Z."""
    return when.strftime("%Y-%m-%dT%H:%M:%SZ")
