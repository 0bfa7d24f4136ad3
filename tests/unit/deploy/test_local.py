"""Commands on this machine."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest

from builder.deploy import channel
from builder.deploy.channel import Local
from builder.errors import BuilderError


def test_a_status_is_the_commands_own() -> None:
    done = Local().run(["sh", "-c", "echo out; echo err >&2; exit 7"])
    assert (done.status, done.out, done.err) == (7, b"out\n", b"err\n")


def test_a_signal_counts_as_in_a_shell() -> None:
    assert Local().run(["sh", "-c", "kill -9 $$"]).status == 137


def test_a_missing_program_ends_as_in_a_shell() -> None:
    done = Local().run(["no-such-program"])
    assert (done.status, done.err) == (127, b"no-such-program: command not found\n")


def test_nothing_of_the_callers_environment_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "sesame")
    names = {line.split("=")[0] for line in Local().run(["env"]).text.splitlines()}
    assert names == {"PATH", "HOME", "LC_ALL"}


def test_standard_input_is_bytes_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\0file")
    assert Local().run(["cat"], stdin=b"\0bytes").out == b"\0bytes"
    assert Local().run(["cat"], stdin=tmp_path / "file").out == b"\0file"
    assert Local().run(["cat"]).out == b""


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BuilderError, match="gone: No such file"):
        Local().run(["cat"], stdin=tmp_path / "gone")


def test_more_than_a_pipe_holds_on_both_outputs() -> None:
    done = Local().run(["sh", "-c", "head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2"])
    assert (len(done.out), len(done.err)) == (1_000_000, 1_000_000)


def test_a_command_that_says_without_end_is_ended() -> None:
    with pytest.raises(BuilderError, match="yes: said more than 64 MiB"):
        Local().run(["yes"], timeout=60)


def test_output_is_handed_on_piece_by_piece(tmp_path: Path) -> None:
    pieces: list[bytes] = []
    script = 'echo one; until test -e "$0"; do sleep 0.01; done; echo two'

    def see(piece: bytes) -> None:
        pieces.append(piece)
        (tmp_path / "seen").touch()

    done = Local().run(["sh", "-c", script, str(tmp_path / "seen")], output=see, timeout=60)
    assert (pieces, done.out) == ([b"one\n", b"two\n"], b"")


def test_the_time_being_over_ends_all_that_was_started(tmp_path: Path) -> None:
    script = f"trap 'echo asked > {tmp_path}/asked; exit' TERM; (sleep 300; touch {tmp_path}/late) & wait"
    start = time.monotonic()
    with pytest.raises(BuilderError, match=r"sh -c .*: not done within 1\.5 seconds"):
        Local().run(["sh", "-c", script], timeout=1.5)
    assert time.monotonic() - start < 60
    assert (tmp_path / "asked").exists()


def test_an_interrupt_asks_the_command_to_end_and_waits_for_it(tmp_path: Path) -> None:
    script = f"trap 'sleep 0.3; touch {tmp_path}/cleaned; exit' TERM; touch {tmp_path}/ready; sleep 300 & wait"

    def interrupt() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        Local().run(["sh", "-c", script])
    assert (tmp_path / "cleaned").exists()


def test_what_a_disk_that_hangs_keeps_from_ending_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class SimulatedProcess:
        pid = 0

        def wait(self, seconds: float) -> int:
            raise subprocess.TimeoutExpired((), seconds)

    sent: list[int] = []
    monkeypatch.setattr(os, "killpg", lambda pid, number: sent.append(number))
    channel._end(SimulatedProcess())  # type: ignore[arg-type]
    assert sent == [signal.SIGTERM, signal.SIGKILL]


def test_folders_for_sockets_go_with_their_process_or_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("builder-ssh-left", "builder-ssh-new", "builder-ssh-held", "builder-other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0").touch()
        if name != "builder-ssh-new":
            os.utime(tmp_path / name, (0, 0))
    (tmp_path / "builder-ssh-link").symlink_to("builder-other")
    held = os.open(tmp_path / "builder-ssh-held", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    made = channel._own_folder()
    os.close(held)
    names = {"builder-ssh-new", "builder-ssh-held", "builder-other", "builder-ssh-link"}
    assert {path.name for path in tmp_path.iterdir()} == {Path(made.name).name, *names}
    made.cleanup()
    assert {path.name for path in tmp_path.iterdir()} == names


def test_a_folder_in_use_is_held_however_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    first = channel._own_folder()
    os.utime(first.name, (0, 0))
    second = channel._own_folder()
    assert {str(path) for path in tmp_path.iterdir()} == {first.name, second.name}


def test_the_terminals_signals_do_not_reach_the_command() -> None:
    assert Local().run(["sh", "-c", "ps -o sid= -p $$"]).text.strip() != str(os.getsid(0))
