"""Who may take how much of which card."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from builder.deploy.gpu import LIMIT, Card, Promise, choose, neighbours, promises, start_order
from builder.deploy.gpu.budget import UNKNOWN
from builder.deploy.model import Container, Guest
from builder.errors import BuilderError, UsageError

from .hosts import card, host, profile, server

AWQ = Promise(0, 950, "awq", 0.80, True, "its mark")
EMBED = Promise(0, 951, "embed", 0.10, True, "its mark")
ENTRY = {
    "name": "awq",
    "gpu_assignment": "0",
    "vllm_model": "org/model-awq",
    "vllm_served_model_name": "m",
    "vllm_gpu_memory_utilization": 0.85,
    "vllm_args": ["--max-model-len", "4096", "--gpu-memory-utilization", "0.85"],
}


def asks(*gpus: int) -> Container:
    return Container(921, "fp8", gpus=gpus)


ANY = Container(921, "fp8")


def test_a_profile_takes_the_card_with_most_memory_that_is_not_promised() -> None:
    assert choose(profile(), ANY, host(), [AWQ, EMBED]) == (1,)
    assert choose(profile(share=0.1), ANY, host(), [AWQ, EMBED]) == (1,)
    assert choose(profile(share=0.1), ANY, host(), []) == (0,)


def test_a_larger_card_is_emptier_than_a_smaller_one_with_the_same_share_free() -> None:
    assert choose(profile(share=0.1), ANY, host(card(0), card(1, memory=32607)), []) == (1,)


def test_a_profile_for_no_card_gets_none() -> None:
    assert choose(profile(gpus=0), ANY, host(), []) == ()


def test_a_card_that_the_container_names_is_obeyed() -> None:
    assert choose(profile(share=0.02), asks(0), host(), [AWQ, EMBED]) == (0,)


def test_of_more_cards_than_the_profile_needs_the_emptiest_is_taken() -> None:
    assert choose(profile(), asks(0, 1), host(), [AWQ]) == (1,)


def test_tensor_parallel_takes_as_many_cards_as_it_says() -> None:
    assert choose(profile(gpus=2), ANY, host(), []) == (0, 1)


def test_a_full_card_is_refused_with_who_is_promised_what_and_where_there_is_room() -> None:
    with pytest.raises(BuilderError) as caught:
        choose(profile(), asks(0), host(), [AWQ, EMBED])
    assert str(caught.value) == (
        "profile fp8 for container 921: card 0: 0.80 awq (950, its mark), 0.10 embed (951, its mark); "
        "0.90 more for fp8 is 1.80, over 0.92; free card 1 holds 0.92"
    )


def test_when_no_card_has_room_each_is_told() -> None:
    other = Promise(1, 922, "trial", 0.5, False, "its entry")
    with pytest.raises(BuilderError) as caught:
        choose(profile(), ANY, host(), [AWQ, other])
    assert str(caught.value) == (
        "profile fp8 for container 921: card 0: 0.80 awq (950, its mark); 0.90 more for fp8 is 1.70, over 0.92; "
        "card 1: 0.50 trial (922, its entry, starts at boot); 0.90 more for fp8 is 1.40, over 0.92; "
        "stop one of these, or lower a share"
    )


def test_tensor_parallel_on_one_full_card_says_so() -> None:
    with pytest.raises(
        BuilderError, match=r"card 1: nothing; 0\.90 more for fp8 fits; it wants 2 cards with that much"
    ):
        choose(profile(gpus=2), ANY, host(), [AWQ])


def test_fewer_cards_than_the_profile_needs_are_a_wrong_use() -> None:
    with pytest.raises(UsageError, match="wants 2 of the host's cards and is given card 1"):
        choose(profile(gpus=2), asks(1), host(), [])
    with pytest.raises(UsageError, match="is given none"):
        choose(profile(), asks(), host(), [])


def test_cards_that_are_not_there_are_named() -> None:
    with pytest.raises(BuilderError, match="the host has no card 4; it has cards 0, 1"):
        choose(profile(), asks(4), host(), [])
    with pytest.raises(BuilderError, match="wants 3 cards, and the host has 2"):
        choose(profile(gpus=3), ANY, host(), [])
    with pytest.raises(BuilderError, match="wants a card, and the host has none"):
        choose(profile(), ANY, replace(host(), cards=()), [])


def test_what_an_unknown_container_uses_now_counts_as_its_promise_and_is_said() -> None:
    foreign = Promise(0, 903, "old", 0.0, True, UNKNOWN)
    gpus = host(card(0, used=5000), card(1))
    assert choose(profile(share=0.6), asks(0), gpus, [foreign]) == (0,)
    with pytest.raises(BuilderError, match=r"card 0: 0\.31 old \(903\), as nothing states a share: what nvidia-smi"):
        choose(profile(), asks(0), gpus, [foreign])


def test_an_unknown_container_whose_use_nobody_sees_counts_as_the_whole_card() -> None:
    foreign = Promise(0, 903, "old", 0.0, True, UNKNOWN)
    with pytest.raises(BuilderError, match="nvidia-smi does not answer"):
        choose(profile(share=0.1), asks(0), host(card(0, memory=0), card(1)), [foreign])


def test_a_known_server_may_use_a_little_more_than_its_share() -> None:
    gpus = host(card(0, used=13600), card(1))
    assert choose(profile(share=0.1), asks(0), gpus, [AWQ]) == (0,)


def test_what_is_used_outside_the_containers_counts_too() -> None:
    with pytest.raises(BuilderError, match=r"0\.50 outside the containers \(nvidia-smi\)"):
        choose(profile(), asks(0), host(card(0, used=8000), card(1)), [])


def test_a_model_that_is_larger_than_its_share_is_refused() -> None:
    with pytest.raises(BuilderError, match=r"files are 15400 MiB a card, and 0\.90 of card 0 is 14680 MiB"):
        choose(profile(), asks(0), host(), [], weights_mib=15400)
    assert choose(profile(gpus=2), ANY, host(), [], weights_mib=15400) == (0, 1)


class TestPromises:
    """What the host's guests may take."""

    def test_the_builders_own_are_known_by_their_marks(self) -> None:
        assert promises([server(951, "embed", (0,), 0.1), server(950, "awq", (0,), 0.8)], {}) == (AWQ, EMBED)

    def test_a_stopped_one_counts_only_when_it_starts_at_boot(self) -> None:
        assert promises([server(950, "awq", (0,), 0.8, running=False)], {}) == ()
        (found,) = promises([server(950, "awq", (0,), 0.8, running=False, onboot=True)], {})
        assert not found.running

    def test_a_foreign_container_with_a_cards_node_has_the_share_of_its_entry(self) -> None:
        guest = Guest(950, "awq", running=True, config={"dev0": "/dev/nvidia0,mode=0666", "dev1": "/dev/nvidiactl"})
        assert promises([guest], {950: ENTRY}) == (Promise(0, 950, "awq", 0.85, True, "its entry"),)

    def test_raw_lines_are_seen_as_device_entries_are(self) -> None:
        line = "lxc.mount.entry: /dev/nvidia1 dev/nvidia1 none bind,optional,create=file"
        guest = Guest(903, "old", running=True, config={}, raw=(line, line.replace("nvidia1", "nvidia-uvm")))
        assert promises([guest], {}) == (Promise(1, 903, "old", 0.0, True, UNKNOWN),)

    def test_an_entry_that_states_no_server_is_unknown(self) -> None:
        guest = Guest(903, "old", running=True, config={"dev0": "path=/dev/nvidia0"})
        (found,) = promises([guest], {903: {"name": "old", "gpu_assignment": "0"}})
        assert found.source == UNKNOWN

    def test_templates_virtual_machines_and_containers_without_a_card_promise_nothing(self) -> None:
        dev = {"dev0": "/dev/nvidia0"}
        template = Guest(920, "t", running=False, template=True, config={**dev, "onboot": "1"})
        machine = Guest(100, "vm", kind="qemu", running=True, config=dev)
        assert promises([template, machine, Guest(101, "plain", running=True, config={"dev0": "/dev/kvm"})], {}) == ()


def test_servers_on_one_card_start_with_the_largest_share() -> None:
    assert start_order([EMBED, AWQ, Promise(1, 921, "fp8", 0.9, True, "its mark")]) == (921, 950, 951)
    assert neighbours((0,), [EMBED, AWQ]) == (950, 951)
    assert neighbours((1,), [EMBED, AWQ]) == ()


SHARES = st.floats(0.01, 1.0).map(lambda share: round(share, 2))
CARDS = st.lists(
    st.builds(card, st.just(0), memory=st.sampled_from([8188, 16311, 81559]), used=st.just(0)), min_size=1, max_size=4
).map(lambda cards: [Card(index, one.name, one.bus, one.memory_mib, 0, "12.0") for index, one in enumerate(cards)])


@given(cards=CARDS, wishes=st.lists(st.tuples(SHARES, st.integers(1, 3)), max_size=12))
def test_one_after_the_other_never_goes_over_the_limit_and_is_the_same_each_time(
    cards: list[Card], wishes: list[tuple[float, int]]
) -> None:
    made: list[Promise] = []
    for ctid, (share, count) in enumerate(wishes, start=900):
        wish = profile(f"p{ctid}", share=share, gpus=count)
        try:
            chosen = choose(wish, Container(ctid, "c"), host(*cards), made)
        except BuilderError:
            free = [one.index for one in cards if _sum(made, one.index) + share <= LIMIT + 1e-9]
            assert len(free) < count, "refused though there was room"
            continue
        assert chosen == choose(wish, Container(ctid, "c"), host(*reversed(cards)), list(reversed(made)))
        assert len(set(chosen)) == count
        made += [Promise(index, ctid, wish.name, share, True, "its mark") for index in chosen]
        assert all(_sum(made, one.index) <= LIMIT + 1e-6 for one in cards)


@given(cards=CARDS, share=SHARES, index=st.integers(0, 3))
def test_a_named_card_is_the_one_or_refused(cards: list[Card], share: float, index: int) -> None:
    assume(index < len(cards))
    try:
        assert choose(profile(share=share), asks(index), host(*cards), []) == (index,)
    except BuilderError:
        assert share > LIMIT


def _sum(made: list[Promise], index: int) -> float:
    return sum(promise.share for promise in made if promise.card == index)
