"""The rules and holes that are data, as Markdown: what docs/check-rules.md holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from builder.check.holes import holes, read_on
from builder.check.rules import rules

_HEAD = """# Rules and known holes

Made from `builder/data/rules.toml` and `builder/data/holes.toml` (`python -m builder.check.manual`). What a check is:
[check.md](check.md).

"""
_HOLES = """
## Published holes

As known on {day}: a list of what is known, not of what exists. `builder check` tells those of a template's versions
once, and warns of a profile that reaches one.

"""


def page() -> str:
    """The whole page."""
    rule_rows = [(f"`{one.id}`", one.severity.value, one.what, one.mend, one.source) for one in rules()]
    hole_rows = [
        (one.id, f"{one.package} {one.affected}", one.what, one.reached, one.fixed, one.mitigation, one.source)
        for one in holes()
    ]
    return (
        _HEAD
        + _table(("rule", "severity", "what", "instead", "known from"), rule_rows)
        + _HOLES.format(day=read_on())
        + _table(("id", "affected", "what", "reached when", "fixed in", "instead", "known from"), hole_rows)
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


if __name__ == "__main__":
    print(page(), end="")
