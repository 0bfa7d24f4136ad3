"""GPU code of a template for its target, library by library and unit by unit."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from builder.check import simulate
from builder.check.look import Look
from builder.check.model import Finding, Severity, Subject
from builder.check.rules import table, unseen
from builder.check.simulate import Decided
from builder.gpucode import Library, Target, Unit, Verdict, capability, scan, units, verdicts
from builder.gpucode.scan import Scratch
from builder.progress import Progress
from builder.tree import resolve

_KEPT = "CUDA_CACHE_PATH in /var/cache/vllm keeps the result"
_SOURCE = "builder inspect --gpu-code; docs/gpucode.md"


def libraries(subject: Subject, scratch: Scratch, progress: Progress) -> tuple[Library, ...] | None:
    """The template's libraries with GPU code, sorted; None when neither layers nor the packed file are at hand."""
    layers = subject.tree.layers
    if layers:
        found = [
            library
            for layer in layers
            for library in scan(layer, scratch, progress=progress)
            if resolve(layers, library.path) == layer / library.path
        ]
        return tuple(sorted(found, key=lambda library: library.path))
    return None if subject.file is None else scan(subject.file, scratch, progress=progress)


def judge(look: Look, found: Sequence[Library], isa: tuple[int, int] | None) -> Iterator[Finding]:
    """What of `found` the target card runs. `isa`: the newest PTX of the template's own driver; None: any."""
    if look.subject.target is None:
        if not found:
            return
        what, mend = "which GPU code the card would run", "[Target] in the recipe; --recipe for a template alone"
        yield Finding("gpu-code", Severity.NOT_CHECKED, "template", what, "no [Target] is known", mend)
        return
    if not found:
        what, mend = f"no library of it holds GPU code, and it is for a card of {look.capability}", "torch with CUDA"
        yield Finding("gpu-code", Severity.WARNING, "template", what, "no fat binary in any file", mend, _SOURCE)
    card = Target(capability(look.capability), isa)
    data = table("gpu-code.toml")
    exact = 0
    for library in found:
        if library.problem:
            what = "its GPU code is not readable"
            yield Finding("gpu-code", Severity.NOT_CHECKED, library.path, what, library.problem, "", _SOURCE)
            continue
        taken = units(library.containers, card)
        exact += verdicts(taken)[Verdict.EXACT] + verdicts(taken)[Verdict.MINOR]
        yield from _library(library, taken, look.capability, data["Unseen"], data["Other"])
    if exact:
        seen = [library for library in found if not library.problem]
        what = f"{exact:,} units of {len(seen)} libraries have machine code for {look.capability}"
        yield Finding("gpu-code", Severity.NOTE, "template", what, "", "", _SOURCE)


def _library(
    library: Library,
    taken: Sequence[Unit],
    card: str,
    outside: Sequence[dict[str, str]],
    other: Sequence[dict[str, str]],
) -> Iterator[Finding]:
    count = verdicts(taken)
    path, total = library.path, len(taken)
    seen = ", ".join(f"{number} {verdict.value}" for verdict, number in count.items() if number)
    row = _match(path, outside)
    if row:
        yield Finding("gpu-code-elsewhere", Severity.NOT_CHECKED, path, "its GPU code", row["Reason"], "", _SOURCE)
    known = _match(path, other)
    severity = Severity.NOTE if known else Severity.WARNING
    if count[Verdict.NOTHING] == total and not row:
        what = f"holds nothing that a card of {card} runs: CUDA error 209 at the first use of any kernel"
        mend = known["Reason"] if known else "a build of this library for the card, if anything served calls it"
        yield Finding("gpu-code-nothing", severity, path, what, seen, mend, _SOURCE)
    if count[Verdict.TOO_NEW]:
        what = f"{count[Verdict.TOO_NEW]} of {total} units are PTX too new for the template's driver: CUDA error 222"
        yield Finding("gpu-code-too-new", Severity.ERROR, path, what, seen, "a newer driver", _SOURCE)
    if count[Verdict.PTX]:
        only = "all" if count[Verdict.PTX] == total else f"{count[Verdict.PTX]} of {total}"
        what = f"{only} units are PTX alone, which the driver compiles at first use"
        mend = known["Reason"] if known else f"{_KEPT}; count a server as up after its first completion"
        yield Finding("gpu-code-ptx", severity, path, what, f"{seen}; {_ptx_size(taken)} MiB of PTX", mend, _SOURCE)


def _ptx_size(taken: Sequence[Unit]) -> int:
    """MiB of PTX that the driver would compile."""
    chosen = (unit.choice.entry for unit in taken if unit.choice.verdict is Verdict.PTX)
    return sum(entry.unpacked for entry in chosen if entry is not None) >> 20


def first_requests(decided: Sequence[Decided], found: Sequence[Library]) -> Iterator[Finding]:
    """Profiles whose attention has to be compiled by the driver before they answer for the first time."""
    for one in decided:
        target = one.view.look.subject.target
        rows = [row for row in table("gpu-code.toml")["Attention"] if row["Backend"] == one.attention]
        for library in found if target else ():
            if not any(re.search(row["Pattern"], library.path) for row in rows):
                continue
            if library.problem:
                what = f"whether {one.attention} has machine code for the card"
                yield unseen("attention-ptx", simulate.subject(one.view), what, f"{library.path}: {library.problem}")
            else:
                taken = units(library.containers, Target(capability(one.view.look.capability)))
                if taken and verdicts(taken)[Verdict.PTX] == len(taken):
                    what = f"{one.attention} is PTX alone: minutes for the first request, while the driver compiles"
                    seen = f"{library.path}: {len(taken)} units, {_ptx_size(taken)} MiB of PTX; a server uses a few"
                    subject = simulate.subject(one.view)
                    source = "run on an H100 (82 s a unit); docs/gpucode.md"
                    yield Finding("attention-ptx", Severity.WARNING, subject, what, seen, _KEPT, source)


def _match(path: str, rows: Sequence[dict[str, str]]) -> dict[str, str] | None:
    return next((row for row in rows if re.search(row["Pattern"], path)), None)
