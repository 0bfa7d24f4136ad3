"""A channel that answers as the recorded Proxmox does, for hosts without one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from builder.deploy.shell import Done

TRANSCRIPTS = Path(__file__).parent / "transcripts"


@dataclass(frozen=True)
class Recorded:
    """One command of a transcript, and how it went."""

    argv: tuple[str, ...]
    said: str
    status: int

    def done(self) -> Done:
        """A failure's words come on standard error, as Proxmox has it."""
        out, err = (self.said, "") if self.status == 0 else ("", self.said)
        return Done(self.argv, self.status, out.encode(), err.encode())


def recorded(name: str) -> list[Recorded]:
    """The commands of a transcript: ``$ COMMAND``, what it said, ``rc=STATUS``."""
    text = (TRANSCRIPTS / name).read_text(encoding="utf-8")
    found = re.findall(r"^\$ (.*)\n((?:(?!\$ |rc=).*\n)*)rc=(\d+)", text, re.MULTILINE)
    return [Recorded(tuple(shlex.split(command)), said, int(status)) for command, said, status in found]


def told(name: str) -> str:
    """A file of the transcripts."""
    return (TRANSCRIPTS / name).read_text(encoding="utf-8")


@dataclass
class SimulatedChannel:
    """Answers each command with the longest of its answers that the command begins with.

    An answer with several results gives one after the other and stays at its last. A command without an answer fails
    the test.
    """

    answers: dict[str, list[Done | str | Callable[[], Done]]]
    name: str = "simulated"
    ran: list[str] = field(default_factory=list)
    fed: list[bytes | Path | None] = field(default_factory=list)
    limits: dict[str, float | None] = field(default_factory=dict)  # seconds

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | Path | None = None,
        timeout: float | None = None,
        output: Callable[[bytes], None] | None = None,
    ) -> Done:
        line = " ".join(argv)
        self.ran.append(line)
        self.fed.append(stdin)
        self.limits[line] = timeout
        found = max((words for words in self.answers if line.startswith(words)), key=len, default=None)
        if found is None:
            raise AssertionError(f"no answer to {line}")
        results = self.answers[found]
        result = results.pop(0) if len(results) > 1 else results[0]
        if callable(result):
            result = result()
        made = result if isinstance(result, Done) else Done((), 0, result.encode(), b"")
        return replace(made, argv=tuple(argv))

    def changes(self) -> list[str]:
        """What ran that changes something."""
        looks = (
            "pvesh get",
            "pvesm list",
            "pvesm path",
            "cat ",
            "pct status",
            "pct config",
            "test ",
            "sha256sum",
            "stat ",
        )
        return [line for line in self.ran if not line.startswith(looks)]


def failed(said: str, status: int = 255) -> Done:
    """A failure with these words."""
    return Done((), status, b"", f"{said}\n".encode())
