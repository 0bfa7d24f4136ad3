"""Values of an entry of phoenix_lxc_configs.json, in whatever form they stand there."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from builder.deploy.containers.model import CONTRADICTION, REFUSED, Finding, shown


@dataclass
class Entry:
    """The entry that is being read, and what was found on the way."""

    ctid: int
    raw: Mapping[str, Any]
    findings: list[Finding] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    def find(self, severity: str, text: str) -> None:
        self.findings.append(Finding(self.ctid, severity, text))

    def refuse(self, what: str, value: Any, wrong: str) -> None:
        self.find(REFUSED, f"{what} {wrong}, not {shown(value, what, 60)}")

    def one_of(self, *given: tuple[str, Any]) -> tuple[str, Any]:
        """The first that is said of several names with values, which should say the same: others are contradictions."""
        said = [(name, value) for name, value in given if value not in (None, "")]
        if not said:
            return given[0]
        first, decides = said[0]
        for name, value in said[1:]:
            if str(value).strip().casefold() != str(decides).strip().casefold():
                both = f"{first} is {shown(decides, first, 60)} and {name} is {shown(value, name, 60)}"
                self.find(CONTRADICTION, f"{both}: {first} decides")
        return said[0]

    def number(self, what: str, value: Any, check: Callable[[int], str | None]) -> int | None:
        """`value` as a whole number, also when it is text; None, and refused, when it is none."""
        if value is None:
            return None
        whole = value
        if (isinstance(value, str) and re.fullmatch(r"\s*[0-9]{1,12}\s*", value)) or (
            isinstance(value, float) and value.is_integer()
        ):
            whole = int(value)
        if isinstance(whole, bool) or not isinstance(whole, int):
            self.refuse(what, value, "must be a whole number")
            return None
        if wrong := check(whole):
            self.refuse(what, value, wrong)
            return None
        return whole

    def boolean(self, what: str, value: Any) -> bool | None:
        """`value` as yes or no, also when it is text or 0 or 1; None, and refused, when it is neither."""
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
        if value is None:
            return None
        word = str(value).strip().lower() if isinstance(value, (bool, int, str)) else ""
        if word not in words:
            self.refuse(what, value, "must be true or false")
            return None
        return words[word]

    def text(self, what: str, value: Any, check: Callable[[str], str | None]) -> str | None:
        """`value` as text that `check` lets pass; None, and refused, when it is not."""
        if value in (None, ""):
            return None
        if not isinstance(value, str):
            self.refuse(what, value, "must be text")
            return None
        if wrong := check(value.strip()):
            self.refuse(what, value, wrong)
            return None
        return value.strip()

    def objects(self, what: str) -> list[Mapping[str, Any]]:
        """The list of objects under the key `what`."""
        value = self.raw.get(what)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            self.refuse(what, value, "must be a list of objects")
            return []
        return value

    def texts(self, what: str) -> list[str]:
        """The list of texts under the key `what`; one text may hold several, with commas between them."""
        value = self.raw.get(what)
        if isinstance(value, str):
            value = value.split(",") if what != "lxc_options" else [value]
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.refuse(what, value, "must be a list of texts")
            return []
        return [item.strip() for item in value if item.strip()]
