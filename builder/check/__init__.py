"""What can be proved of a template without a GPU."""

from __future__ import annotations

from collections.abc import Sequence

from builder.check import budget, code, holes, hygiene, memory, proxmox, rules, simulate, versions
from builder.check.look import Look, look, view
from builder.check.model import Finding, Profile, Severity, Subject, told
from builder.check.rules import unseen, worst
from builder.check.sources import of_list, of_recipe, of_template
from builder.progress import Progress, Silent
from builder.store import Store

__all__ = [
    "Finding",
    "Look",
    "Profile",
    "Severity",
    "Subject",
    "budget",
    "holes",
    "look",
    "of_list",
    "of_recipe",
    "of_template",
    "run",
    "worst",
]


def run(
    subject: Subject,
    profiles: Sequence[Profile] = (),
    *,
    together: bool = False,
    store: Store | None = None,
    build_paths: Sequence[str] = (),
    progress: Progress | None = None,
) -> tuple[Finding, ...]:
    """Every finding about a template and the profiles that it is to serve, the worst first.

    `together`: the profiles are to run at the same time on the target's cards. `store` gives room for work; without
    one the check is quick: profiles, versions and lists of files, no GPU code and no run of vLLM, which is then told
    as not checked. `build_paths`: folders of the building machine that nothing in the template may name. With a store
    it needs uid 0 or a user namespace (`sandbox.userns.become_root`). Raises BuilderError when a file of the template
    cannot be read.
    """
    progress = progress or Silent()
    template = look(subject)
    views = [view(template, profile) for profile in profiles]
    libraries = None if store is None else code.libraries(subject, store.scratch, progress)
    found = [*versions.fit(template), *versions.driver(template, libraries), *rules.of_template(template)]
    if libraries is not None:
        own = versions.own_driver(template)
        found += code.judge(template, libraries, versions.newest_isa(own) if own else None)
    else:
        found.append(unseen("gpu-code", "template", "which GPU code the card would run", "not part of a quick check"))
    for each in views:
        found += [*rules.of_profile(each), *versions.fit_on_path(each)]
        found += [*budget.alone(each.profile, _devices(subject)), *memory.fits(each)]
    found += _shared(subject, profiles, together)
    if views and not subject.tree.readable:
        what, reason = "what the service's unit sets", "only the list of files is at hand"
        found.append(unseen("environment", "template", what, reason))
    if store is not None:
        decided = list(simulate.engines(views, store.scratch, progress))
        found += [finding for one in decided for finding in one.findings]
        found += code.first_requests(decided, libraries or ())
    elif views:
        what = "what vLLM makes of the profiles"
        found.append(unseen("engine", "profiles", what, "not part of a quick check", "`builder check`"))
    if any(profile.gpus for profile in profiles):
        what, reason = "that kernels run, and how fast", "there is no GPU here"
        found.append(unseen("kernels", "template", what, reason, "`builder deploy` waits for a completion"))
    found += [*proxmox.accepts(subject), *hygiene.clean(subject.tree, build_paths), *holes.known(template, views)]
    return told(found)


def _devices(subject: Subject) -> int | None:
    return subject.target.devices if subject.target else None


def _shared(subject: Subject, profiles: Sequence[Profile], together: bool) -> list[Finding]:
    devices = _devices(subject)
    if sum(profile.gpus > 0 for profile in profiles) < 2:
        return []
    if not together or devices is None:
        reason = "no [Target] is known" if together else "they were not said to run at the same time"
        return [unseen("card-budget", "profiles", "whether they fit the cards together", reason, "give --together")]
    return list(budget.together(profiles, devices))
