"""From containers.toml to containers: strict, the first thing that is wrong is an error with file and line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from builder.deploy.containers.model import Loaded, circles, identities
from builder.deploy.containers.settings import CONTAINER, DEFAULTS, TOP, container
from builder.deploy.containers.values import ids, network_wrong
from builder.deploy.model import Container
from builder.errors import UsageError
from builder.recipe.document import Document, read
from builder.recipe.tables import Checker, Table, table

_HOMES = {
    **{key.name: "the lines before the first table" for key in TOP},
    **{key.name: "[[Container]]" for key in CONTAINER},
}


def load(path: Path) -> Loaded:
    """The containers of the file at `path`. Raises UsageError with file, line and what would be right."""
    document = read(path)
    checker = Checker(document, path.parent, path.parent)
    top = _top(checker)
    defaults = _defaults(checker)
    tables = [_over(found, defaults) for found in _tables(checker)]
    containers: dict[int, Container] = {}
    for found in tables:
        made = _container(checker, found, defaults)
        if made.ctid in containers:
            first = next(other for other in tables if other.values["Ctid"] == made.ctid)
            raise _twice(document, found, "Ctid", first)
        containers[made.ctid] = made
    _refuse_shared(document, tables, containers)
    _refuse_circles(document, tables, containers)
    loaded = Loaded(
        containers=containers,
        template_ids=ids(top.get("TemplateIds", [])),
        spare_ids=ids(top.get("SpareIds", [])),
        source=path,
        defaults=container(defaults.values),
    )
    _refuse_taken_ids(document, loaded)
    return loaded


def _top(checker: Checker) -> dict[str, Any]:
    values = {name: value for name, value in checker.document.data.items() if name not in ("Defaults", "Container")}
    checker.check(table("the file", (), values), TOP, _HOMES)
    return values


def _defaults(checker: Checker) -> Table:
    values = checker.document.data.get("Defaults", {})
    if not isinstance(values, dict):
        raise checker.document.error("Defaults must be a table", ("Defaults",), hint="write [Defaults]")
    found = table("[Defaults]", ("Defaults",), values)
    checker.check(found, DEFAULTS, _HOMES)
    return found


def _tables(checker: Checker) -> list[Table]:
    document = checker.document
    members = document.data.get("Container", [])
    if not isinstance(members, list) or not all(isinstance(member, dict) for member in members):
        raise document.error("Container must be a list of tables", ("Container",), hint="write [[Container]]")
    found = []
    for index, member in enumerate(members):
        ctid = member.get("Ctid", member.get("Name", f"number {index + 1}"))
        title = f"[[Container]] {ctid}" if isinstance(ctid, (int, str)) else "[[Container]]"
        found.append(table(title, ("Container", index), member))
        checker.check(found[-1], CONTAINER, _HOMES)
        checker.complete(found[-1], CONTAINER)
    return found


def _over(own: Table, defaults: Table) -> Table:
    return Table(own.title, own.place, {**defaults.values, **own.values}, {**defaults.places, **own.places})


def _container(checker: Checker, found: Table, defaults: Table) -> Container:
    """The container of a table; a gateway and a template that are only defaults give way where they make no sense."""
    made = container(found.values)
    if made.template == made.ctid and found.places["Template"] == defaults.places.get("Template"):
        made = replace(made, template=None)
    from_defaults = "Gateway" in found.places and found.places["Gateway"] == defaults.places.get("Gateway")
    if from_defaults and made.network.ip in ("dhcp", "manual"):
        made = replace(made, network=replace(made.network, gateway=None))
    if wrong := network_wrong(made.network):
        place = found.places["Ip"] if from_defaults else found.places["Gateway"]
        raise checker.document.error(f"{wrong}, in {found.title}", place)
    return made


def _refuse_shared(document: Document, tables: list[Table], containers: dict[int, Container]) -> None:
    seen: dict[tuple[str, str], Table] = {}
    for found in tables:
        for key, value in identities(containers[found.values["Ctid"]]).items():
            first = seen.setdefault((key, value), found)
            if first is not found:
                raise _twice(document, found, key, first)


def _twice(document: Document, found: Table, key: str, first: Table) -> UsageError:
    what = f"{key} {found.values[key]} of {found.title} is also that of {first.title}"
    return document.error(f"{what}, line {document.line(first.places[key])}", found.places[key])


def _refuse_circles(document: Document, tables: list[Table], containers: dict[int, Container]) -> None:
    going_round = circles({ctid: made.template for ctid, made in containers.items()})
    for found in tables:
        if found.values["Ctid"] in going_round:
            raise document.error(f"{found.title} is a clone of itself in the end", found.places["Template"])


def _refuse_taken_ids(document: Document, loaded: Loaded) -> None:
    servers = {made.ctid for made in loaded.containers.values() if made.profile or made.template}
    for key, ctids, others, meaning in (
        ("TemplateIds", loaded.template_ids, servers, "the Ctid of a container that is no template"),
        ("SpareIds", loaded.spare_ids, loaded.containers, "the Ctid of a container"),
        ("SpareIds", loaded.spare_ids, loaded.template_ids, "one of TemplateIds"),
    ):
        for ctid in ctids:
            if ctid in others:
                raise document.error(f"{key} has {ctid}, which is {meaning}", (key,), item=str(ctid))
