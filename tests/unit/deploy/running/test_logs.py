"""`builder logs`: the service's journal, harmless, and its end by Ctrl-C or a closed pipe."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from builder.commands import logs as command
from builder.deploy.logs import read
from builder.deploy.model import Guest
from builder.deploy.profile import secrets
from builder.errors import BuilderError, UsageError

from .simulated import RECORDED, Answer, SimulatedChannel, SimulatedHost, failed, server

JOURNAL = (RECORDED / "journal.jsonl").read_text(encoding="utf-8")


def run(
    *words: str, answer: Answer = JOURNAL, running: bool = True, more: Sequence[Guest] = ()
) -> tuple[Result, SimulatedChannel]:
    channel = SimulatedChannel({"journalctl": [answer]})
    host = SimulatedHost([server(921, "fp8", running=running), Guest(100, "db", running=True), *more], channel)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "open_host", lambda where: host)
        return CliRunner().invoke(command.logs, list(words), standalone_mode=False), channel


def test_lines_are_shown_with_their_time_and_without_colours() -> None:
    result, _ = run("921")
    lines = result.stdout.splitlines()
    assert len(lines) == JOURNAL.count("\n")
    assert all("\x1b" not in line for line in lines)
    assert lines[-1].startswith("2026-11-24 ")
    assert lines[-1].endswith(
        '(APIServer pid=1812) INFO:     198.18.102.10:53618 - "POST /v1/completions HTTP/1.1" 200 OK'
    )


@pytest.mark.parametrize("words", [("921",), ("921", "--json")])
def test_a_secret_that_this_machine_knows_is_not_shown(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUILDER_STATE", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "hf_sesame")
    secrets.keep_key(secrets.kept("simulated", "fp8"), "sesame-4711")
    said = {"MESSAGE": "api_key='sesame-4711' token=hf_sesame", "__REALTIME_TIMESTAMP": "1764000000000000"}
    result, _ = run(*words, answer=json.dumps(said) + "\n")
    assert "api_key='***' token=***" in result.stdout
    assert "sesame" not in result.stdout


def test_a_bad_mode_or_a_blank_token_keeps_nobody_from_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUILDER_STATE", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", " ")
    kept = secrets.kept("simulated", "fp8")
    secrets.keep_key(kept, "sesame-4711")
    kept.chmod(0o644)
    said = {"MESSAGE": "the key is sesame-4711", "__REALTIME_TIMESTAMP": "1764000000000000"}
    result, _ = run("921", answer=json.dumps(said) + "\n")
    assert result.stdout.endswith(" the key is ***\n")


def test_a_container_that_was_replaced_names_what_serves_now() -> None:
    result, channel = run("921", running=False, more=[server(930, "fp8")])
    assert isinstance(result.exception, UsageError)
    assert str(result.exception) == "container 921 (fp8): is stopped; 930 serves in its place: name that one"
    assert channel.inside() == []


def test_json_is_one_object_a_line_in_utc() -> None:
    result, _ = run("fp8", "--json", "-n", "6")
    first = json.loads(result.stdout.splitlines()[0])
    assert set(first) == {"time", "line"}
    assert first["time"].endswith("+00:00")


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ((), ["--lines=100"]),
        (("-f", "-n", "0"), ["--lines=0", "--follow"]),
        (("--since", "10 min ago"), ["--lines=all", "--since=10 min ago"]),
        (("--since=--root=/etc",), ["--lines=all", "--since=--root=/etc"]),
    ],
)
def test_options_reach_journalctl(words: tuple[str, ...], options: list[str]) -> None:
    _, channel = run("921", *words)
    (line,) = channel.inside()
    assert line.startswith("921 journalctl --unit=vllm.service ")
    assert line.endswith(" ".join(options))


def test_ctrl_c_ends_it_without_a_word() -> None:
    result, _ = run("921", "-f", answer=KeyboardInterrupt())
    assert (result.return_value, result.output) == (130, "")


def test_journalctls_own_words_are_the_error() -> None:
    result, _ = run("921", "--since", "bogus", answer=failed("Failed to parse timestamp: bogus"))
    assert str(result.exception).startswith("container 921: Failed to parse timestamp: bogus; give --since")


@pytest.mark.parametrize(("which", "running"), [("921", False), ("100", True), ("nobody", True)])
def test_without_a_running_deployment_it_is_wrong_use(which: str, running: bool) -> None:
    result, _ = run(which, running=running)
    assert isinstance(result.exception, BuilderError)
    assert result.exception.exit_code == 2


@given(
    st.text()
    | st.binary(max_size=80).map(lambda data: json.dumps({"MESSAGE": list(data), "__REALTIME_TIMESTAMP": "1"}))
)
def test_no_entry_does_harm(entry: str) -> None:
    for line in read(entry):
        assert line.text.isprintable()


@pytest.mark.parametrize("stamp", ["9" * 30, "-1e5", "", None])
def test_an_impossible_time_is_no_line(stamp: str | None) -> None:
    assert list(read(json.dumps({"MESSAGE": "x", "__REALTIME_TIMESTAMP": stamp}))) == []
