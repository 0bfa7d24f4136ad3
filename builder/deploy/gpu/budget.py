"""Who may take how much of a card's memory, and which cards a new container gets.

vLLM's --gpu-memory-utilization is a share of the whole card and is checked against what is free when a server starts:
servers on one card must fit it together.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from builder.check.budget import LIMIT
from builder.deploy.gpu.model import Card, Gpus, Promise
from builder.deploy.model import Container, Guest
from builder.deploy.profile import from_entry
from builder.deploy.profile.model import Profile
from builder.errors import BuilderError, UsageError

UNKNOWN = "unknown"
"""The source of a promise whose share nobody stated: then what the card shows as used is taken for it."""
MARK, ENTRY, USED = "its mark", "its entry", "nvidia-smi"

_NODE = re.compile(r"/dev/nvidia(\d+)(?!\w)")
_AT_BOOT = ("onboot", "lxc.start.auto")  # Proxmox's key and LXC's
_NOISE = 0.02  # of a card's memory that is used though nobody runs on it
_EPSILON = 1e-9


def promises(guests: Sequence[Guest], entries: Mapping[int, Mapping[str, Any]]) -> tuple[Promise, ...]:
    """What the host's containers may take, by card and ctid.

    Counted are those that run or start at boot. A share is from the container's mark, else from its entry in
    phoenix_lxc_configs.json, else unknown. `guests` have their whole configuration.
    """
    found = [promise for guest in guests if _counts(guest) for promise in _of(guest, entries.get(guest.ctid))]
    return tuple(sorted(found, key=lambda promise: (promise.card, promise.ctid)))


def choose(
    profile: Profile, container: Container, gpus: Gpus, promises: Sequence[Promise], *, weights_mib: int = 0
) -> tuple[int, ...]:
    """The cards for `container`, in order of number: of those it asks for, or of all, the ones with most memory that
    is not promised. `weights_mib` is the size of the model's files where it is known, else 0.

    Raises UsageError when it asks for fewer cards than the profile needs, BuilderError when a card is not there or the
    profile does not fit, saying for each card what is promised to whom.
    """
    if profile.gpus == 0:
        return ()
    where = f"profile {profile.name} for container {container.ctid}"
    cards = {card.index: card for card in gpus.cards}
    wanted = tuple(cards) if container.gpus is None else tuple(dict.fromkeys(container.gpus))
    if container.gpus is not None and len(wanted) < profile.gpus:
        given = f"is given {_cards(wanted)}" if wanted else "is given none"
        hint = "name more in Gpus, or take a profile for fewer"
        raise UsageError(f"wants {profile.gpus} of the host's cards and {given}", where=where, hint=hint)
    if absent := [index for index in wanted if index not in cards]:
        has = f"it has {_cards(tuple(cards))}" if cards else "its driver shows none: is the module loaded?"
        raise BuilderError(f"the host has no {_cards(absent)}", where=where, hint=has)
    if len(wanted) < profile.gpus:
        needs = "a card" if profile.gpus == 1 else f"{profile.gpus} cards"
        raise BuilderError(f"wants {needs}, and the host has {len(wanted) or 'none'}", where=where)
    budget = {index: _Budget(cards[index], promises) for index in cards}
    order = sorted(wanted, key=lambda index: (-budget[index].free_mib, index))
    fit = [index for index in order if budget[index].fits(profile.share)]
    if len(fit) < profile.gpus:
        raise _too_full(where, profile, [budget[index] for index in sorted(wanted)], budget)
    chosen = tuple(sorted(fit[: profile.gpus]))
    for index in chosen:
        _check_weights(where, profile, cards[index], weights_mib)
    return chosen


def start_order(promises: Sequence[Promise]) -> tuple[int, ...]:
    """The containers in the order to start them, one after the other where they share a card: vLLM measures the
    memory while it starts. The largest share goes first."""
    largest: dict[int, float] = {}
    for promise in promises:
        largest[promise.ctid] = max(promise.share, largest.get(promise.ctid, 0.0))
    return tuple(sorted(largest, key=lambda ctid: (-largest[ctid], ctid)))


def neighbours(cards: Sequence[int], promises: Sequence[Promise]) -> tuple[int, ...]:
    """The running containers with a promise on one of `cards`: none of them may be starting when another does."""
    return tuple(sorted({promise.ctid for promise in promises if promise.running and promise.card in cards}))


class _Budget:
    """What is promised of one card."""

    def __init__(self, card: Card, promises: Sequence[Promise]) -> None:
        self.card = card
        here = [promise for promise in promises if promise.card == card.index]
        self._known = [promise for promise in here if promise.source != UNKNOWN]
        self._unknown = [promise for promise in here if promise.source == UNKNOWN and promise.running]
        self._used = self._beyond()

    def _beyond(self) -> float:
        """The share in use, rounded up to hundredths, that no stated share of a running container covers. Where nobody
        can see what an unknown container uses, it counts as the whole card."""
        if not self.card.memory_mib:
            return LIMIT if self._unknown else 0.0
        running = sum(promise.share for promise in self._known if promise.running)
        beyond = self.card.used_mib / self.card.memory_mib - running
        if not self._unknown and (running or beyond <= _NOISE):
            return 0.0
        return max(0.0, math.ceil(100 * beyond - _EPSILON) / 100)

    @property
    def total(self) -> float:
        return sum(promise.share for promise in self._known) + self._used

    @property
    def free_mib(self) -> float:
        return (LIMIT - self.total) * (self.card.memory_mib or 1)

    def fits(self, share: float) -> bool:
        return self.total + share <= LIMIT + _EPSILON

    def told(self) -> str:
        """Who is promised what: ``0.80 awq (950, its mark), 0.10 embed (951, its entry)``."""
        return ", ".join(self._lines()) or "nothing"

    def _lines(self) -> Iterator[str]:
        for promise in self._known:
            rests = "" if promise.running else ", starts at boot"
            yield f"{promise.share:.2f} {promise.name} ({promise.ctid}, {promise.source}{rests})"
        who = ", ".join(f"{promise.name} ({promise.ctid})" for promise in self._unknown)
        if who:
            seen = f"what {USED} shows as used" if self.card.memory_mib else f"and {USED} does not answer"
            yield f"{self._used:.2f} {who}, as nothing states a share: {seen}"
        elif self._used:
            yield f"{self._used:.2f} outside the containers ({USED})"


def _too_full(where: str, profile: Profile, asked: Sequence[_Budget], every: Mapping[int, _Budget]) -> BuilderError:
    more = f"{profile.share:.2f} more for {profile.name}"
    told = [
        f"card {budget.card.index}: {budget.told()}; "
        + (
            f"{more} fits"
            if budget.fits(profile.share)
            else f"{more} is {budget.total + profile.share:.2f}, over {LIMIT:.2f}"
        )
        for budget in asked
    ]
    rest = [budget for budget in every.values() if budget not in asked and budget.fits(profile.share)]
    free = [
        f"{'' if budget.total else 'free '}card {budget.card.index} holds {LIMIT - budget.total:.2f}" for budget in rest
    ]
    if len(asked) > 1 and profile.gpus > 1:
        told.append(f"it wants {profile.gpus} cards with that much")
    way = "stop one of these, or lower a share"
    return BuilderError("; ".join((*told, *free)), where=where, hint=None if free else way)


def _check_weights(where: str, profile: Profile, card: Card, weights_mib: int) -> None:
    part, room = weights_mib / profile.gpus, profile.share * card.memory_mib
    if card.memory_mib and part >= room:
        what = (
            f"the model's files are {part:.0f} MiB a card, and {profile.share:.2f} of card {card.index} is {room:.0f}"
        )
        raise BuilderError(f"{what} MiB", where=where, hint="take a larger share, more cards or a smaller model")


def _counts(guest: Guest) -> bool:
    if guest.kind != "lxc" or guest.template:
        return False
    return guest.running or any((guest.config or {}).get(key) == "1" for key in _AT_BOOT)


def _of(guest: Guest, entry: Mapping[str, Any] | None) -> Iterator[Promise]:
    mark = guest.mark
    if mark is not None:
        for card in mark.gpus:
            yield Promise(card, guest.ctid, mark.profile or guest.name, mark.share, guest.running, MARK)
        return
    values = (*(guest.config or {}).values(), *guest.raw)
    cards = sorted({int(number) for value in values for number in _NODE.findall(value)})
    share = _share(guest, entry) if cards and entry is not None else None
    for card in cards:
        yield Promise(card, guest.ctid, guest.name, share or 0.0, guest.running, UNKNOWN if share is None else ENTRY)


def _share(guest: Guest, entry: Mapping[str, Any]) -> float | None:
    """What a container's entry states; None when it states nothing that can be read."""
    try:
        found = from_entry(entry, guest.name)
    except BuilderError:
        return None
    return found[0].share if found is not None else None


def _cards(indices: Sequence[int]) -> str:
    return f"card{'s' if len(indices) > 1 else ''} {', '.join(map(str, indices))}"
