"""Long work in a process of its own, as PVE::RESTEnvironment::fork_worker does it for `pct`.

The command that a person started only passes on what the worker says. SIGINT, SIGTERM and SIGQUIT, and an output that
nobody reads any more, are handed to the worker, which cleans up. SIGHUP and SIGKILL end the command alone; then the
worker dies of SIGPIPE at its next line, and nothing is cleaned up.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .state import ROOT, RefusedError

TASKS = ROOT / "tasks"
"""A file for each task, named by its UPID with commas for colons: its output, and how it ended."""
_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)


class InterruptedTaskError(Exception):
    """The worker was told to stop."""


@dataclass(frozen=True)
class Task:
    upid: str
    pid: int
    started: int
    kind: str
    guest: str


def running() -> Iterator[Task]:
    """The tasks whose workers live."""
    for path in TASKS.glob("UPID,*"):
        upid = path.name.replace(",", ":")
        _, _, pid, start, started, kind, guest, *_ = upid.split(":")
        if _start_of(int(pid, 16)) == int(start, 16):
            yield Task(upid, int(pid, 16), int(started, 16), kind, guest)


def work(kind: str, ctid: int, function: Callable[[], None]) -> int:
    """Run `function` in a worker as the task `kind` of `ctid`; the status that `pct` ends with."""
    read, write = os.pipe()
    heard_of, tell = os.pipe()
    ready, go = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        os.close(go)
        os.read(ready, 1)
        os._exit(_worker(function, write, tell))
    os.close(write)
    os.close(tell)
    upid = f"UPID:vm:{pid:08X}:{_start_of(pid):08X}:{int(time.time()):08X}:{kind}:{ctid}:root@pam:"
    with (TASKS / upid.replace(":", ",")).open("wb", buffering=0) as log:
        os.write(go, b"!")
        for number in _NUMBERS:
            signal.signal(number, lambda number, _: os.kill(pid, signal.SIGTERM))
        heard = True
        while piece := os.read(read, 1 << 16):
            log.write(piece)
            if heard:
                heard = _pass_on(piece, pid)
        said = os.read(heard_of, 1 << 16)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        log.write(b"TASK ERROR: " + said + b"\n" if status else b"TASK OK\n")
    with suppress(BrokenPipeError):
        os.write(2, said + b"\n" if said else b"")
    return status if status >= 0 else 255


def _pass_on(piece: bytes, pid: int) -> bool:
    try:
        os.write(1, piece)
    except BrokenPipeError:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        return False
    return True


def _worker(function: Callable[[], None], write: int, tell: int) -> int:
    os.setsid()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    for number in _NUMBERS:
        signal.signal(number, _interrupted)
    for stream in (1, 2):
        os.dup2(write, stream)
    try:
        function()
    except (RefusedError, InterruptedTaskError) as error:
        os.write(tell, str(error).encode())
        return error.status if isinstance(error, RefusedError) else 255
    return 0


def _interrupted(number: int, _: object) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise InterruptedTaskError("interrupted by signal")


def command(argv: Sequence[str], stdin: Path | None = None, every: int = 0) -> None:
    """Run a command of a worker, and pass on what it says: all, or with `every` only how many lines so far.

    Raises RefusedError when it fails; whatever ends the worker ends it.
    """
    with open(stdin or os.devnull, "rb") as source:
        process = subprocess.Popen(
            argv, stdin=source, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
    assert process.stdout is not None
    try:
        for number, line in enumerate(process.stdout, 1):
            if not every:
                print(line, end="", flush=True)
            elif number % every == 0:
                print(f"{number} files", flush=True)
        if process.wait() != 0:
            raise RefusedError(f"command '{' '.join(argv)}' failed: exit code {process.returncode}")
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.read()  # until none of them is left
        process.wait()
        raise


def _start_of(pid: int) -> int:
    """When a process began (proc(5), field 22 of stat); 0 when there is none, or it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] == "Z" else int(fields[19])
