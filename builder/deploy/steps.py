"""The steps of a deploy, each with what takes it back."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from builder.deploy import gpu, health
from builder.deploy import profile as profiles
from builder.deploy.deployments import SERVER, TEMPLATE, deployments, look, tags, template_of
from builder.deploy.host.base import Host
from builder.deploy.inside import UNIT, plain
from builder.deploy.journal import Undo, folder_name, locked, others, state_root
from builder.deploy.model import Container, Device, File, Guest, Mark, Settings, jsonable
from builder.deploy.plan import Plan, Replaced, now
from builder.deploy.profile.model import Profile
from builder.deploy.profile.secrets import Secrets
from builder.deploy.put import put
from builder.deploy.shell import AwayError
from builder.deploy.transaction import Operations, Step
from builder.errors import BuilderError
from builder.progress import Progress

RECORD = "/etc/vllm/builder.json"
"""What was deployed, in the container, for `status`."""
_LINKING = ("zfspool", "lvmthin", "btrfs", "rbd")
"""Storages on which Proxmox makes linked clones (pve-storage, volume_has_feature of each plugin)."""
_NEW_KEYS = (
    "rm -f /etc/ssh/ssh_host_*; ssh-keygen -q -A; "
    "systemctl try-restart ssh.service || ! systemctl is-active -q ssh.service"
)
"""While systemd does not answer yet, sshd has not started either."""


@dataclass(frozen=True)
class Deploy:
    """What every step needs."""

    plan: Plan
    host: Host
    secrets: Secrets
    progress: Progress
    deadline: float  # seconds until the service must have answered


def steps(deploy: Deploy) -> tuple[Step, ...]:
    """All steps in order. What is there already is left alone, and its undo does nothing."""
    plan = deploy.plan
    ctid, run, digest, old = plan.container.ctid, plan.run, plan.source.digest, plan.replaces
    made = []
    if plan.unit:
        undo_unit = () if plan.had_unit else (Undo("uninstall host unit", {"run": run}),)
        made.append(Step("host unit", lambda: _unit(deploy), undo_unit))
    template = {
        "ctid": plan.template.ctid,
        "name": Path(plan.source.path).name,
        "digest": digest,
        "run": run,
        "uploaded": plan.volume is None,
    }
    made += [
        Step("template", lambda: _template(deploy), (Undo("forget template", template),)),
        Step("clone", lambda: _clone(deploy), (Undo("destroy", {"ctid": ctid, "run": run, "digest": digest}),)),
        Step("configure", lambda: _configure(deploy)),
    ]
    if old is not None and old.running:
        made.append(Step("stop old", lambda: _stop(deploy, old), (Undo("start", {"ctid": old.ctid, "run": old.run}),)))
    made += [
        Step("start", lambda: _start(deploy), (Undo("stop", {"ctid": ctid, "run": run}),)),
        Step("ssh host keys", lambda: _ssh_host_keys(deploy)),
        Step("serve", lambda: _serve(deploy)),
    ]
    if old is not None:
        undo = Undo("onboot", {"ctid": old.ctid, "run": old.run, "onboot": old.onboot})
        made.append(Step("retire old", lambda: _retire(deploy, old), (undo,)))
    return tuple(made)


def operations(host: Host, say: Callable[[str], None]) -> Operations:
    """What the undos in a journal do; `say` gets what is left as it is, and why.

    Only guests that the run made, or found to be a deployment, are touched: an id may be somebody else's by now.
    """

    def destroy(ctid: int, run: str, digest: str = "") -> bool:
        guest = host.guest(ctid)
        if not _ours(host, ctid, run, say, half_made=True):
            return False
        half = guest is not None and guest.lock == "create"  # its template may have been left locked, too
        template = template_of(look(host), digest) if half else None
        host.recover(ctid, template.ctid if template else None)
        if _ours(host, ctid, run, say):  # what was half-made may have become somebody else's while it waited
            host.stop(ctid, timeout=30)
            host.destroy(ctid)
        return True

    def stop(ctid: int, run: str) -> bool:
        ours = _ours(host, ctid, run, say)
        if ours:
            host.stop(ctid, timeout=30)
        return ours

    def start(ctid: int, run: str) -> bool:
        ours = _ours(host, ctid, run, say)
        if ours:
            host.start(ctid)
        return ours

    def onboot(ctid: int, run: str, onboot: bool) -> bool:
        ours = _ours(host, ctid, run, say)
        if ours:
            host.set_onboot(ctid, onboot)
        return ours

    def forget_template(ctid: int, name: str, digest: str, run: str, uploaded: bool) -> bool:
        with template_lock(host):
            half = host.guest(ctid)
            half_made = half is not None and _is_half_made(half)
            if half_made:
                host.recover(ctid, None)
            guests = look(host)
            own = (run, digest)
            made = [each for each in deployments(guests, TEMPLATE) if (each.mark.run, each.mark.digest) == own]
            if digest in needed_digests(host, guests, run):
                if made:
                    say(f"template {digest[:12]} stays: another deployment needs it")
                return half_made
            for found in made:
                host.recover(found.guest.ctid, None)
                if host.guest(found.guest.ctid) is not None:
                    host.destroy(found.guest.ctid)
            gone = bool(made) or half_made
            return (uploaded and host.forget_upload(name, digest, run)) or gone

    def uninstall_unit(run: str) -> bool:
        given = any((found.request.get("container") or {}).get("gpus") for _, found in others(host.name, run))
        stays = given or any(_has_card(guest) for guest in look(host))
        if stays:
            say(f"{gpu.UNIT} stays: other containers have cards")
        else:
            gpu.uninstall(host.shell)
        return not stays

    return {
        "destroy": destroy,
        "stop": stop,
        "start": start,
        "onboot": onboot,
        "forget template": forget_template,
        "uninstall host unit": uninstall_unit,
    }


def needed_digests(host: Host, guests: Sequence[Guest], run: str = "") -> frozenset[str]:
    """The sha256 of the templates that deployments, or runs that have not ended, were made from; those of `run` do not
    count."""
    made = (found.mark.digest for found in deployments(guests) if found.mark.run != run)
    begun = (str((found.request.get("source") or {}).get("digest")) for _, found in others(host.name, run))
    return frozenset((*made, *begun))


def _ours(host: Host, ctid: int, run: str, say: Callable[[str], None], *, half_made: bool = False) -> bool:
    """Whether this run made the guest; with `half_made` also one that has no mark yet: the id was free at first."""
    guest = host.guest(ctid)
    if guest is None:
        return False
    if (half_made and _is_half_made(guest)) or (guest.mark is not None and guest.mark.run == run):
        return True
    say(f"container {ctid} ({plain(guest.name)}) is another one now: it is left alone")
    return False


def _is_half_made(guest: Guest) -> bool:
    """A container of this node that Proxmox was making: it has its description, and so its mark, at the very end."""
    return guest.kind == "lxc" and guest.config is not None and guest.lock == "create" and guest.mark is None


def _has_card(guest: Guest) -> bool:
    return any("/dev/nvidia" in text for text in (*(guest.config or {}).values(), *guest.raw))


def _check_same(deploy: Deploy, ctid: int, run: str) -> None:
    """Raises BuilderError when the container is not the one that was planned with: that may be days ago."""
    if deploy.host.shell.dry:
        return
    guest = deploy.host.guest(ctid)
    if guest is None or guest.mark is None or guest.mark.run != run:
        what = "is not there any more" if guest is None else f"({plain(guest.name)}) is another one now"
        raise BuilderError(what, where=f"container {ctid}")


def _mark(plan: Plan, profile: Profile, role: str = SERVER) -> Mark:
    container = plan.container if role == SERVER else plan.template
    return Mark(
        run=plan.run,
        name=container.name,
        role=role,
        digest=plan.source.digest,
        recipe=plan.source.title,
        profile=profile.name if role == SERVER else "",
        gpus=container.gpus or (),
        share=profile.share if role == SERVER and profile.gpus else 0.0,
        made=plan.started,
        ctid=container.ctid,
    )


def _settings(plan: Plan, profile: Profile) -> Settings:
    mark = _mark(plan, profile)
    devices: tuple[Device, ...] = ()
    folder = None
    if plan.container.gpus:
        devices = gpu.devices(plan.container.gpus)
        folder = gpu.DRIVER_FOLDER if plan.source.need.userspace else None
    raw = (*gpu.mounts(folder, plan.container.models), *plan.container.raw)
    return Settings(plan.container, tags(mark, plan.container.tags), mark.line(), devices, raw)


def _unit(deploy: Deploy) -> str:
    gpu.install(deploy.host.shell)
    return "builder-nvidia.service"


def template_lock(host: Host) -> AbstractContextManager[None]:
    """Deploys from this machine make and remove one template at a time; in a dry run none does."""
    if host.shell.dry:
        return nullcontext()
    return locked(state_root() / "deploy" / folder_name(host.name) / "template", f"{host.name}", wait=True)


def _template(deploy: Deploy) -> str:
    """Upload the file and import it, unless the host has a template of this digest. What was uploaded goes again."""
    host, plan = deploy.host, deploy.plan
    source, container = plan.source, plan.template
    with template_lock(host):
        existing = template_of(look(host), source.digest)
        if existing is not None:
            return f"{existing.ctid}, there already"
        file = Path(source.path)
        with deploy.progress.task(f"upload {file.name}"):
            there = host.find_upload(file.name, source.digest)
            volume = there or host.upload(file, source.digest, plan.run)
        mark = _mark(plan, plan.profile, TEMPLATE)
        with deploy.progress.task(f"import as {container.ctid}"):
            host.create(container, volume, Settings(container, tags(mark), mark.line()))
            host.make_template(container.ctid)
        if there is None:
            host.forget_upload(file.name, source.digest, plan.run)
        first = template_of(look(host), source.digest)
        if first is not None and first.ctid != container.ctid:  # another machine's builder was making it, too
            host.destroy(container.ctid)
            return f"{first.ctid}, made by another builder meanwhile"
        return f"{container.ctid} from {there or file.name}"


def _clone(deploy: Deploy) -> str:
    host, plan = deploy.host, deploy.plan
    template = _template_id(deploy)
    full = plan.full or not _can_link(host, template, plan.template)
    with deploy.progress.task(f"clone {template}"):
        host.clone(template, plan.container, full=full, description=_mark(plan, plan.profile).line())
    return f"{template} to {plan.container.ctid}{'' if full else ', linked'}"


def _template_id(deploy: Deploy) -> int:
    found = template_of(look(deploy.host), deploy.plan.source.digest)
    if found is None and not deploy.host.shell.dry:
        raise BuilderError("the template is not there any more", where=deploy.host.name)
    return found.ctid if found is not None else deploy.plan.template.ctid


def _can_link(host: Host, template: int, container: Container) -> bool:
    if host.guest(template) is not None:
        return host.can_link(template, container.storage)
    kinds = {storage.kind for storage in host.storages() if storage.name == container.storage or not container.storage}
    return bool(kinds) and kinds <= set(_LINKING)


def _configure(deploy: Deploy) -> str:
    plan = deploy.plan
    _check_same(deploy, plan.container.ctid, plan.run)
    settings = _settings(plan, plan.profile)
    if plan.replaces is not None:  # until it has answered, a reboot brings the old one back and not both
        settings = replace(settings, container=replace(settings.container, onboot=False))
    deploy.host.configure(settings)
    network = plan.container.network
    cards = ", ".join(map(str, plan.container.gpus or ())) or "none"
    return f"{network.ip} on {network.bridge}, {network.mac}; cards {cards}"


def _stop(deploy: Deploy, old: Replaced) -> str:
    _check_same(deploy, old.ctid, old.run)
    deploy.host.stop(old.ctid)
    return str(old.ctid)


def _start(deploy: Deploy) -> str:
    _check_same(deploy, deploy.plan.container.ctid, deploy.plan.run)
    deploy.host.start(deploy.plan.container.ctid)
    return str(deploy.plan.container.ctid)


def _ssh_host_keys(deploy: Deploy) -> str:
    """Clones have the template's keys, if it has any: Proxmox makes them when it imports one."""
    host = deploy.host
    _check_same(deploy, deploy.plan.container.ctid, deploy.plan.run)
    argv = host.inside(deploy.plan.container.ctid, ("sh", "-ec", f"[ ! -d /etc/ssh ] || {{ {_NEW_KEYS}; }}"))
    host.shell.do(*argv, timeout=120).check()
    return "new"


def _serve(deploy: Deploy) -> str:
    """The profile's files, and the service up; with a fallback the next profile when this one does not come up."""
    plan = deploy.plan
    _check_same(deploy, plan.container.ctid, plan.run)
    try:
        return _serve_profile(deploy, plan.profile)
    except AwayError:
        raise
    except BuilderError as error:
        if plan.fallback is None:
            raise
        deploy.progress.say(f"profile {plan.profile.name} did not come up: {error}")
        deploy.progress.say(f"trying {plan.fallback.name}")
        return f"{_serve_profile(deploy, plan.fallback)}, the fallback of {plan.profile.name}"


def _serve_profile(deploy: Deploy, profile: Profile) -> str:
    plan, host = deploy.plan, deploy.host
    container = replace(plan.container, profile=profile.name)
    if profile is not plan.profile:
        mark = _mark(plan, profile)
        host.describe(container.ctid, mark.line(), tags(mark, container.tags))
    files = profiles.render(profile, container, deploy.secrets, listen=plan.listen)
    put(host, container.ctid, [*files, _record(plan, profile, files)])
    if host.shell.dry:
        host.shell.do(*host.inside(container.ctid, ("systemctl", "restart", "--no-block", UNIT)))
        return profile.name
    answer = health.wait(host, container.ctid, profile, deadline=deploy.deadline, progress=deploy.progress)
    return f"{profile.name}: {answer}"


def _record(plan: Plan, profile: Profile, files: Sequence[File]) -> File:
    record = {
        "version": 1,
        "mark": jsonable(_mark(plan, profile)),
        "settings": jsonable(_settings(plan, profile)),
        "profile": jsonable(profile),
        "files": {file.path: sha256(file.content).hexdigest() for file in files},
        "written": now(),
    }
    return File(RECORD, json.dumps(record, indent=1, sort_keys=True).encode() + b"\n", mode=0o600)


def _retire(deploy: Deploy, old: Replaced) -> str:
    """Two containers with one address must not both come up with the host."""
    _check_same(deploy, old.ctid, old.run)
    deploy.host.set_onboot(old.ctid, False)
    if deploy.plan.container.onboot:
        deploy.host.set_onboot(deploy.plan.container.ctid, True)
    return f"{old.ctid} stays stopped; `builder destroy {deploy.plan.container.name} --old` removes it"
