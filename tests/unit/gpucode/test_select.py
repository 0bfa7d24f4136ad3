"""What a driver takes from a container. Rows marked "measured" are what driver 580.159.04 did on an H100 (9.0)."""

from __future__ import annotations

import pytest

from builder.errors import UsageError
from builder.gpucode import Entry, Kind, Target, capability, choose

H100 = Target(90, (9, 0))
B120 = Target(120)


def entries(text: str) -> list[Entry]:
    """`sm_90a compute_80@8.7`: entries whose offset is their place."""
    found = []
    for place, word in enumerate(text.split()):
        name, _, isa = word.partition("@")
        kind, _, arch = name.partition("_")
        suffix = arch.lstrip("0123456789")
        major, minor = (isa or "8.7").split(".")
        number = int(arch.removesuffix(suffix))
        which = Kind.CUBIN if kind == "sm" else Kind.PTX
        found.append(Entry(which, number, suffix, (int(major), int(minor)), place, 64, 8, 8))
    return found


@pytest.mark.parametrize(
    ("target", "held", "verdict", "place"),
    [
        # machine code
        (B120, "sm_90 sm_120 compute_90", "exact", 1),
        (B120, "compute_120 sm_120f", "exact", 1),
        (B120, "sm_120 sm_120a", "exact", 1),
        (H100, "sm_90 sm_90a", "exact", 1),  # measured
        (H100, "sm_90a sm_90", "exact", 0),  # measured
        (H100, "sm_90 sm_90", "exact", 0),  # measured
        (H100, "compute_90a sm_90a", "exact", 1),  # measured
        (Target(121), "sm_120 compute_120", "minor", 0),
        (Target(121), "sm_120f", "minor", 0),
        (Target(121), "sm_120a", "nothing", None),
        (Target(89), "sm_80 sm_86 sm_87", "minor", 2),
        (B120, "sm_121 sm_121f sm_100 sm_90 sm_80", "nothing", None),  # never a higher minor, never another major
        # PTX
        (B120, "sm_90a compute_80 compute_90", "ptx", 2),
        (H100, "compute_90 compute_80", "ptx", 0),  # measured
        (H100, "sm_80 compute_90", "ptx", 1),  # measured
        (H100, "sm_86 compute_50", "ptx", 1),  # measured
        (H100, "compute_89 compute_120", "ptx", 0),  # measured
        (H100, "compute_90a compute_90", "ptx", 0),  # measured
        (H100, "compute_90 compute_90a", "ptx", 1),  # measured
        (H100, "compute_90a sm_100", "ptx", 0),  # measured
        (H100, "compute_90@8.7 compute_90@8.0", "ptx", 1),  # measured: the last of equals
        (H100, "compute_90@8.0 compute_90@8.7", "ptx", 1),  # measured
        (B120, "compute_90a", "nothing", None),
        (B120, "compute_100f compute_100a", "nothing", None),
        (Target(121), "compute_120f compute_90", "ptx", 0),
        (Target(120), "compute_121 compute_121f", "nothing", None),
        # PTX that the driver does not know
        (H100, "compute_90@9.0", "ptx", 0),  # measured
        (H100, "compute_90@9.1", "too new", 0),  # measured: error 222
        (H100, "compute_80@8.0 compute_90@99.0", "too new", 1),  # measured: no way back to the older PTX
        (H100, "compute_90@8.0 compute_90a@99.0", "too new", 1),  # measured
        (H100, "sm_90 compute_90@99.0", "exact", 0),
        (B120, "compute_120@99.0", "ptx", 0),  # nothing was said about the driver
        # nothing
        (H100, "", "nothing", None),  # measured: error 209
        (H100, "sm_100 compute_100", "nothing", None),  # measured: error 209
    ],
)
def test_choice(target: Target, held: str, verdict: str, place: int | None) -> None:
    choice = choose(entries(held), target)
    assert choice.verdict.value == verdict
    assert (choice.entry and choice.entry.offset) == place


def test_capabilities() -> None:
    assert [capability(text) for text in ("12.0", "9.0", "8.6")] == [120, 90, 86]
    for text in ("12", "sm_120", "12.00", "", "12.0a", "\N{FULLWIDTH DIGIT ONE}2.0"):
        with pytest.raises(UsageError, match=r"write it as in 12\.0"):
            capability(text)
