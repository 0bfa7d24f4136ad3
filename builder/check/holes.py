"""Published security holes of what a template holds, `builder/data/holes.toml`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from builder.check import conditions
from builder.check.conditions import Condition
from builder.check.look import Look, UnseenError, View
from builder.check.model import Finding, Severity
from builder.check.packages import fits
from builder.check.rules import table
from builder.errors import BuilderError


@dataclass(frozen=True)
class Hole:
    """One published hole."""

    id: str
    package: str  # normalised
    affected: str  # PEP 440 set of versions
    score: float | None  # CVSS; None where it is not known
    what: str
    reached: str  # what it takes
    when: tuple[Condition, ...]  # a profile reaches it when these hold; (): see `reached`
    fixed: str  # version
    mitigation: str
    source: str


@cache
def holes() -> tuple[Hole, ...]:
    """Every hole in the file. Raises BuilderError when one is not well formed."""
    return tuple(_hole(row) for row in table("holes.toml")["Hole"])


def read_on() -> str:
    """The day on which the list was made, as YYYY-MM-DD."""
    return str(table("holes.toml")["Read"])


def _hole(row: dict[str, Any]) -> Hole:
    keys = {"Id", "Package", "Affected", "What", "Reached", "When", "Fixed", "Mitigation", "Source"}
    if row.keys() - {"Score"} != keys:
        raise BuilderError(f"a hole with {', '.join(sorted(row))}", where=f"hole {row.get('Id')}")
    return Hole(
        id=row["Id"],
        package=row["Package"],
        affected=row["Affected"],
        score=row.get("Score"),
        what=row["What"],
        reached=row["Reached"],
        when=conditions.parse(row["When"], f"hole {row['Id']}"),
        fixed=row["Fixed"],
        mitigation=row["Mitigation"],
        source=row["Source"],
    )


def known(look: Look, views: Sequence[View]) -> Iterator[Finding]:
    """The holes of the template's versions: a note each, a warning for each profile that reaches one."""
    for hole in holes():
        package = look.importable.get(hole.package)
        if package is None or not fits(package.version, hole.affected):
            continue
        score = f" ({hole.score})" if hole.score else ""
        seen = f"{hole.package} {package.version}; fixed in {hole.fixed}"
        mend = f"{hole.mitigation}; or {hole.package} {hole.fixed}"
        what = f"{hole.what}{score}; reached when {hole.reached}"
        yield Finding(hole.id, Severity.NOTE, "template", what, seen, mend, hole.source)
        for view in views:
            if (found := _reached(hole, look, view)) is not None:
                subject = f"profile {view.profile.name}"
                yield Finding(
                    hole.id, Severity.WARNING, subject, f"reached: {hole.what}{score}", found, mend, hole.source
                )


def _reached(hole: Hole, look: Look, view: View) -> str | None:
    """By what a profile reaches a hole; None when it does not, or nobody can say: then the note says what it takes."""
    with suppress(UnseenError):
        return conditions.evidence(hole.when, look, view) if hole.when else None
    return None
