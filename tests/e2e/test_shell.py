"""`builder shell`: the command's own status, and a terminal that the command shares with nobody."""

from __future__ import annotations

import os
import pty
import select
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import User
from project import Project, project

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120), pytest.mark.usefixtures("no_leftovers")]

TYPE = "import fcntl, termios; [fcntl.ioctl(0, termios.TIOCSTI, bytes([letter])) for letter in b'id\\n']"
"""What a program does that wants a command run outside."""


@pytest.fixture
def here(user: User, tiny: Callable[[User], Path]) -> Project:
    return project(user, Path(tempfile.mkdtemp(dir=user.home)), "tiny", store=tiny(user))


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 137)])
def test_the_status_is_the_commands_own(here: Project, script: str, status: int) -> None:
    done = here.builder("shell", "recipes/tiny", "--", "/bin/sh", "-c", script)
    assert done.returncode == status
    assert done.stdout == b""


def test_input_and_output_are_the_callers(here: Project) -> None:
    done = here.user.run(here.argv("shell", "recipes/tiny", "--", "/bin/cat"), stdin=b"typed\n")
    assert (done.returncode, done.stdout) == (0, b"typed\n")


def test_what_cannot_be_started_is_an_error(here: Project) -> None:
    done = here.builder("shell", "recipes/tiny", "--", "/nowhere")
    assert done.returncode == 1
    assert b"command not found in the layers" in done.stderr


def test_the_terminal_inside_is_another_and_the_callers_is_as_it_was(here: Project) -> None:
    ours, theirs = pty.openpty()
    outside = os.ttyname(theirs)
    command = "stty size; /bin/true; tty; stty -echo"
    words = here.argv("shell", "recipes/tiny", "--", "/bin/sh", "-c", command)
    argv = ["setsid", "--ctty", "/bin/bash", "-c", 'stty rows 33 cols 77; "$@"; echo "rc=$?"; stty -a', "bash", *words]
    process = here.user.popen(argv, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = shown(ours)
    assert process.wait(60) == 0
    assert "33 77" in said
    assert outside not in said
    assert "rc=0" in said
    assert " echo " in said.rpartition("rc=0")[2]
    os.close(ours)


def test_nothing_can_be_typed_into_the_callers_terminal(here: Project) -> None:
    ours, theirs = pty.openpty()
    words = here.argv("shell", "recipes/tiny", "--", "/usr/bin/python3", "-c", TYPE)
    argv = ["setsid", "--ctty", "/bin/bash", "-c", '"$@"; read -t 1 -r line; echo "typed=[$line]"', "bash", *words]
    process = here.user.popen(argv, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    assert "typed=[]" in shown(ours)
    process.wait(60)
    os.close(ours)


def shown(terminal: int) -> str:
    """All that is shown until nobody has the terminal open any more."""
    said = b""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                said += os.read(terminal, 4096)
            except OSError:
                break
    return said.decode()
