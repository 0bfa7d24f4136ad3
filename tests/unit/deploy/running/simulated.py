"""A host with containers whose vLLM service answers as a real one did, for tests without one.

`recorded/` holds what `builder/data/inside.py` said in a container of the recipe vllm-cpu.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builder.deploy.host.base import Capabilities
from builder.deploy.model import Guest, Mark
from builder.deploy.shell import Done, Shell

RECORDED = Path(__file__).parent / "recorded"
Answer = Done | BaseException | dict[str, Any] | str


def recorded(name: str) -> Any:
    """What was recorded under this name."""
    return json.loads((RECORDED / f"{name}.json").read_text(encoding="utf-8"))


def failed(said: str, status: int = 1) -> Done:
    """A command that ends so."""
    return Done((), status, b"", f"{said}\n".encode())


@dataclass
class SimulatedChannel:
    """Answers a question by ``CTID COMMAND`` or COMMAND; of several answers one after the other, and stays at the last.

    Commands of systemctl and of the host go by their first words. What has no answer succeeds silently.
    """

    answers: dict[str, list[Answer]]
    ran: list[str] = field(default_factory=list)
    name: str = "simulated"
    fed: list[bytes] = field(default_factory=list)  # the programs

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | Path | None = None,
        timeout: float | None = None,
        output: Callable[[bytes], None] | None = None,
    ) -> Done:
        words = list(argv)
        ctid = words[1] if words[0] == "inside" else "host"
        words = words[2:] if words[0] == "inside" else words
        if words[0].endswith("/python") or words[0] == "python3":
            assert isinstance(stdin, bytes)
            assert b"def main_pid" in stdin
            self.fed.append(stdin)
            words = words[3:]
        line = " ".join(words)
        self.ran.append(f"{ctid} {line}")
        for start in (f"{ctid} {line}", line):
            for key, answers in self.answers.items():
                if start.startswith(key):
                    return self._give(argv, answers.pop(0) if len(answers) > 1 else answers[0], output)
        return Done(tuple(argv), 0, b"", b"")

    def _give(self, argv: Sequence[str], answer: Answer, output: Callable[[bytes], None] | None) -> Done:
        if isinstance(answer, BaseException):
            raise answer
        if isinstance(answer, Done):
            return answer
        said = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        if output is None:
            return Done(tuple(argv), 0, said, b"")
        for start in range(0, len(said), 7):  # pieces that end anywhere, in the middle of a letter too
            output(said[start : start + 7])
        return Done(tuple(argv), 0, b"", b"")

    def inside(self) -> list[str]:
        """What ran in containers."""
        return [line for line in self.ran if not line.startswith("host ")]


@dataclass
class SimulatedHost:
    """Its guests are as they are given."""

    given: Sequence[Guest]
    channel: SimulatedChannel
    name: str = "simulated"
    capabilities: Capabilities = field(default_factory=lambda: Capabilities(True, True, False))

    def __post_init__(self) -> None:
        self.shell = Shell(self.channel)

    def guests(self) -> tuple[Guest, ...]:
        return tuple(self.given)

    def guest(self, ctid: int) -> Guest | None:
        return next((guest for guest in self.given if guest.ctid == ctid), None)

    def inside(self, ctid: int, argv: Sequence[str]) -> tuple[str, ...]:
        return ("inside", str(ctid), *argv)


def mark(name: str, **changes: Any) -> Mark:
    """A server's mark."""
    values: dict[str, Any] = {
        "run": "5d1f",
        "name": name,
        "role": "server",
        "digest": "ab" * 32,
        "recipe": "vllm-cpu_0.10.2-1_amd64",
        "profile": "cpu",
        "made": "2026-11-24T17:00:00+00:00",
    }
    return Mark(**{**values, **changes})


def server(
    ctid: int, name: str, *, running: bool = True, config: dict[str, str] | None = None, **changes: Any
) -> Guest:
    """A deployment as the host shows it."""
    made = mark(name, **changes)
    tags = ("builder", f"builder-{name}", f"sha256-{made.digest[:16]}")
    return Guest(ctid, name, running=running, tags=tags, description=made.line(), config=config or {})
