"""All decisions of a deploy, made before the first change and kept in the journal: a resumed one decides nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from uuid import uuid4

from builder import check, pack
from builder.deploy import containers, gpu
from builder.deploy import profile as profiles
from builder.deploy.addresses import mac_for
from builder.deploy.containers import Loaded
from builder.deploy.deployments import SERVER, TEMPLATE, deployments, free_id, look, template_of
from builder.deploy.gpu.model import Promise
from builder.deploy.gpu.preflight import Need
from builder.deploy.host.base import Host
from builder.deploy.journal import others
from builder.deploy.model import Container, Folder, Guest, Network, from_jsonable, jsonable
from builder.deploy.profile.model import Profile
from builder.errors import BuilderError, UsageError
from builder.progress import Progress
from builder.recipe.model import Recipe

TEMPLATE_IDS = (920, *range(923, 930))
"""Where templates go when containers.toml does not say."""
SPARE_IDS = tuple(range(930, 940))
"""Where replacements go when containers.toml does not say."""
MODELS = Folder("/srv/models", "/models")
"""Where models lie when nothing says so; `builder models fetch` brings them there."""
OWN_FALLBACK = "*"
"""In place of a name: the profile's own fallback."""
_ROOM = 1.25
"""What an ext4 of many files needs beyond their bytes, and what a service writes."""
_GIB = 1 << 30


@dataclass(frozen=True)
class Source:
    """The template's file here."""

    path: str
    digest: str  # sha256
    title: str  # name, version and variant
    unpacked: int  # bytes
    need: Need  # of the host's driver


@dataclass(frozen=True)
class Wish:
    """What was asked for on the command line."""

    ctid: int
    recipe: Recipe
    profile: str | None
    template: Path
    overrides: dict[str, Any]
    fallback: str | None = None
    full: bool = False
    replace: bool = False
    listen: str | None = None
    check: bool = True  # refuse what `builder check` calls an error


@dataclass(frozen=True)
class Replaced:
    """The container that a new one takes the place of, as it was."""

    ctid: int
    run: str  # of its mark
    running: bool
    onboot: bool


@dataclass(frozen=True)
class Plan:
    """What will be done."""

    run: str
    started: str  # ISO 8601, UTC
    source: Source
    template: Container  # where the template is or will be
    container: Container  # with its card numbers
    profile: Profile
    fallback: Profile | None
    full: bool  # never a linked clone
    replaces: Replaced | None  # what is stopped for this one
    volume: str | None  # where the template's file lies on the host already
    listen: str | None
    unit: bool  # the host's unit for NVIDIA is to be installed
    had_unit: bool  # there was one already, perhaps of another version or not run yet

    def request(self) -> dict[str, Any]:
        """For the journal."""
        made: dict[str, Any] = jsonable(self)
        return made

    @classmethod
    def of(cls, request: Any) -> Plan:
        """Of a journal's `request`. Raises BuilderError when another version wrote it."""
        try:
            return from_jsonable(cls, request)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            hint = "run `builder rollback`, then deploy again"
            raise BuilderError("the journal's request is of another version", hint=hint) from error


def source(template: Path) -> Source:
    """What is to be known of a template's file, from what lies beside it. Raises BuilderError."""
    manifest = pack.read_manifest(template)
    try:
        digest = pack.listed(template)
    except OSError as error:
        raise BuilderError(error.strerror or str(error), where=template.parent / "SHA256SUMS") from error
    if digest is None or digest != manifest["sha256"]:
        hint = f"run `builder verify {template}`"
        raise BuilderError("SHA256SUMS and the manifest do not agree on its sha256", where=template, hint=hint)
    return Source(
        path=str(template.resolve()),
        digest=digest,
        title=template.name.removesuffix(".tar.zst"),
        unpacked=sum(int(entry["size"]) for entry in manifest["files"] if "size" in entry),
        need=gpu.need(manifest),
    )


def make(wish: Wish, loaded: Loaded, host: Host, progress: Progress) -> Plan:
    """Decide everything and look at everything that can be known before the first change.

    What is to be known and stops nothing is said to `progress`. Raises UsageError or BuilderError; several things that
    are wrong are told in one.
    """
    made = source(wish.template)
    guests = look(host)
    container = _container(wish, loaded)
    profile, told = _profile(wish, loaded, container)
    for line in told:
        progress.say(f"container {container.ctid}: {line}")
    fallback = _fallback(wish, profile)
    hungriest = _hungriest(profile, fallback)
    _refuse_useless(wish, hungriest, host)
    if profile.model.repository and not container.models:
        container = replace(container, models=(MODELS,))
    if wish.check:
        _check(wish, [profile, fallback] if fallback else [profile], progress)
    begun = [run.request for _, run in others(host.name)]
    template = _template(wish, loaded, container, made, guests, begun)
    replaced = _replaced(container, guests) if wish.replace else None
    if replaced is not None:
        container = replace(container, ctid=_spare(container, loaded, guests, begun))
    elif (taken := next((guest for guest in guests if guest.ctid == container.ctid), None)) is not None:
        raise _taken(taken)
    else:
        _refuse_second(container.name, guests)
    rest = [guest for guest in guests if replaced is None or guest.ctid != replaced.ctid]
    _refuse_address(container, rest)
    chosen: tuple[int, ...] = ()
    unit = False
    problems = list(host.problems(container))
    if hungriest.gpus:
        cards = gpu.look(host.shell)
        unit = not gpu.complete(cards) or not gpu.installed(host.shell)
        promised = _with_begun(gpu.promises(rest, loaded.entries), begun)
        chosen = gpu.choose(hungriest, container, cards, promised)
        target = wish.recipe.target.compute_capability if wish.recipe.target else ""
        problems += gpu.preflight(cards, made.need, target, cards=chosen, unit_follows=unit)
    problems += _missing_folders(profile, container, host)
    if problems:
        raise BuilderError("; ".join(problems), where=f"container {container.ctid} on {host.name}")
    return Plan(
        run=uuid4().hex[:12],
        started=now(),
        source=made,
        template=template,
        container=replace(container, gpus=chosen, profile=profile.name),
        profile=profile,
        fallback=fallback,
        full=wish.full,
        replaces=replaced,
        volume=None if template_of(guests, made.digest) else host.find_upload(Path(made.path).name, made.digest),
        listen=wish.listen,
        unit=unit,
        had_unit=unit and gpu.present(host.shell),
    )


def now() -> str:
    """The time as journals and marks have it."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _container(wish: Wish, loaded: Loaded) -> Container:
    container = containers.select(loaded, wish.ctid, **wish.overrides)
    if container.network.mac is None:
        mac = mac_for(container.name, container.ctid)
        container = replace(container, network=replace(container.network, mac=mac))
    return container


def _profile(wish: Wish, loaded: Loaded, container: Container) -> tuple[Profile, tuple[str, ...]]:
    """The profile asked for, else that of the entry, else one made of the entry's own keys, with what is to be said."""
    folder = wish.recipe.directory
    if name := wish.profile or container.profile:
        return profiles.load(folder, name), ()
    entry = loaded.entries.get(container.ctid)
    found = profiles.from_entry(entry, container.name, folder) if entry is not None else None
    if found is None:
        known = ", ".join(profiles.names(folder))
        raise UsageError(f"container {container.ctid} has no profile", hint=f"give --profile: {known}")
    return found[0], tuple(told.text for told in found[1])


def _fallback(wish: Wish, profile: Profile) -> Profile | None:
    name = profile.fallback if wish.fallback == OWN_FALLBACK else wish.fallback
    if wish.fallback and name is None:
        raise UsageError(f"profile {profile.name} has no Fallback", hint="name one: --fallback PROFILE")
    return profiles.load(wish.recipe.directory, name) if name else None


def _refuse_useless(wish: Wish, profile: Profile, host: Host) -> None:
    """What was asked for on the command line and would have no effect; an entry may be for other hosts too."""
    if wish.overrides.get("gpus") and not profile.gpus:
        hint = "leave it out, or take a profile with Gpus"
        raise UsageError(f"profile {profile.name} uses no cards", where="--gpus", hint=hint)
    if wish.overrides.get("storage") and not host.capabilities.proxmox:
        hint = "leave it out; --host lxc:FOLDER is another place"
        raise UsageError("plain LXC has no storages", where="--storage", hint=hint)


def _check(wish: Wish, wanted: Sequence[Profile], progress: Progress) -> None:
    """What is known without a run of vLLM. Raises BuilderError for what would not serve."""
    found = check.run(check.of_list(wish.template, wish.recipe), wanted)
    errors = [finding for finding in found if finding.severity is check.Severity.ERROR]
    for finding in found:
        if finding.severity is check.Severity.WARNING:
            progress.say(f"{finding.subject}: {finding.what}; {finding.mend}".rstrip("; "))
    unseen = sum(finding.severity is check.Severity.NOT_CHECKED for finding in found)
    progress.say(f"check: by the list of files, {unseen} things not checked; `builder check {wish.template}` runs vLLM")
    if errors:
        said = "; ".join(f"{each.subject}: {each.what} ({each.mend})" if each.mend else each.what for each in errors)
        raise BuilderError(said, where="check", hint=f"see `builder check {wish.template}`, or give --no-check")


def _template(
    wish: Wish,
    loaded: Loaded,
    container: Container,
    made: Source,
    guests: Sequence[Guest],
    begun: Sequence[Mapping[str, Any]],
) -> Container:
    """The container that is or becomes the template; the size of its root disk follows from the file.

    Of the runs that have not ended, those with the same file make the same template, the others have ids of their own.
    """
    existing = template_of(guests, made.digest)
    rest = [request for request in begun if _part(request, "source").get("digest") != made.digest]
    taken = [_part(request, "template").get("ctid") for request in rest]
    ids = [ctid for ctid in loaded.template_ids or TEMPLATE_IDS if ctid not in taken]
    ctid = existing.ctid if existing else free_id(guests, ids, "the template")
    need = int(made.unpacked * _ROOM / _GIB) + 2
    if container.root_gib < need:
        what = f"a root disk of {container.root_gib} GiB is too small for the template, which needs {need} GiB"
        raise UsageError(what, where=f"container {container.ctid}", hint=f"give RootGiB = {need} or more")
    return Container(
        ctid=ctid,
        name=f"builder-template-{made.digest[:12]}",
        network=Network(bridge=container.network.bridge, ip="manual", mac=mac_for("template", ctid)),
        memory_mib=2048,
        cores=container.cores,
        storage=container.storage,
        root_gib=need,
        gpus=(),
        unprivileged=container.unprivileged,
        nesting=container.nesting,
    )


def _part(request: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    return request.get(key) or {}


def _replaced(container: Container, guests: Sequence[Guest]) -> Replaced:
    named = [found for found in deployments(guests, SERVER) if found.mark.name == container.name]
    named.sort(key=lambda found: (found.guest.running, found.guest.ctid == container.ctid))
    if not named:
        hint = "leave --replace out"
        raise UsageError(f"no deployment {container.name!a} to replace", where=f"container {container.ctid}", hint=hint)
    old, mark = named[-1].guest, named[-1].mark
    return Replaced(old.ctid, mark.run, old.running, old.onboot)


def _spare(container: Container, loaded: Loaded, guests: Sequence[Guest], begun: Sequence[Mapping[str, Any]]) -> int:
    taken = [_part(request, "container").get("ctid") for request in begun]
    wanted = [ctid for ctid in (container.ctid, *(loaded.spare_ids or SPARE_IDS)) if ctid not in taken]
    return free_id(guests, wanted, f"the replacement of {container.name}")


def _refuse_second(name: str, guests: Sequence[Guest]) -> None:
    """Two of one name have one API key, mostly one address, and --replace and `destroy --old` take them for one."""
    for found in deployments(guests, SERVER):
        if found.mark.name == name:
            hint = "give --replace, another --name, or `builder destroy` it first"
            raise UsageError(f"{name} is deployed already", where=f"container {found.guest.ctid}", hint=hint)


def _refuse_address(container: Container, guests: Sequence[Guest]) -> None:
    """Two that run with one address would both seem to answer; what is stopped, and stays so, does no harm."""
    address = container.network.ip.partition("/")[0]
    if address in ("dhcp", "manual"):
        return
    holds = re.compile(rf"\bip\"?\s*[=:]\s*\"?{re.escape(address)}/")
    for guest in guests:
        if (guest.running or guest.onboot) and any(holds.search(value) for value in (guest.config or {}).values()):
            what = f"its address {address} is that of {guest.ctid} ({guest.name})"
            raise UsageError(what, where=f"container {container.ctid}", hint="give --ip another one, or --ip dhcp")


def _taken(guest: Guest) -> BuilderError:
    where = f"{'container' if guest.kind == 'lxc' else 'virtual machine'} {guest.ctid} ({guest.name})"
    if guest.mark is None:
        what = "exists, and the builder did not make it: it is not touched"
        return UsageError(what, where=where, hint="take another --ctid")
    if guest.mark.role == TEMPLATE:
        return UsageError("is a template that the builder made", where=where, hint="take another --ctid")
    return UsageError("is deployed already", where=where, hint="give --replace, or `builder destroy` it first")


def _with_begun(promises: Sequence[Promise], begun: Sequence[Mapping[str, Any]]) -> tuple[Promise, ...]:
    """`promises` with those of deploys that are under way, whose containers need not be there yet."""
    counted = {promise.ctid for promise in promises}
    made = []
    for request in begun:
        container, profile = request.get("container") or {}, request.get("profile") or {}
        ctid, name, share = container.get("ctid"), container.get("name"), profile.get("share")
        if isinstance(ctid, int) and ctid not in counted and isinstance(share, float):
            made += [
                Promise(card, ctid, str(name), share, True, "a deploy under way") for card in container["gpus"] or ()
            ]
    return (*promises, *made)


def _hungriest(profile: Profile, fallback: Profile | None) -> Profile:
    """What the cards must have room for: the profile, with the larger share and number of cards of the two."""
    if fallback is None:
        return profile
    return replace(profile, share=max(profile.share, fallback.share), gpus=max(profile.gpus, fallback.gpus))


def _missing_folders(profile: Profile, container: Container, host: Host) -> tuple[str, ...]:
    if not profile.model.repository:
        return ()
    for folder in container.models:
        if profile.model.path.startswith(folder.target.rstrip("/") + "/"):
            path = folder.source.rstrip("/") + profile.model.path[len(folder.target.rstrip("/")) :]
            if host.shell.ask("test", "-f", f"{path}/config.json").status == 0:
                return ()
            mend = f"`builder models fetch {profile.name} --to {folder.source}` there"
            return (f"the model of profile {profile.name} is not in {path} on the host: {mend}",)
    mend = f"Models = ['/srv/models:{Path(profile.model.path).parent}'] in containers.toml, or --models"
    return (f"profile {profile.name} reads {profile.model.path}, and no folder of the host is mounted there: {mend}",)
