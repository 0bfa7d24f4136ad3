"""Waits for a command as pid 1 of its pid namespace and holds it to its limits."""

from __future__ import annotations

import os
import signal
import socket
import time

from builder.sandbox.spec import Limits

_TICK = 0.1  # seconds between two looks at memory, time and the parent
_MIB = 1 << 20


def supervise(command: int, limits: Limits, control: socket.socket) -> dict[str, int | str]:
    """Reap until the child `command` ends, and kill all when it breaks a limit.

    Returns {"exit": status}, {"signal": number} or {"limit": "memory" | "time", "used": MiB or seconds}.
    SIGCHLD must be blocked.
    """
    started = time.monotonic()
    while True:
        signal.sigtimedwait({signal.SIGCHLD}, _TICK)
        status = _reap(command)
        if status is not None:
            return {"exit": status} if status >= 0 else {"signal": -status}
        spent = int(time.monotonic() - started)
        if limits.seconds and spent >= limits.seconds:
            return {"limit": "time", "used": spent}
        if limits.memory_mib and memory(limits.memory_mib * _MIB) > limits.memory_mib * _MIB:
            return {"limit": "memory", "used": memory(0) // _MIB}
        if _gone(control):
            os._exit(1)


def memory(enough: int) -> int:
    """Bytes held by all processes in /proc but this one, and by files in /tmp, /run and /dev/shm.

    Counts memory that the kernel cannot drop (not mapped files). Memory that processes share after a fork is counted
    once when the plain sum passes `enough`: that count is exact, and slow.
    """
    pids = [name for name in os.listdir("/proc") if name.isdecimal() and int(name) != os.getpid()]
    files = sum(
        (stat.f_blocks - stat.f_bfree) * stat.f_frsize for stat in map(os.statvfs, ("/tmp", "/run", "/dev/shm"))
    )
    plain = files + sum(_fields(f"/proc/{pid}/status", ("RssAnon", "RssShmem")) for pid in pids)
    if plain <= enough:
        return plain
    return files + sum(_fields(f"/proc/{pid}/smaps_rollup", ("Pss_Anon", "Pss_Shmem")) for pid in pids)


def _fields(path: str, names: tuple[str, ...]) -> int:
    try:
        with open(path) as lines:
            return sum(int(line.split()[1]) * 1024 for line in lines if line.partition(":")[0] in names)
    except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
        return 0


def _reap(command: int) -> int | None:
    """Collect what has ended; the exit status of `command` (negative: killed by that signal) once it has."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
        except ChildProcessError:
            return None
        if pid == 0:
            return None
        if os.WIFSTOPPED(status):
            if pid == command:
                os.kill(pid, signal.SIGCONT)  # nobody inside could wake it
        elif pid == command:
            return os.waitstatus_to_exitcode(status)


def _gone(control: socket.socket) -> bool:
    try:
        return control.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
