"""Whether profiles that share a card fit it together: vLLM takes its share of the card's whole memory at start."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from builder.check.model import Finding, Profile, Severity

LIMIT = 0.92
"""Of a card's memory: the rest is for the driver and each server's CUDA context."""
_SOURCE = "vllm/v1/worker/gpu_worker.py 0.10.2: ends at start when less than its share is free"
_EXACT = 1e-9


@dataclass(frozen=True)
class Share:
    """A part of a card's memory."""

    who: str
    card: int
    share: float  # 0 to 1


def overfull(shares: Sequence[Share]) -> Mapping[int, Sequence[Share]]:
    """The cards on which more than `LIMIT` is promised, with who has what."""
    by_card: dict[int, list[Share]] = defaultdict(list)
    for share in shares:
        by_card[share.card].append(share)
    return {card: them for card, them in sorted(by_card.items()) if sum(one.share for one in them) > LIMIT + _EXACT}


def place(profiles: Sequence[Profile], cards: int) -> tuple[Share, ...] | None:
    """One way to put all profiles on `cards` cards at the same time; None when there is none."""
    return _place(sorted(profiles, key=lambda profile: -profile.share * profile.gpus), [0.0] * cards)


def _place(profiles: Sequence[Profile], taken: list[float]) -> tuple[Share, ...] | None:
    if not profiles:
        return ()
    first, *rest = profiles
    for cards in _choices(first, taken):
        left = [used + first.share * (card in cards) for card, used in enumerate(taken)]
        if (placed := _place(rest, left)) is not None:
            return (*(Share(first.name, card, first.share) for card in cards), *placed)
    return None


def _choices(profile: Profile, taken: list[float]) -> Iterator[tuple[int, ...]]:
    """Sets of cards with room for the profile, the emptiest first; of sets that are equally full only one is tried."""
    room = [card for card, used in enumerate(taken) if used + profile.share <= LIMIT + _EXACT]
    seen = set()
    for cards in combinations(sorted(room, key=lambda card: taken[card]), profile.gpus):
        fullness = tuple(taken[card] for card in cards)
        if fullness not in seen:
            seen.add(fullness)
            yield cards


def alone(profile: Profile, devices: int | None) -> Iterator[Finding]:
    """What one profile asks of cards that are otherwise free."""
    subject = f"profile {profile.name}"
    if profile.gpus and profile.share > LIMIT + _EXACT:
        what = f"takes {profile.share:.2f} of the card, of which {LIMIT} may be promised"
        seen = f"gpu-memory-utilization = {profile.share}"
        yield Finding("card-share", Severity.ERROR, subject, what, seen, f"a share up to {LIMIT}", _SOURCE)
    if devices is not None and profile.gpus > devices:
        what = f"takes {profile.gpus} cards, and the target has {devices}"
        seen, mend = f"Gpus = {profile.gpus}, [Target] Devices = {devices}", "Gpus up to that number"
        yield Finding("card-count", Severity.ERROR, subject, what, seen, mend, "the recipe")


def together(profiles: Sequence[Profile], cards: int) -> Iterator[Finding]:
    """Whether all of them may run at the same time."""
    users = [profile for profile in profiles if profile.gpus]
    asked = ", ".join(f"{one.name} {one.gpus} x {one.share:.2f}" for one in users)
    subject = f"{len(users)} profiles on {cards} card{'s' * (cards != 1)}"
    placed = place(users, cards)
    if placed is None:
        what = f"do not fit: of each card {LIMIT} may be promised"
        mend = "lower their shares, or run fewer at a time"
        yield Finding("card-budget", Severity.ERROR, subject, what, asked, mend, _SOURCE)
    elif placed:
        seen = ", ".join(
            f"card {one.card}: {one.who} {one.share:.2f}" for one in sorted(placed, key=lambda one: one.card)
        )
        yield Finding("card-budget", Severity.NOTE, subject, "fit together", seen, "", _SOURCE)
