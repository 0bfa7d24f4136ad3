"""Rules as data, `builder/data/rules.toml`, and those that take a computation, about a profile and its template."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import tomli

from builder.check import conditions
from builder.check.conditions import Condition
from builder.check.look import Look, UnseenError, View
from builder.check.model import Finding, Severity
from builder.check.packages import fits
from builder.errors import BuilderError

_NEAR = 0.8  # of difflib: all of these names begin alike


@dataclass(frozen=True)
class Rule:
    """One entry of the file."""

    id: str
    severity: Severity
    when: tuple[Condition, ...]
    what: str
    mend: str
    source: str

    @property
    def needs_profile(self) -> bool:
        return any(condition.needs_profile for condition in self.when)


def table(name: str) -> dict[str, Any]:
    """The TOML file `name` of the package's data."""
    return tomli.loads(resources.files("builder").joinpath(f"data/{name}").read_text(encoding="utf-8"))


@cache
def rules() -> tuple[Rule, ...]:
    """Every rule that is data. Raises BuilderError when one is not well formed."""
    return tuple(_rule(row) for row in table("rules.toml")["Rule"])


@cache
def quiet() -> re.Pattern[str]:
    """Matches the warnings of vLLM's log that say nothing about a profile."""
    return re.compile("|".join(table("rules.toml")["Quiet"]))


def _rule(row: dict[str, Any]) -> Rule:
    keys = {"Id", "Severity", "When", "Says", "Instead", "Source"}
    if row.keys() != keys:
        raise BuilderError(f"a rule with {', '.join(sorted(row))}", where=f"rule {row.get('Id')}")
    when = conditions.parse(row["When"], f"rule {row['Id']}")
    return Rule(row["Id"], Severity(row["Severity"]), when, row["Says"], row["Instead"], row["Source"])


def of_template(look: Look) -> Iterator[Finding]:
    """What the rules say about the template by itself."""
    for rule in rules():
        if not rule.needs_profile:
            yield from _apply(rule, look, None, "template")


def of_profile(view: View) -> Iterator[Finding]:
    """What the rules say about one profile in its template; those about packages too, where it has a PYTHONPATH."""
    subject = f"profile {view.profile.name}"
    told: set[str] = set()
    for rule in rules():
        if rule.needs_profile or (len(view.sites) > 1 and not list(_apply(rule, view.look, None, subject))):
            for finding in _apply(rule, view.look, view, subject):
                told.update(condition.name for condition in rule.when if condition.thing == "Environment")
                yield finding
    yield from _unknown_variables(view, subject, told)
    yield from _dollars(view, subject)
    yield from _cards(view, subject)


def _apply(rule: Rule, look: Look, view: View | None, subject: str) -> Iterator[Finding]:
    try:
        found = conditions.evidence(rule.when, look, view)
    except UnseenError as error:
        yield Finding(rule.id, Severity.NOT_CHECKED, subject, rule.what, str(error), "", rule.source)
        return
    if found is not None:
        yield Finding(rule.id, rule.severity, subject, rule.what, found, rule.mend, rule.source)


def _unknown_variables(view: View, subject: str, told: set[str]) -> Iterator[Finding]:
    """VLLM_ variables that the template's vLLM does not know: it ignores them without a word."""
    known, source = view.look.variables, "vllm/envs.py of the template"
    names = sorted(name for name in view.environment if name.startswith("VLLM_") and name not in told)
    if not known:
        data, vllm = table("vllm-variables.toml"), view.look.importable.get("vllm")
        known, source = frozenset(data["Names"]), f"the variables of vLLM {data['Version']}"
        if names and (vllm is None or not fits(vllm.version, f"=={data['Version']}.*")):
            reason = "vllm/envs.py was not read"
            yield unseen("unknown-variable", subject, f"whether vLLM knows {', '.join(names)}", reason)
            return
    for name in names:
        value = view.environment[name]
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=_NEAR)
            mend = f"did you mean {near[0]}?" if near else "leave it out"
            what = f"vLLM does not know {name}, and ignores it without a word"
            yield Finding("unknown-variable", Severity.ERROR, subject, what, f"{name}={value}", mend, source)


def _dollars(view: View, subject: str) -> Iterator[Finding]:
    for name, value in sorted(view.environment.items()):
        if "$" in value:
            yield Finding(
                "environment-dollar",
                Severity.ERROR,
                subject,
                f"nothing expands the $ in {name}: the server gets the text as it is",
                f"{name}={value}",
                "write the value out",
                "systemd.exec(5), Environment and EnvironmentFile",
            )


def _cards(view: View, subject: str) -> Iterator[Finding]:
    """The parallel sizes take exactly the profile's cards."""
    sizes = [view.options.get(f"{kind}-parallel-size", 1) for kind in ("tensor", "pipeline", "data")]
    if not all(isinstance(size, int) for size in sizes):
        return  # vLLM's own parser says so
    wanted = sizes[0] * sizes[1] * sizes[2]
    if view.profile.gpus and wanted != view.profile.gpus:
        what = f"vLLM would use {wanted} card{'s' * (wanted != 1)}, the profile takes {view.profile.gpus}"
        seen = (
            f"tensor-parallel-size = {sizes[0]}, pipeline-parallel-size = {sizes[1]}, data-parallel-size = {sizes[2]}"
        )
        yield Finding(
            "parallel-size", Severity.ERROR, subject, what, seen, "make them equal", "docs.vllm.ai, Parallelism"
        )


def unseen(rule: str, subject: str, what: str, reason: str, mend: str = "") -> Finding:
    """The finding for what cannot be looked at."""
    return Finding(rule, Severity.NOT_CHECKED, subject, what, reason, mend)


def worst(findings: Sequence[Finding]) -> bool:
    """Whether there is an error among them."""
    return any(finding.severity is Severity.ERROR for finding in findings)
