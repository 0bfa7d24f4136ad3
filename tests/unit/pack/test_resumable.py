"""A sum that goes on from a kept state is the one over all bytes."""

from __future__ import annotations

import hashlib
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.pack import resumable
from builder.pack.resumable import Sum

DATA = random.Random(0).randbytes(5000)


@pytest.fixture(autouse=True, scope="module")
def small_steps() -> object:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(resumable, "STEP", 192)
        yield


@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, 5000), max_size=8), size=st.integers(0, 5000), kept=st.integers(1, 30))
def test_however_the_bytes_come_and_from_wherever_it_goes_on(cuts: list[int], size: int, kept: int) -> None:
    whole = Sum()
    places = [0, *sorted(min(cut, size) for cut in cuts), size]
    for start, stop in pairwise(places):
        whole.update(DATA[start:stop])
    states = list(whole.states)
    resumed = Sum(states[:kept])
    resumed.update(memoryview(bytearray(DATA[resumed.size : size])))
    assert whole.hexdigest() == resumed.hexdigest() == hashlib.sha256(DATA[:size]).hexdigest()
    assert resumed.states == states
    assert len(states) == 1 + size // 192


def test_a_sum_of_many_gigabytes_counts_its_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The length in bits that ends a message has 64 bits, in two halves: a sum at 4 GiB is made up, not hashed."""
    monkeypatch.setattr(resumable, "STEP", 1 << 32)
    state = hashlib.sha256(b"any").digest()
    resumed = Sum([*Sum().states, state])
    resumed.update(b"end")
    block = b"end\x80".ljust(56, b"\0") + ((1 << 35) + 24).to_bytes(8, "big")
    by_hand = resumable._Resumed(state, 0)
    by_hand.update(block)
    assert resumed.hexdigest() == by_hand.state().hex()


def test_where_states_are_not_told_a_sum_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Sum()
    whole.update(DATA)
    monkeypatch.setattr(resumable, "IS_RESUMABLE", False)
    again = Sum(whole.states)
    assert again.size == 0
    again.update(DATA)
    assert again.hexdigest() == whole.hexdigest() == hashlib.sha256(DATA).hexdigest()
    assert again.states == whole.states[:1]
