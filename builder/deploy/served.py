"""What the containers of a file serve together: a profile for each, and what they take of each card."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from builder.deploy.containers import Finding, Loaded
from builder.deploy.containers.model import CONTRADICTION, REFUSED, TOLD, model_of
from builder.deploy.gpu import LIMIT
from builder.deploy.model import Container
from builder.deploy.profile import Told, from_entry
from builder.deploy.profile.model import Profile
from builder.errors import BuilderError

_EPSILON = 1e-9


@dataclass(frozen=True)
class Served:
    """Profiles by ctid, and what is to be said of them."""

    profiles: Mapping[int, Profile]
    findings: tuple[Finding, ...]


def served(loaded: Loaded, named: Callable[[str], Profile] | None) -> Served:
    """The profiles of the containers that serve something. `named` finds one by its name; without it only those are
    looked at that entries make by their own keys."""
    profiles: dict[int, Profile] = {}
    findings: list[Finding] = []
    for ctid, container in loaded.containers.items():
        try:
            profile, told = _profile(loaded, container, named)
        except BuilderError as error:
            findings.append(Finding(ctid, REFUSED, str(error)))
            continue
        findings += [Finding(ctid, each.severity, each.text) for each in told]
        if profile is not None:
            profiles[ctid] = profile
            findings += _cards(container, profile)
    findings += _shares(loaded, profiles)
    return Served(profiles, tuple(findings))


def _profile(
    loaded: Loaded, container: Container, named: Callable[[str], Profile] | None
) -> tuple[Profile | None, tuple[Told, ...]]:
    if container.profile is not None:
        return (named(container.profile) if named else None), ()
    entry = loaded.entries.get(container.ctid, {})
    return (from_entry(entry, container.name) if model_of(entry) else None) or (None, ())


def _cards(container: Container, profile: Profile) -> list[Finding]:
    if container.gpus is None or len(container.gpus) >= profile.gpus:
        return []
    has = ", ".join(map(str, container.gpus)) or "none"
    text = f"profile {profile.name} wants {profile.gpus} of the host's cards, and it is given {has}"
    return [Finding(container.ctid, REFUSED, text)]


def _shares(loaded: Loaded, profiles: Mapping[int, Profile]) -> list[Finding]:
    """Cards that are promised beyond their limit: a contradiction where it happens at boot, else told."""
    by_card: dict[int, list[int]] = {}
    for ctid, profile in profiles.items():
        cards = loaded.containers[ctid].gpus or ()
        for card in cards if len(cards) == profile.gpus else ():
            by_card.setdefault(card, []).append(ctid)
    findings = []
    for card, ctids in sorted(by_card.items()):
        at_boot = [ctid for ctid in ctids if loaded.containers[ctid].onboot]
        for some, severity, why in (
            (at_boot, CONTRADICTION, "and all of them start at boot"),
            (ctids, TOLD, "so they cannot all run at once"),
        ):
            total = sum(profiles[ctid].share for ctid in some)
            if total > LIMIT + _EPSILON:
                listed = ", ".join(f"{profiles[ctid].share:.2f} of {ctid}" for ctid in some)
                text = f"card {card} is promised {total:.2f} of its memory ({listed}), over {LIMIT:.2f}, {why}"
                findings.append(Finding(None, severity, text))
                break
    return findings
