"""The table of docs/measured, made from the JSON files there: `python -m tests.bench.table FOLDER`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from builder.console import human

HEAD = """\
# Measured

Made by `scripts/full` from the JSON files in this folder; the machine and the commit stand in each. Ratios are of one
run on one machine, whose absolute times vary from day to day. Of a changed file, and of unpacking, it is the middle one
of three times.
"""


def where(about: dict[str, Any]) -> str:
    """The machine, the day and the commit of a measurement, as text."""
    return (
        f"{about['date']}, {about['cpus']} CPUs ({about['cpu']}), {about['memory_kib'] // 1024**2} GiB, Linux "
        f"{about['kernel']}, commit {about['commit'][:12]}"
    )


def bench(figures: dict[str, Any]) -> Iterator[str]:
    hand = figures["by_hand_s"]
    ours = figures["builder_s"]
    size = figures["size"]
    yield f"## {figures['recipe']} against the by-hand way"
    yield ""
    yield f"{where(figures['machine'])}, load {figures['machine']['load_before']:.1f} before."
    yield ""
    yield "| | by hand | builder | ratio |"
    yield "|---|---|---|---|"
    cold = ours["cold build and pack"]
    yield f"| cold: build and pack | {sum(hand.values()):.1f} s | {cold:.1f} s | {figures['cold_ratio']} |"
    yield f"| pack | {hand['pack']:.1f} s | {figures['builder_pack_s']:.1f} s | {figures['pack_ratio']} |"
    yield f"| nothing changed | | {ours['nothing changed']:.2f} s | |"
    for name, took in ours.items():
        if name.startswith("one "):
            yield f"| {name} | | {took:.1f} s | {took / figures['builder_pack_s']:.2f} of the whole pack |"
    unpack = figures["unpack_s"]
    ratio = unpack["builder"] / unpack["by_hand"]
    yield f"| unpacked by tar | {unpack['by_hand']:.1f} s | {unpack['builder']:.1f} s | {ratio:.2f} |"
    yield f"| size | {human(size['by_hand'])} | {human(size['builder'])} | {size['ratio']} |"
    yield f"| peak memory of the builder | | {figures['builder_peak_mib']} MiB | |"
    yield ""
    yield "Stages of the builder, those of wheels side by side: " + ", ".join(
        f"{name} {took} s" for name, took in figures["builder_stages_s"].items()
    )
    yield "By hand: " + ", ".join(f"{name} {took} s" for name, took in hand.items())
    yield ""


def proofs(figures: dict[str, Any]) -> Iterator[str]:
    yield "## Proofs on the real templates"
    yield ""
    yield "| what | found | when and where |"
    yield "|---|---|---|"
    for name, row in figures.items():
        found = row["found"] if isinstance(row["found"], dict) else {"": row["found"]}
        told = ", ".join(f"{key} {value}".strip() for key, value in found.items())
        yield f"| {name} | {told} | {where(row['machine'])} |"
    yield ""


def main(folder: Path) -> None:
    lines = [HEAD]
    for path in sorted(folder.glob("bench-*.json")):
        lines += bench(json.loads(path.read_text()))
    if (folder / "full.json").exists():
        lines += proofs(json.loads((folder / "full.json").read_text()))
    sys.stdout.write("\n".join(lines))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
