"""The ssh channel through a real sshd on the loopback."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sshd import Sshd, private_sshd

from builder.deploy.channel import Ssh
from builder.deploy.shell import LostError
from builder.errors import BuilderError

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(os.geteuid() != 0, reason="sshd lets root in")]


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with private_sshd(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture(scope="module")
def channel(sshd: Sshd) -> Ssh:
    return sshd.channel()


@pytest.mark.parametrize("status", [0, 1, 7, 127, 254, 255])
def test_a_status_is_the_commands_own(channel: Ssh, status: int) -> None:
    done = channel.run(["sh", "-c", f"echo out; echo err >&2; exit {status}"])
    assert (done.status, done.out, done.err) == (status, b"out\n", b"err\n")


def test_a_signal_counts_as_in_a_shell(channel: Ssh) -> None:
    assert channel.run(["sh", "-c", "kill -9 $$"]).status == 137


def test_a_missing_program_is_a_status(channel: Ssh) -> None:
    done = channel.run(["no-such-program"])
    assert done.status == 127
    assert b"no-such-program" in done.err


def test_outputs_come_byte_for_byte(channel: Ssh) -> None:
    done = channel.run(["sh", "-c", r"printf '\000\377\n\n'; printf 'no newline' >&2"])
    assert (done.out, done.err) == (b"\x00\xff\n\n", b"no newline")


@pytest.mark.parametrize("word", ["a b", "it's", '"$HOME"', "*", "back\\slash", "two\nlines", "", "-n", "é", "$(id)"])
def test_words_arrive_as_they_are(channel: Ssh, word: str) -> None:
    assert channel.run(["printf", "%s", word]).out == word.encode()


def test_the_environment_is_the_same_everywhere(channel: Ssh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    names = [line.split("=")[0] for line in channel.run(["env"]).text.splitlines()]
    assert set(names) - {"PWD", "OLDPWD", "SHLVL", "_"} == {"PATH", "HOME", "LC_ALL"}


def test_a_file_is_streamed(channel: Ssh, tmp_path: Path) -> None:
    file = tmp_path / "big"
    file.write_bytes(os.urandom(1 << 20) * 32)
    assert channel.run(["wc", "-c"], stdin=file).text == str(32 << 20)


def test_output_comes_while_the_command_runs(channel: Ssh, tmp_path: Path) -> None:
    """The command goes on only when its first output was seen."""
    seen: list[bytes] = []

    def see(piece: bytes) -> None:
        seen.append(piece)
        (tmp_path / "seen").touch()

    script = 'echo one; until test -e "$0"; do sleep 0.02; done; echo two'
    done = channel.run(["sh", "-c", script, str(tmp_path / "seen")], output=see, timeout=60)
    assert done.out == b""
    assert b"".join(seen) == b"one\ntwo\n"


def test_a_secret_on_standard_input_is_in_no_command_line(channel: Ssh) -> None:
    secret = b"sesame-4711"
    done = channel.run(["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '; cat >/dev/null"], stdin=secret)
    assert done.status == 0
    assert b"tr" in done.out
    assert secret not in done.out


def test_commands_share_one_connection(sshd: Sshd) -> None:
    before = len(sshd.sessions())
    channel = sshd.channel()
    for _ in range(3):
        assert channel.run(["true"]).status == 0
    assert len(sshd.sessions()) == before + 1


def test_no_connection_is_said_with_a_way_out(sshd: Sshd) -> None:
    with pytest.raises(BuilderError, match=r"no connection: .*refused.*check the port") as caught:
        Ssh("127.0.0.1", port=1, program=sshd.program).run(["true"])
    assert not isinstance(caught.value, LostError)


def test_an_unknown_host_key_is_said_with_a_way_out(sshd: Sshd, tmp_path: Path) -> None:
    program = (*sshd.program, "-oUserKnownHostsFile=/dev/null", "-oStrictHostKeyChecking=yes")
    with pytest.raises(BuilderError, match=rf"to check its key: `ssh -p {sshd.port} root@127\.0\.0\.1`"):
        Ssh("127.0.0.1", port=sshd.port, program=program).run(["true"])


def test_a_refused_key_is_said_with_a_way_out(sshd: Sshd) -> None:
    program = (*sshd.program, "-oPubkeyAuthentication=no")
    with pytest.raises(BuilderError, match="let your key in: `ssh-copy-id"):
        Ssh("127.0.0.1", port=sshd.port, program=program).run(["true"])


def test_a_dropped_line_is_no_failure_of_the_command(sshd: Sshd, tmp_path: Path) -> None:
    channel, started = sshd.channel(), tmp_path / "started"
    before = set(sshd.sessions())

    def drop() -> None:
        _until(started.exists)
        for pid in set(sshd.sessions()) - before:
            os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=drop)
    killer.start()
    dropped = r"ssh -p \d+ root@127\.0\.0\.1: the line dropped while `sh -c .*; `builder deploy --resume`"
    with pytest.raises(LostError, match=dropped):
        channel.run(["sh", "-c", f"touch {started}; sleep 600"], timeout=120)
    killer.join()
    assert channel.run(["echo", "again"]).text == "again"


def test_a_command_that_takes_too_long_is_given_up(channel: Ssh) -> None:
    start = time.monotonic()
    with pytest.raises(BuilderError, match="not done within 1 seconds"):
        channel.run(["sleep", "600"], timeout=1)
    assert time.monotonic() - start < 120


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError("it did not happen")
        time.sleep(0.02)
