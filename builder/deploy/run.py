"""A deploy from beginning to end, its resumption, its roll-back, and the removal of what was deployed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from builder.deploy.deployments import TEMPLATE, Deployment, deployments, look
from builder.deploy.host.base import Host
from builder.deploy.journal import Journal, Run, folder_of, locked, others
from builder.deploy.plan import Plan
from builder.deploy.profile import render
from builder.deploy.profile.secrets import Secrets
from builder.deploy.steps import Deploy, needed_digests, operations, steps, template_lock
from builder.deploy.transaction import Step, perform, roll_back
from builder.errors import BuilderError, UsageError
from builder.progress import Progress


@dataclass(frozen=True)
class Deployed:
    """What a deploy ended with."""

    plan: Plan
    profile: str  # that came up: the plan's, or its fallback
    commands: tuple[str, ...]  # what changed the host, in order


def deploy(
    host: Host,
    ctid: int,
    plan: Callable[[], Plan],
    secrets: Callable[[Plan], Secrets],
    progress: Progress,
    *,
    deadline: float,
) -> Deployed:
    """Decide with `plan` and do it, under the lock of `ctid`; with a dry shell nothing is done and nothing is kept.

    One deploy at a time decides, and the next one sees in its journal which ids and cards it takes.

    Raises what stopped it, after the roll-back, and BuilderError when an earlier run of this container is unfinished.
    """
    if host.shell.dry:
        made = plan()
        for step in steps(_ready(Deploy(made, host, secrets(made), progress, deadline))):
            step.run()
        return _deployed(host, made)
    folder = folder_of(host.name, ctid)
    with locked(folder, f"container {ctid} on {host.name}"):
        journal = Journal(folder)
        _refuse_unfinished(host, journal.read(), ctid)
        with locked(folder_of(host.name, 0).with_name("plan"), f"the plan for {host.name}", wait=True):
            made = plan()
            if made.replaces is not None:
                _refuse_part_of_run(host, made.replaces.ctid)
            todo = steps(_ready(Deploy(made, host, secrets(made), progress, deadline)))
            journal.begin(made.run, made.request(), made.started)
        _perform(host, todo, journal, progress)
    return _deployed(host, made)


def resume(
    host: Host, ctid: int, secrets: Callable[[Plan], Secrets], progress: Progress, *, deadline: float
) -> Deployed:
    """Go on with the unfinished run of `ctid`: the step that was cut short is taken back and done again.

    Raises UsageError when there is nothing to resume, or it was being rolled back.
    """
    folder = folder_of(host.name, ctid)
    with locked(folder, f"container {ctid} on {host.name}"):
        journal = Journal(folder)
        run = _unfinished(journal.read(), ctid)
        if run.undoing:
            hint = f"run `builder rollback {ctid}`{_there(host)}"
            raise UsageError("its last run was being rolled back", where=f"container {ctid}", hint=hint)
        made = Plan.of(run.request)
        todo = steps(_ready(Deploy(made, host, secrets(made), progress, deadline)))
        _perform(host, todo, journal, progress)
    return _deployed(host, made)


def _perform(host: Host, todo: Sequence[Step], journal: Journal, progress: Progress) -> None:
    perform(todo, journal, operations(host, progress.say), progress, lambda: host.shell.ask("true"))


def _deployed(host: Host, plan: Plan) -> Deployed:
    guest = host.guest(plan.container.ctid) if plan.fallback and not host.shell.dry else None
    profile = guest.mark.profile if guest and guest.mark else plan.profile.name
    return Deployed(plan, profile, tuple(host.shell.record))


def rollback(host: Host, ctid: int, progress: Progress) -> Run:
    """Take back the unfinished run of `ctid`. Raises UsageError when there is none, BuilderError when it fails."""
    folder = folder_of(host.name, ctid)
    with locked(folder, f"container {ctid} on {host.name}"):
        journal = Journal(folder)
        run = _unfinished(journal.read(), ctid)
        roll_back(journal, operations(host, progress.say), progress, "asked for")
    return run


def destroy(host: Host, found: Deployment, progress: Progress) -> None:
    """Stop and remove a deployment. Raises BuilderError; calling it again goes on."""
    ctid = found.guest.ctid
    folder = folder_of(host.name, ctid)
    with locked(folder, f"container {ctid} on {host.name}"):
        _refuse_unfinished(host, Journal(folder).read(), ctid)
        _refuse_part_of_run(host, ctid)
        _refuse_changed(host, found)
        with progress.task(f"destroy {ctid}"):
            host.stop(ctid)
            host.destroy(ctid)


def retired(host: Host, name: str) -> tuple[Deployment, ...]:
    """Stopped deployments of a name that another one of this name has replaced."""
    named = [found for found in deployments(look(host)) if found.mark.name == name]
    newest = max(named, key=lambda found: (found.guest.running, found.mark.made), default=None)
    return tuple(found for found in named if found is not newest and not found.guest.running)


def unused_templates(host: Host) -> tuple[Deployment, ...]:
    """Templates from whose file no deployment was made, and none is being made."""
    guests = look(host)
    used = needed_digests(host, guests)
    made = deployments(guests, TEMPLATE)
    return tuple(found for found in made if found.guest.template and found.mark.digest not in used)


def remove_templates(host: Host, found: Sequence[Deployment], progress: Progress) -> None:
    """Remove templates. Raises BuilderError with the host's words, such as that a linked clone needs one."""
    with template_lock(host):
        needed = needed_digests(host, look(host))
        for each in found:
            with progress.task(f"destroy {each.guest.ctid}"):
                _refuse_changed(host, each)
                if each.mark.digest in needed:
                    raise BuilderError("is needed by a deploy that just began", where=f"template {each.guest.ctid}")
                host.destroy(each.guest.ctid)


def _ready(deploy: Deploy) -> Deploy:
    """Itself. Raises UsageError when the service's files cannot be written: before the first change, not after."""
    for profile in filter(None, (deploy.plan.profile, deploy.plan.fallback)):
        render(profile, deploy.plan.container, deploy.secrets, listen=deploy.plan.listen)
    return deploy


def _refuse_unfinished(host: Host, run: Run | None, ctid: int) -> None:
    if run is not None and run.end is None:
        way = (
            f"`builder rollback {ctid}`"
            if run.undoing
            else f"`builder deploy --ctid {ctid} --resume` or `builder rollback {ctid}`"
        )
        what = f"the run of {run.started} is unfinished ({len(run.steps)} steps begun)"
        raise BuilderError(what, where=f"container {ctid}", hint=f"run {way}{_there(host)}")


def _there(host: Host) -> str:
    """What a command needs besides, where the host is not the default one."""
    return "" if host.name == "pct" else ", with the same --host"


def _refuse_part_of_run(host: Host, ctid: int) -> None:
    """A run that replaces a container has a spare id or takes another container's place: both are in its request."""
    for begun, run in others(host.name):
        if ctid in ((run.request.get(key) or {}).get("ctid") for key in ("container", "replaces")):
            what = f"belongs to the run of {run.started} for {begun}, which is unfinished"
            hint = f"wait for it, or run `builder rollback {begun}`{_there(host)}"
            raise BuilderError(what, where=f"container {ctid}", hint=hint)


def _refuse_changed(host: Host, found: Deployment) -> None:
    """Between the look and the deed somebody may have been asked: the id must still be that of the same guest."""
    guest = host.guest(found.guest.ctid)
    if guest is None or guest.mark != found.mark:
        where = f"container {found.guest.ctid} ({found.mark.name})"
        raise BuilderError("was changed by somebody else just now", where=where, hint="look again: `builder status`")


def _unfinished(run: Run | None, ctid: int) -> Run:
    if run is None or run.end is not None:
        how = "there is none" if run is None else f"the last one has ended ({run.end})"
        raise UsageError(f"no unfinished run: {how}", where=f"container {ctid}", hint="see `builder status`")
    return run
