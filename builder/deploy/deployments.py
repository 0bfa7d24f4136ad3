"""What the builder made on a host: templates and servers, known by their marks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from builder.deploy.host.base import Host
from builder.deploy.model import Guest, Mark
from builder.errors import BuilderError, UsageError

SERVER, TEMPLATE = "server", "template"
TAG = "builder"


@dataclass(frozen=True)
class Deployment:
    """A guest that the builder made."""

    guest: Guest
    mark: Mark


def deployments(guests: Sequence[Guest], role: str = SERVER) -> tuple[Deployment, ...]:
    """Those of `guests` that carry a mark of this role."""
    marked = ((guest, guest.mark) for guest in guests)
    return tuple(Deployment(guest, mark) for guest, mark in marked if mark is not None and mark.role == role)


def tags(mark: Mark, more: Sequence[str] = ()) -> tuple[str, ...]:
    """The tags of a guest with this mark."""
    own = (TAG, f"{TAG}-{mark.name}", f"sha256-{mark.digest[:16]}")
    return tuple(dict.fromkeys((*own, *more)))


def look(host: Host) -> tuple[Guest, ...]:
    """All guests; containers with their whole configuration, so that marks, cards and shares are seen."""
    return tuple((host.guest(guest.ctid) or guest) if guest.kind == "lxc" else guest for guest in host.guests())


def template_of(guests: Sequence[Guest], digest: str) -> Guest | None:
    """The template made from the file with this sha256, finished, if only being cloned; None when there is none.

    Of several, which two builders may have made at once, everybody takes the one with the lowest id.
    """
    made = (found.guest for found in deployments(guests, TEMPLATE) if found.mark.digest == digest)
    finished = (guest for guest in made if guest.template and guest.lock in ("", "disk"))
    return min(finished, key=lambda guest: guest.ctid, default=None)


def successor(guests: Sequence[Guest], found: Deployment) -> int | None:
    """The id of the container that runs in the place of a stopped one, as --replace leaves it."""
    same = (each for each in deployments(guests) if each.mark.name == found.mark.name and each.guest.running)
    return None if found.guest.running else next((each.guest.ctid for each in same), None)


def find_running(host: Host, which: str) -> Deployment:
    """As `find`; one that is stopped is refused, naming what runs in its place."""
    guests = look(host)
    found = _find(guests, host.name, which)
    if found.guest.running:
        return found
    now = successor(guests, found)
    hint = "start it first" if now is None else f"{now} serves in its place: name that one"
    raise UsageError("is stopped", where=f"container {found.guest.ctid} ({found.mark.name})", hint=hint)


def find(host: Host, which: str) -> Deployment:
    """The deployment with this container id or name; of several with one name that which runs.

    Raises UsageError when there is none, or it is not of the builder's making.
    """
    return _find(look(host), host.name, which)


def _find(guests: Sequence[Guest], where: str, which: str) -> Deployment:
    if which.isdigit():
        guest = next((guest for guest in guests if guest.ctid == int(which)), None)
        if guest is None:
            raise UsageError(f"there is no container {which}", where=where, hint=_known(guests))
        if guest.mark is None or guest.mark.role != SERVER:
            what = f"container {which} ({guest.name}) is no deployment of the builder"
            raise UsageError(what, where=where, hint=f"it is left alone; {_known(guests)}")
        return Deployment(guest, guest.mark)
    named = [found for found in deployments(guests) if found.mark.name == which]
    if not named:
        raise UsageError(f"there is no deployment {which!a}", where=where, hint=_known(guests))
    return max(named, key=lambda found: (found.guest.running, found.mark.made))


def free_id(guests: Sequence[Guest], wanted: Sequence[int], why: str) -> int:
    """The first of `wanted` that no guest has. Raises BuilderError, `why` naming what it is for."""
    taken = {guest.ctid for guest in guests}
    for ctid in wanted:
        if ctid not in taken:
            return ctid
    listed = ", ".join(map(str, wanted))
    raise BuilderError(f"no free id for {why}: {listed} are taken", hint="name more in containers.toml")


def _known(guests: Sequence[Guest]) -> str:
    names = [f"{found.guest.ctid} ({found.mark.name})" for found in deployments(guests)]
    return f"deployments are {', '.join(names)}" if names else "there is no deployment yet"
