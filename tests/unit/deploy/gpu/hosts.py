"""Invented hosts for tests: cards, guests, and a channel that answers from a script."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from builder.deploy.gpu import Card, Driver, Gpus
from builder.deploy.model import Guest, Mark
from builder.deploy.profile.model import Model, Profile
from builder.deploy.shell import Done

NODES = ("/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia0", "/dev/nvidia1", "/dev/nvidiactl")


def card(index: int, *, memory: int = 16311, used: int = 4, capability: str = "12.0", mig: bool = False) -> Card:
    return Card(index, "GeForce RTX 5060 Ti", f"0000:0{index + 1}:00.0", memory, used, capability, mig)


def host(*cards: Card, driver: Driver | None = None, nodes: Sequence[str] = NODES) -> Gpus:
    return Gpus(driver or Driver("580.76.05", True, "/kept"), cards or (card(0), card(1)), tuple(nodes))


def profile(name: str = "fp8", *, share: float = 0.9, gpus: int = 1) -> Profile:
    return Profile(name, "", Model("", None, "/models/m"), "m", "completion", gpus, share, {}, {})


def server(
    ctid: int, name: str, gpus: tuple[int, ...], share: float, *, running: bool = True, onboot: bool = False
) -> Guest:
    """A container that the builder made."""
    mark = Mark("r1", name, "server", "0" * 64, "t", profile=name, gpus=gpus, share=share)
    config = {"onboot": "1"} if onboot else {}
    return Guest(ctid, name, running=running, description=mark.line(), config=config)


@dataclass
class SimulatedChannel:
    """Answers each command with what `answer` says, a status and an output, and keeps what was asked."""

    answer: Callable[[Sequence[str]], tuple[int, str]]
    seen: list[tuple[str, ...]] = field(default_factory=list)
    name: str = "a simulated host"

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | Path | None = None,
        timeout: float | None = None,
        output: Callable[[bytes], None] | None = None,
    ) -> Done:
        self.seen.append(tuple(argv))
        status, text = self.answer(argv)
        return Done(tuple(argv), status, text.encode() if status == 0 else b"", b"" if status == 0 else text.encode())
