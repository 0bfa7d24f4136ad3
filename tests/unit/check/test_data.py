"""The data files: holes, conditions, and that every entry is well formed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from madetemplate import GOOD, SITE, Make, ids

from builder.check import Severity, conditions, holes, rules
from builder.check.look import look, view
from builder.check.manual import page
from builder.errors import BuilderError

MULTIMODAL = GOOD.shaped({"model_type": "idefics3", "vision_config": {}})


def test_every_entry_is_well_formed_and_has_its_source() -> None:
    known = [*rules.rules(), *holes.holes()]
    assert len({one.id for one in known}) == len(known) > 30
    assert all(one.source and one.what for one in known)
    assert holes.read_on() == "2026-11-24"
    assert {
        table["Pattern"] for name in ("Other", "Unseen", "Attention") for table in rules.table("gpu-code.toml")[name]
    }


def test_the_holes_of_the_templates_versions_are_told_once_as_notes(make: Make) -> None:
    seen = look(make())
    found = list(holes.known(seen, [view(seen, GOOD), view(seen, replace(GOOD, name="other"))]))
    assert {"CVE-2026-22807", "CVE-2026-24747", "CVE-2025-59425"} <= ids(found)
    assert len(found) == len(ids(found))
    assert {finding.severity for finding in found} == {Severity.NOTE}
    assert all(finding.mend and "fixed in" in finding.evidence for finding in found)


FIXED = {
    "CVE-2026-22778": "0.14.1",
    "CVE-2025-62164": "0.11.1",
    "CVE-2026-22807": "0.14.0",
    "CVE-2026-24747": "2.10.0",
    "CVE-2025-59425": "0.11.0",
    "CVE-2025-62426": "0.11.1",
    "CVE-2025-62372": "0.11.1",
    "CVE-2026-22773": "0.12.0",
    "CVE-2026-53923": "0.23.1",
    "CVE-2025-30165": "0.11.0",
    "CVE-2026-27482": "2.54.0",
}
"""What was published of the versions that vllm-blackwell locks when it was made."""


def test_every_published_hole_is_told_with_its_fix_and_a_way_out(make: Make) -> None:
    seen = look(make({f"{SITE}/ray-2.49.2.dist-info/METADATA": ""}))
    found = {finding.rule: finding for finding in holes.known(seen, [])}
    assert {rule: found[rule].evidence.rpartition("fixed in ")[2] for rule in FIXED} == FIXED
    assert all("reached when" in finding.what and finding.mend for finding in found.values())


def test_a_version_with_the_fix_has_no_hole(make: Make) -> None:
    files = {f"{SITE}/vllm-0.10.2.dist-info/METADATA": None, f"{SITE}/vllm-0.14.1.dist-info/METADATA": ""}
    assert "CVE-2026-22778" not in ids(holes.known(look(make(files)), []))
    assert "CVE-2026-22778" in ids(holes.known(look(make({})), []))


@pytest.mark.parametrize(
    ("profile", "hole"),
    [
        (GOOD.having(enable_prompt_embeds=True), "CVE-2025-62164"),
        (MULTIMODAL, "CVE-2026-22778"),
        (GOOD.having(load_format="gguf"), "CVE-2026-53923"),
    ],
)
def test_a_profile_that_reaches_a_hole_is_warned(make: Make, profile: Any, hole: str) -> None:
    seen = look(make())
    found = list(holes.known(seen, [view(seen, GOOD), view(seen, profile)]))
    reached = [finding for finding in found if finding.severity is Severity.WARNING]
    assert hole in {finding.rule for finding in reached}
    assert {finding.subject for finding in reached} == {"profile made"}


@pytest.mark.parametrize(
    "table",
    [
        {},
        {"Option": "dtype"},
        {"In": [1]},
        {"Option": "dtype", "Environment": "X", "In": [1]},
        {"Option": "dtype", "In": [1], "NotIn": [1]},
        {"Option": "dtype", "In": [1], "Optional": True},
        {"Fact": "unknown", "In": [True]},
    ],
)
def test_a_condition_that_is_not_well_formed(table: Mapping[str, Any]) -> None:
    with pytest.raises(BuilderError, match="rule x"):
        conditions.parse([table], "rule x")


@pytest.mark.parametrize(
    ("table", "holds"),
    [
        ({"Option": "max-num-seqs", "In": [1]}, True),
        ({"Option": "trust", "In": [1]}, False),  # True is not 1
        ({"Option": "trust", "In": [True]}, True),
        ({"Option": "absent", "In": [None]}, False),
        ({"Option": "absent", "NotIn": [1]}, True),
        ({"Option": "absent", "Given": False}, True),
        ({"Option": "max-num-seqs", "Below": 2}, True),
        ({"Option": "trust", "Below": 2}, False),
        ({"Option": "name", "Below": 2}, False),
        ({"Option": "name", "Pattern": "^te"}, True),
        ({"Package": "torch", "Version": ">=2.8"}, True),
        ({"Package": "absent", "Version": ">=0"}, False),
        ({"Capability": "card", "Version": "==12.*"}, True),
        ({"Shape": "model_type", "In": ["llama"]}, True),
        ({"Shape": "model_type.deeper", "Given": True}, False),
        ({"Profile": "task", "In": ["completion"]}, True),
        ({"Fact": "gpu", "In": [True]}, True),
        ({"File": "/etc/os-release", "Pattern": "ID=debian"}, True),
        ({"File": "/absent", "Given": True}, False),
    ],
)
def test_conditions(make: Make, table: Mapping[str, Any], holds: bool) -> None:
    seen = look(make())
    profile = view(seen, GOOD.having(max_num_seqs=1, trust=True, name="text"))
    assert (conditions.evidence(conditions.parse([table], "x"), seen, profile) is not None) is holds


def test_the_page_of_rules_and_holes_is_in_step() -> None:
    written = (Path(__file__).parents[3] / "docs" / "check-rules.md").read_text(encoding="utf-8")
    assert written == page(), "run: python -m builder.check.manual > docs/check-rules.md"
