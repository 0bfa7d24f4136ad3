"""GPU code in figures: by architecture, and by how it runs on a target."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from builder.gpucode.fatbin import Container, Entry
from builder.gpucode.select import Choice, Target, Verdict, choose


@dataclass(frozen=True)
class Architecture:
    """All code for one architecture."""

    name: str  # sm_120a, compute_90
    count: int  # entries
    size: int  # bytes as stored


@dataclass(frozen=True)
class Unit:
    """What becomes of one translation unit on a target."""

    container: Container
    choice: Choice


def architectures(containers: Iterable[Container]) -> tuple[Architecture, ...]:
    """The code in `containers` by architecture: machine code first, each kind from the lowest up."""
    entries: Mapping[tuple[bool, int, str], list[Entry]] = defaultdict(list)
    for container in containers:
        for entry in container.entries:
            entries[entry.name.startswith("compute"), entry.arch, entry.suffix].append(entry)
    return tuple(
        Architecture(same[0].name, len(same), sum(entry.size for entry in same)) for _, same in sorted(entries.items())
    )


def units(containers: Iterable[Container], target: Target) -> tuple[Unit, ...]:
    """Each translation unit with what the target's driver takes from it."""
    return tuple(Unit(container, choose(container.entries, target)) for container in containers)


def verdicts(found: Sequence[Unit]) -> dict[Verdict, int]:
    """How many of the units have each verdict, best first, zeros included."""
    return {verdict: sum(unit.choice.verdict is verdict for unit in found) for verdict in Verdict}
