"""The JSON Schema of recipes (draft 2020-12), for editors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from builder.recipe.keys import Key, KindInfo, Type
from builder.recipe.settings import AFTER, SECTIONS, Section

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_TYPES: dict[Type, Schema] = {
    Type.TEXT: _TEXT,
    Type.BOOL: {"type": "boolean"},
    Type.INT: {"type": "integer"},
    Type.TEXTS: {"type": "array", "items": _TEXT},
    Type.INTS: {"type": "array", "items": {"type": "integer"}},
    Type.TABLE: {"type": "object", "additionalProperties": _TEXT},
}


def schema(kinds: Mapping[str, KindInfo]) -> Schema:
    """What a recipe may hold, with these kinds of stages. It cannot say what a `load` says beyond names and types."""
    variant = {section.name: _section(section, kinds, True) for section in SECTIONS if section.in_variant}
    top = {section.name: _section(section, kinds, False) for section in SECTIONS}
    top["Variant"] = {
        "type": "object",
        "description": "What differs in the variants of this recipe.",
        "additionalProperties": {"type": "object", "properties": variant, "additionalProperties": False},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Recipe of a template",
        "type": "object",
        "properties": top,
        "required": [section.name for section in SECTIONS if section.required],
        "additionalProperties": False,
    }


def _section(section: Section, kinds: Mapping[str, KindInfo], in_variant: bool) -> Schema:
    if section.name == "Stage":
        content = {"anyOf": list(_stages(section, kinds, in_variant))}
    else:
        content = table_schema(section.keys, partial=in_variant and not section.many)
    if not section.many:
        return {"description": section.help, **content}
    least = {"minItems": 1} if section.required and not in_variant else {}
    return {"description": section.help, "type": "array", "items": content, **least}


def _stages(section: Section, kinds: Mapping[str, KindInfo], in_variant: bool) -> Iterable[Schema]:
    extra = (AFTER,) if in_variant else ()
    for kind in kinds.values():
        whole = table_schema((*section.keys, *kind.keys, *extra))
        whole["properties"]["Kind"] = {"const": kind.name, "description": kind.help}
        yield whole
    if in_variant:
        own = (key for key in section.keys if key.name != "Kind")
        partial = table_schema((*own, *(key for kind in kinds.values() for key in kind.keys)), partial=True)
        yield {**partial, "required": ["Name"]}


def table_schema(keys: Iterable[Key], *, partial: bool = False) -> Schema:
    """A table with these keys; where two share a name, the value may be of either form."""
    forms: dict[str, list[Schema]] = {}
    required = []
    for key in keys:
        form = _value(key)
        if form not in forms.setdefault(key.name, []):
            forms[key.name].append(form)
        if key.required and not partial:
            required.append(key.name)
    properties = {name: either[0] if len(either) == 1 else {"anyOf": either} for name, either in forms.items()}
    table: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return {**table, "required": required} if required else table


def _value(key: Key) -> Schema:
    if key.type is Type.TABLES:
        value: Schema = {"type": "array", "items": table_schema(key.keys)}
    else:
        value = json.loads(json.dumps(_TYPES[key.type]))
    if key.choices:
        (value["items"] if key.type is Type.TEXTS else value)["enum"] = list(key.choices)
    if key.default is not None:
        value["default"] = list(key.default) if isinstance(key.default, tuple) else key.default
    return {"description": key.help, **value}
