"""Which profiles fit the cards together."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from hypothesis import given
from hypothesis import strategies as st
from madetemplate import GOOD, MadeProfile

from builder.check import Severity, budget
from builder.check.budget import LIMIT, Share


def asking(name: str, share: float, gpus: int = 1) -> MadeProfile:
    return replace(GOOD, name=name, share=share, gpus=gpus)


def test_the_usual_three_fit_two_cards() -> None:
    (finding,) = budget.together([asking("awq", 0.8), asking("embed", 0.1), asking("fp8", 0.9)], 2)
    assert finding.severity is Severity.NOTE
    assert finding.evidence == "card 0: fp8 0.90, card 1: awq 0.80, card 1: embed 0.10"


def test_three_servers_that_take_nearly_all_do_not_fit_one_card() -> None:
    three = [asking(name, 0.9) for name in ("fp8", "awq", "embed")]
    (finding,) = budget.together(three, 1)
    assert finding.severity is Severity.ERROR
    assert finding.evidence == "fp8 1 x 0.90, awq 1 x 0.90, embed 1 x 0.90"
    (finding,) = budget.together(three, 2)
    assert finding.severity is Severity.ERROR
    assert budget.place(three, 3) is not None


def test_a_profile_of_two_cards_takes_its_share_of_both() -> None:
    assert budget.place([asking("tp2", 0.9, 2)], 1) is None
    assert budget.place([asking("tp2", 0.8, 2), asking("a", 0.1), asking("b", 0.1)], 2) is not None
    assert budget.place([asking("tp2", 0.8, 2), asking("a", 0.2)], 2) is None


def test_a_profile_alone() -> None:
    assert not list(budget.alone(asking("a", 0.92), 2))
    assert [finding.rule for finding in budget.alone(asking("a", 0.95), 2)] == ["card-share"]
    assert [finding.rule for finding in budget.alone(asking("a", 0.5, 4), 2)] == ["card-count"]
    assert not list(budget.alone(asking("cpu", 0.0, 0), 0))


def test_cards_that_are_overfull() -> None:
    shares = [Share("a", 0, 0.8), Share("b", 0, 0.12), Share("c", 1, 0.9), Share("d", 1, 0.1)]
    assert list(budget.overfull(shares)) == [1]


@given(
    st.lists(st.tuples(st.sampled_from([0.1, 0.3, 0.46, 0.5, 0.9]), st.integers(1, 2)), max_size=4), st.integers(1, 3)
)
def test_a_place_is_found_when_there_is_one_and_is_never_overfull(asked: list[tuple[float, int]], cards: int) -> None:
    profiles = [asking(str(number), share, gpus) for number, (share, gpus) in enumerate(asked)]
    placed = budget.place(profiles, cards)
    choices = [
        [chosen for chosen in product([0, 1], repeat=cards) if sum(chosen) == profile.gpus] for profile in profiles
    ]
    is_possible = any(
        all(
            sum(profile.share * chosen[card] for profile, chosen in zip(profiles, way, strict=True)) <= LIMIT + 1e-9
            for card in range(cards)
        )
        for way in product(*choices)
    )
    assert (placed is not None) is is_possible
    if placed is not None:
        assert not budget.overfull(placed)
        assert len(placed) == sum(profile.gpus for profile in profiles)
