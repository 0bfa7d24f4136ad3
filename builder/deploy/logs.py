"""The journal of vLLM's service, as it comes."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone

from builder.deploy.host.base import Host
from builder.deploy.inside import UNIT, harmless, plain
from builder.errors import BuilderError

_LONGEST = 1 << 22
"""Letters of an entry: a line that does not end would fill the memory of the machine that reads it."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Line:
    """One line of the journal, harmless to a terminal."""

    time: datetime
    text: str


def follow(
    host: Host,
    ctid: int,
    each: Callable[[Line], None],
    *,
    lines: int | None = 100,
    since: str | None = None,
    endless: bool = False,
) -> None:
    """Give the service's lines to `each`, one at a time: the last `lines` (None: all), none older than `since`
    (as systemd.time(7) has it), and with `endless` those to come, until `each` or a signal raises.

    Whatever ends it here ends journalctl in the container too, which notices that its reader is gone. Raises
    BuilderError with journalctl's own words.
    """
    argv = ["journalctl", f"--unit={UNIT}", "--no-pager", "--quiet", "--all", "--output=json"]
    argv += ["--output-fields=MESSAGE", f"--lines={'all' if lines is None else lines}"]
    argv += [f"--since={since}"] if since is not None else []
    argv += ["--follow"] if endless else []
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    rest = ""

    def piece(data: bytes) -> None:
        nonlocal rest
        *whole, rest = (rest + decoder.decode(data)).split("\n")
        rest = rest if len(rest) < _LONGEST else ""
        for text in whole:
            for line in read(text):
                each(line)

    done = host.shell.ask(*host.inside(ctid, argv), timeout=None, output=piece)
    if done.status != 0:
        said = plain(done.err.decode(errors="replace")) or f"journalctl ended with {done.status}"
        hint = "give --since as systemd.time(7) has it, such as '10 min ago'" if "timestamp" in said else None
        raise BuilderError(said, where=f"container {ctid}", hint=hint)


def read(entry: str) -> Iterator[Line]:
    """The lines in one entry of journalctl's JSON: a message is a text, or a list of bytes where it is no plain one."""
    try:
        told = json.loads(entry)
        message = told["MESSAGE"]
        text = bytes(message).decode(errors="replace") if isinstance(message, list) else str(message)
        time = datetime.fromtimestamp(int(told["__REALTIME_TIMESTAMP"]) / 1_000_000, timezone.utc)
    except (ValueError, LookupError, TypeError, OverflowError, OSError, RecursionError):
        return
    for line in _COLOUR.sub("", text).splitlines():
        if line.strip():
            yield Line(time, harmless(line.rstrip()))
