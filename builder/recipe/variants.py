"""The tables of a recipe file, and what a variant makes of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from builder.recipe.document import Document, Place
from builder.recipe.settings import SECTIONS, VARIANT_NAME, Section
from builder.recipe.tables import Table, did_you_mean, table


@dataclass(frozen=True)
class Parts:
    """The sections and arrays of a recipe, or of one of its variants."""

    sections: Mapping[str, Table]
    arrays: Mapping[str, tuple[Table, ...]]

    def named(self, array: str) -> dict[str, Table]:
        """The members of an array by their names."""
        return {member.values["Name"]: member for member in self.arrays[array]}


def split(document: Document) -> tuple[Parts, dict[str, Parts]]:
    """The recipe without its variants, and each variant by name.

    Raises UsageError for an unknown section, a section of the wrong shape, and a name that is missing or taken.
    """
    data = dict(document.data)
    variants = data.pop("Variant", {})
    if not isinstance(variants, dict):
        raise document.error("Variant must be a table of variants", ("Variant",), hint="write [Variant.NAME.SECTION]")
    base = _parts(document, data, ())
    parts = {}
    for name, content in variants.items():
        place = ("Variant", name)
        if not isinstance(content, dict):
            raise document.error(f"[Variant.{name}] must be a table", place)
        if (wrong := VARIANT_NAME(name)) is not None:
            raise document.error(f"the name of variant {json.dumps(name)} {wrong}", place)
        parts[name] = _parts(document, content, place)
    return base, parts


def apply(document: Document, base: Parts, variant: Parts) -> Parts:
    """`base` as `variant` changes it; the tables of both have been checked.

    Raises UsageError for an `After` that leads nowhere.
    """
    sections = dict(base.sections)
    for name, changed in variant.sections.items():
        sections[name] = changed.over(sections[name]) if name in sections else changed
    arrays = {
        name: _stages(document, base, variant) if name == "Stage" else _replaced(base, variant, name)
        for name in base.arrays
    }
    return Parts(sections, arrays)


def whole(document: Document, base: Parts, stage: Table) -> Table:
    """The table that says which Kind a variant's stage is of: itself, or the stage of which it changes some keys.

    Raises UsageError when there is no such stage.
    """
    if not _is_partial(stage):
        return stage
    stages = base.named("Stage")
    name = stage.values["Name"]
    if name not in stages:
        hint = did_you_mean(name, stages)
        raise document.error(f"{stage.title} has no Kind, and no [[Stage]] has this name", stage.place, hint=hint)
    return stages[name]


def _is_partial(stage: Table) -> bool:
    return "Kind" not in stage.values


def _replaced(base: Parts, variant: Parts, array: str) -> tuple[Table, ...]:
    return tuple({**base.named(array), **variant.named(array)}.values())


def _stages(document: Document, base: Parts, variant: Parts) -> tuple[Table, ...]:
    stages = base.named("Stage")
    new: dict[str | None, list[Table]] = {}
    for name, stage in variant.named("Stage").items():
        if name not in stages:
            new.setdefault(stage.values.get("After"), []).append(stage)
            continue
        if "After" in stage.values:
            raise document.error(
                f"{stage.title} has After, which is for new stages only",
                stage.places["After"],
                hint="a replaced stage keeps its place",
            )
        stages[name] = stage.over(stages[name]) if _is_partial(stage) else stage

    def with_followers(stage: Table) -> Iterator[Table]:
        yield stage
        for follower in new.pop(stage.values["Name"], ()):
            yield from with_followers(follower)

    last = new.pop(None, [])
    ordered = [each for stage in (*stages.values(), *last) for each in with_followers(stage)]
    for lost in (stage for group in new.values() for stage in group):
        after = lost.values["After"]
        raise document.error(
            f"{lost.title} comes After {json.dumps(after)}, which is no stage of this variant, or comes after this one",
            lost.places["After"],
            hint=did_you_mean(after, (each.values["Name"] for each in ordered)),
        )
    return tuple(ordered)


def _parts(document: Document, data: Mapping[str, Any], prefix: Place) -> Parts:
    known = {section.name: section for section in SECTIONS if section.in_variant or not prefix}
    sections: dict[str, Table] = {}
    arrays: dict[str, tuple[Table, ...]] = {name: () for name, section in known.items() if section.many}
    for name, content in data.items():
        place = (*prefix, name)
        if name not in known:
            raise document.error(*_unknown(name, content, place, prefix), hint=did_you_mean(name, (*known, "Variant")))
        section = known[name]
        title = _title(section, prefix)
        if section.many:
            if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
                raise document.error(f"{name} must be an array of tables", place, hint=f"write {title}")
            arrays[name] = _members(document, section, content, prefix)
        elif not isinstance(content, dict):
            raise document.error(f"{name} must be one table", place, hint=f"write {title}")
        else:
            sections[name] = table(title, place, content)
    return Parts(sections, arrays)


def _members(document: Document, section: Section, content: Sequence[Any], prefix: Place) -> tuple[Table, ...]:
    members: dict[str, Table] = {}
    title = _title(section, prefix)
    for index, values in enumerate(content):
        place = (*prefix, section.name, index)
        name = values.get("Name")
        if not isinstance(name, str):
            what = "has no Name" if name is None else "has a Name that is not text"
            raise document.error(f"{title} {what}", (*place, "Name"), hint='write Name = "..."')
        member = table(f"{title} {json.dumps(name, ensure_ascii=False)}", place, values)
        if name in members:
            first = document.line(members[name].place)
            raise document.error(
                f"{member.title} is there twice", (*place, "Name"), hint=f"the first is on line {first}"
            )
        members[name] = member
    return tuple(members.values())


def _title(section: Section, prefix: Place) -> str:
    name = ".".join(str(part) for part in (*prefix, section.name))
    return f"[[{name}]]" if section.many else f"[{name}]"


def _unknown(name: str, content: Any, place: Place, prefix: Place) -> tuple[str, Place]:
    if not isinstance(content, (dict, list)):
        return f"key {json.dumps(name)} stands in no section", place
    if prefix and any(section.name == name for section in SECTIONS):
        return f"[{name}] cannot differ between variants", place
    return f"unknown section {json.dumps(name)}", place
