"""What a driver takes from a container: it decides for each translation unit by itself."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from builder.errors import UsageError
from builder.gpucode.fatbin import Entry, Kind

_SUFFIXES = ("", "f", "a")


class Verdict(Enum):
    """How a translation unit runs, best first."""

    EXACT = "exact"  # machine code of this very architecture
    MINOR = "minor"  # machine code of a lower minor of the same major
    PTX = "ptx"  # compiled by the driver at first use
    TOO_NEW = "too new"  # PTX that the driver cannot compile: CUDA error 222, "unsupported PTX version", at first use
    NOTHING = "nothing"  # CUDA error 209, "no kernel image", at first use


@dataclass(frozen=True)
class Target:
    """What decides: the card and, for PTX, the driver."""

    arch: int  # of the card: 120 for compute capability 12.0
    isa: tuple[int, int] | None = None  # the newest PTX that the driver compiles; None: any


@dataclass(frozen=True)
class Choice:
    """What the driver takes; `entry` is None when there is nothing for it."""

    verdict: Verdict
    entry: Entry | None = None


def choose(entries: Iterable[Entry], target: Target) -> Choice:
    """What the driver takes of one container's entries.

    Machine code of exactly the card's architecture; else that of the highest lower minor of the same major, if it is
    not for one architecture only ("a"); else the PTX for the highest architecture up to the card's, with "a" only for
    that very architecture, with "f" only within the major. Of one architecture "a" goes before plain, the first of
    equal machine codes and the last of equal PTX is taken. The PTX is chosen before its ISA is looked at: one that is
    too new fails, even where an older one stands beside it. (docs/gpucode.md says what of this was measured.)
    """
    uses = [(_use(entry, target.arch), entry) for entry in entries]
    for verdict in (Verdict.EXACT, Verdict.MINOR, Verdict.PTX):
        fit = [entry for use, entry in uses if use is verdict]
        if verdict is Verdict.PTX:
            fit.reverse()  # max() takes the first of equals
        if fit:
            entry = max(fit, key=lambda entry: (entry.arch, _SUFFIXES.index(entry.suffix)))
            too_new = verdict is Verdict.PTX and target.isa is not None and entry.version > target.isa
            return Choice(Verdict.TOO_NEW if too_new else verdict, entry)
    return Choice(Verdict.NOTHING)


def _use(entry: Entry, arch: int) -> Verdict:
    same = entry.arch == arch
    family = entry.arch // 10 == arch // 10 and entry.arch <= arch
    if entry.kind is Kind.CUBIN:
        if same:
            return Verdict.EXACT
        return Verdict.MINOR if family and entry.suffix != "a" else Verdict.NOTHING
    fits = {"a": same, "f": family, "": entry.arch <= arch}[entry.suffix]
    return Verdict.PTX if fits else Verdict.NOTHING


def capability(text: str) -> int:
    """The architecture of a compute capability as NVIDIA writes it: 120 for "12.0". Raises UsageError."""
    found = re.fullmatch(r"(\d{1,2})\.(\d)", text, re.ASCII)
    if found is None:
        raise UsageError(f"{text!r} is no compute capability", hint="write it as in 12.0")
    return 10 * int(found[1]) + int(found[2])
