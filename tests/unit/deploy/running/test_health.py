"""Waiting for a service: what it does is shown, a failure is told at once and by its cause."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.deploy import health
from builder.deploy.profile.model import Model, Profile
from builder.deploy.shell import AwayError, LateError, LostError
from builder.errors import BuilderError

from .simulated import Answer, SimulatedChannel, SimulatedHost, failed, recorded, server

CPU = Profile("cpu", "", Model("", None, "/opt/models/tiny-llama"), "tiny", "completion", 0, 0.0, {}, {})
BEFORE = {
    "unit": {"ActiveState": "inactive", "SubState": "dead", "InvocationID": "", "ConditionResult": "yes"},
    "log": [],
}


class Notes:
    """A progress that remembers what it showed."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    @contextmanager
    def task(self, name: str, total: int | None = None, unit: str = "B") -> Iterator[Notes]:
        yield self

    def note(self, text: str) -> None:
        self.notes.append(text)

    def advance(self, amount: int) -> None:
        pass

    def say(self, line: str) -> None:
        pass


def wait(
    states: list[Answer], asked: Answer | None = None, *, deadline: float = 600
) -> tuple[Any, Notes, SimulatedChannel]:
    channel = SimulatedChannel({"state": states, "ask": [asked or recorded("ask")]})
    host, notes = SimulatedHost([server(921, "fp8")], channel), Notes()
    answer = health.wait(host, 921, CPU, deadline=deadline, progress=notes, sleep=lambda seconds: None)
    return answer, notes, channel


def state(**unit: str) -> dict[str, Any]:
    return {"unit": {"InvocationID": "new", "NRestarts": "0", "Job": "", **unit}, "log": []}


def test_a_start_is_shown_step_by_step_until_it_has_answered() -> None:
    answer, notes, channel = wait([BEFORE, *recorded("start")])
    assert str(answer) == "tiny, completion of 8 tokens in 0.02 s"
    seen = list(dict.fromkeys(notes.notes))
    assert seen[:3] == ["starting", "importing vLLM", "starting the engine"]
    assert seen[-1] == "the first answer came back"
    assert channel.ran[1] == "921 systemctl restart --no-block vllm.service"


def test_an_earlier_run_that_still_answers_is_not_taken_for_the_new_one() -> None:
    old = state(ActiveState="active", InvocationID="old")
    ending = state(ActiveState="deactivating", InvocationID="old", Job="7")
    still = state(ActiveState="active", InvocationID="old", Job="7")
    new = state(ActiveState="active")
    _, _, channel = wait([old, still, ending, new])
    assert [line for line in channel.ran if "state" in line] == ["921 state 0", *["921 state 40"] * 3]


def test_a_container_that_was_just_started_is_given_time_for_its_systemd() -> None:
    _, _, channel = wait([{"unit": {}, "log": []}, {"unit": {}, "log": []}, BEFORE, state(ActiveState="active")])
    assert channel.ran[3] == "921 systemctl restart --no-block vllm.service"


def test_a_failure_is_told_at_once_by_its_cause_without_tracebacks() -> None:
    with pytest.raises(BuilderError) as caught:
        wait([BEFORE, recorded("start")[0], recorded("failed")])
    text = str(caught.value)
    assert text.startswith("container 921: vllm.service failed (exit-code, exit status 1); its log: ")
    assert "DefaultCPUAllocator: can't allocate memory: you tried to allocate 483183820800 bytes" in text
    assert text.endswith("vLLM ended before it answered")
    assert 'File "' not in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("now", "says"),
    [
        (
            state(ActiveState="failed", SubState="failed", Result="oom-kill", ExecMainStatus="9"),
            "failed (oom-kill, exit status 9)",
        ),
        (state(ActiveState="activating", SubState="start", NRestarts="2"), "ended and was begun again 2 times"),
        (state(ActiveState="inactive", InvocationID="", ConditionResult="no"), "/etc/vllm/serve.yaml is not there"),
        (state(ActiveState="inactive", SubState="dead", Result="success"), "ended (success)"),
    ],
)
def test_every_way_not_to_come_up_is_an_error(now: dict[str, Any], says: str) -> None:
    with pytest.raises(BuilderError, match=re.escape(says)):
        wait([BEFORE, now])


def test_a_service_that_never_answers_is_given_up_at_the_deadline_with_what_it_was_doing() -> None:
    with pytest.raises(BuilderError, match="no answer within 0 s, it was measuring memory; its log: "):
        wait([BEFORE, recorded("start")[5]], deadline=0)


@pytest.mark.parametrize("away", [LostError("dropped"), LateError("not done within 60 seconds"), AwayError("refused")])
def test_a_line_that_drops_is_waited_for_as_the_service_goes_on(away: AwayError) -> None:
    up = state(ActiveState="active")
    answer, _, channel = wait([away, BEFORE, away, state(ActiveState="activating"), away, away, up])
    assert answer.model == "tiny"
    assert channel.ran.count("921 systemctl restart --no-block vllm.service") == 1


def test_a_host_that_does_not_answer_at_the_deadline_is_no_failure_of_the_service() -> None:
    with pytest.raises(LostError, match="the line dropped"):
        wait([LostError("the line dropped")], deadline=0)


def test_a_container_that_hangs_on_a_host_that_answers_has_failed() -> None:
    with pytest.raises(
        BuilderError, match="container 921: hangs: not done within 60 seconds; see `pct enter`"
    ) as caught:
        wait([LateError("not done within 60 seconds")], deadline=0)
    assert not isinstance(caught.value, AwayError)


def test_another_model_than_the_profiles_is_an_error() -> None:
    with pytest.raises(BuilderError, match="other gave a completion; profile cpu is tiny, completion"):
        wait([BEFORE, state(ActiveState="active")], {**recorded("ask"), "model": "other"})


def test_an_empty_answer_is_none() -> None:
    with pytest.raises(BuilderError, match="an empty completion"):
        wait([BEFORE, state(ActiveState="active")], {**recorded("ask"), "amount": 0})


@pytest.mark.parametrize(
    ("said", "says"),
    [
        (failed("HTTP 500: EngineCore encountered an issue"), "HTTP 500"),
        ("no JSON", "cannot be read"),
        ("[1]", "cannot be read"),
        ('{"model": "tiny"}', "cannot be read"),
        ('{"model": "tiny", "kind": "completion", "amount": 1e999, "seconds": 1}', "cannot be read"),
    ],
)
def test_what_is_no_answer_is_told(said: Answer, says: str) -> None:
    host = SimulatedHost([server(921, "fp8")], SimulatedChannel({"ask": [said]}))
    with pytest.raises(BuilderError, match=says):
        health.ask(host, 921)


@given(st.lists(st.text(max_size=60), max_size=8))
def test_whatever_the_log_holds_the_message_is_one_harmless_line(lines: list[str]) -> None:
    gone = {**state(ActiveState="failed", SubState="failed", Result="exit-code"), "log": lines}
    with pytest.raises(BuilderError) as caught:
        wait([BEFORE, gone])
    assert str(caught.value).isprintable()
