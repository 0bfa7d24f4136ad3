"""How the deployments of a host are: their template, health and drift, and who holds its cards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from builder.deploy import adopted, drift
from builder.deploy.deployments import SERVER, TEMPLATE, Deployment, deployments, find, look, successor
from builder.deploy.host.base import Host
from builder.deploy.inside import call, plain, reason, table
from builder.deploy.model import Guest
from builder.deploy.usage import Usage, usage
from builder.errors import BuilderError


@dataclass(frozen=True)
class Health:
    """What the service says of itself."""

    state: str  # "ok", "failed", "starting", "not running" or "not checked"
    said: str


@dataclass(frozen=True)
class Status:
    """One deployment."""

    name: str
    ctid: int
    state: str  # "running", "stopped", or the host's lock
    recipe: str
    digest: str
    newer: str | None  # a later template of the same recipe that is on the host
    profile: str
    gpus: tuple[int, ...]
    health: Health
    drift: tuple[str, ...]
    unchecked: str  # why drift could not be looked for; empty when it was
    successor: int | None = None  # of a stopped one: the container that runs in its place
    adopted: bool = False  # a server that the builder did not make; without template and profile


@dataclass(frozen=True)
class Overview:
    """A host with its deployments and what is adopted there."""

    deployments: tuple[Status, ...]
    cards: tuple[Usage, ...]
    unchecked: str  # why the cards' use could not be seen; empty when it was


def overview(host: Host, which: Sequence[str] = ()) -> Overview:
    """All deployments and adopted servers, or those with these ids or names.

    Raises UsageError for one that is not there, BuilderError when the host cannot be asked.
    """
    guests = look(host)
    foreign = adopted.adopted(host, guests)
    theirs = {name: adopted.find(host, guests, name) for name in which}
    chosen = [find(host, name) for name in which if theirs[name] is None] if which else deployments(guests, SERVER)
    rows = [_status(host, found, guests) for found in chosen]
    rows += [_adopted(host, found, guests) for found in (theirs.values() if which else foreign) if found is not None]
    rows.sort(key=lambda row: row.ctid)
    try:
        cards, why = usage(host.shell, guests)
    except BuilderError as error:
        cards, why = (), reason(error)
    return Overview(tuple(rows), cards, why)


def _status(host: Host, found: Deployment, guests: Sequence[Guest]) -> Status:
    guest, mark = found.guest, found.mark
    health, changed, unchecked = _looked(host, guest)
    return Status(
        name=plain(mark.name),
        ctid=guest.ctid,
        state=guest.lock or ("running" if guest.running else "stopped"),
        recipe=plain(mark.recipe),
        digest=plain(mark.digest),
        newer=_newer(found, guests),
        profile=plain(mark.profile),
        gpus=mark.gpus,
        health=health,
        drift=changed,
        unchecked=unchecked,
        successor=successor(guests, found),
    )


def _adopted(host: Host, found: adopted.Adopted, guests: Sequence[Guest]) -> Status:
    guest = next((guest for guest in guests if guest.ctid == found.ctid), None)
    try:
        health = Health(*adopted.health(host, found, guest))
    except BuilderError as error:
        health = Health("not checked", reason(error))
    return Status(
        name=found.name,
        ctid=found.ctid,
        state="gone" if guest is None else "running" if guest.running else "stopped",
        recipe="",
        digest="",
        newer=None,
        profile="",
        gpus=adopted.cards_of(guest),
        health=health,
        drift=(),
        unchecked=adopted.NOT_OURS,
        adopted=True,
    )


def _looked(host: Host, guest: Guest) -> tuple[Health, tuple[str, ...], str]:
    if not guest.running:
        return Health("not running", "the container is stopped"), (), "the container is stopped"
    try:
        seen = call(host, guest.ctid, "look")
    except BuilderError as error:
        return Health("not checked", reason(error)), (), reason(error)
    health = _health({key: plain(value) for key, value in table(seen, "unit").items()}, table(seen, "health"))
    record = table(seen, "record")
    if not record:
        return health, (), "there is no record of a deploy in the container"
    does = host.capabilities
    try:
        changed = drift.of_host(guest, drift.settings(record), proxmox=does.proxmox, device_entries=does.device_entries)
    except BuilderError as error:
        return health, (), reason(error)
    except (LookupError, TypeError, ValueError, AttributeError):  # whoever is root in there wrote what it likes
        return health, (), "the record in the container makes no sense"
    return health, tuple(map(plain, (*changed, *drift.of_files(record, table(seen, "files"))))), ""


def _health(unit: dict[str, str], answer: dict[str, object]) -> Health:
    active, sub = unit.get("ActiveState", ""), unit.get("SubState", "")
    if active == "active":
        return Health("ok" if answer.get("ok") is True else "failed", plain(answer.get("said") or "no answer"))
    if active == "failed" or sub == "auto-restart":
        return Health("failed", f"{unit.get('Result', '')}, exit status {unit.get('ExecMainStatus', '?')}")
    if active == "activating":
        return Health("starting", f"waits for its first answer ({sub})")
    if active in ("inactive", "deactivating"):
        return Health("not running", f"vllm.service is {active}")
    return Health("not checked", "systemd does not say")


def _newer(found: Deployment, guests: Sequence[Guest]) -> str | None:
    """The latest template of the same recipe on the host, when it was made after the deployment's."""
    named = found.mark.recipe.partition("_")[0]
    same = [each for each in deployments(guests, TEMPLATE) if each.mark.recipe.partition("_")[0] == named]
    own = next((each.mark.made for each in same if each.mark.digest == found.mark.digest), found.mark.made)
    later = [each for each in same if each.mark.made > own and each.mark.digest != found.mark.digest]
    return plain(max(later, key=lambda each: each.mark.made).mark.recipe) if later else None
