"""Commands of Proxmox VE with their quirks: JSON answers, errors in its own words, tasks that somebody left running."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from builder.deploy.host import explain
from builder.deploy.shell import Done, Shell
from builder.errors import BuilderError

NODE = "/nodes/localhost"
_LOOKING = re.compile(r".*(?:proxy|shell|console)")
"""Tasks of somebody who only looks at a container."""


@dataclass(frozen=True)
class Task:
    """Work that Proxmox does now."""

    kind: str  # vzclone, vzcreate, vzdump ...
    guest: str  # the id that it works on; a clone's source
    upid: str


def get(shell: Shell, path: str, *options: str) -> Any:
    """What `pvesh get` answers. Raises BuilderError."""
    done = shell.ask("pvesh", "get", path, *options, "--output-format", "json").check()
    try:
        return json.loads(done.text)
    except ValueError as error:
        raise BuilderError("the answer is no JSON", where=f"pvesh get {path}") from error


def do(shell: Shell, ctid: int, *argv: str, timeout: float | None = 600, fine: str | None = None) -> Done:
    """Run what changes a container; it may fail with `fine` in its words. Raises BuilderError with the way out."""
    done = shell.do(*argv, timeout=timeout)
    if done.status != 0 and (fine is None or fine.encode() not in done.err + done.out):
        raise explain.failure(done, ctid)
    return done


def do_with_devices(
    shell: Shell, ctid: int, *argv: str, sleep: Callable[[float], None], fine: str | None = None
) -> None:
    """As `do`, again when it says that a device is not there which is: Proxmox's check may read a stale errno."""
    for attempt in range(3):
        done = shell.do(*argv, timeout=600)
        if done.status == 0 or (fine is not None and fine.encode() in done.err + done.out):
            return
        missing = re.search(r"Device (/dev/\S+) does not exist", done.err.decode(errors="replace"))
        if attempt == 2 or missing is None or shell.ask("test", "-e", missing[1]).status != 0:
            raise explain.failure(done, ctid)
        sleep(1)


def tasks(shell: Shell) -> tuple[Task, ...]:
    """All tasks that run on this node, but for consoles."""
    found = get(shell, f"{NODE}/tasks", "--source", "active", "--limit", "500")
    return tuple(
        Task(entry["type"], str(entry["id"]), entry["upid"])
        for entry in found
        if entry.get("status", "RUNNING") == "RUNNING" and not _LOOKING.fullmatch(entry["type"])
    )


def wait_until(
    none: Callable[[], Sequence[Task]],
    *,
    seconds: float,
    where: str,
    sleep: Callable[[float], None],
    say: Callable[[str], None],
) -> None:
    """Look until `none` finds no task any more; `say` gets each that is waited for.

    Raises BuilderError naming what still runs after `seconds`.
    """
    deadline, pause, told = time.monotonic() + seconds, 1.0, ""
    while running := none():
        first = running[0]
        if time.monotonic() > deadline:
            what = f"{first.kind} still works on it after {seconds / 60:.0f} minutes"
            raise BuilderError(what, where=where, hint=f"`pvenode task stop {first.upid}` on the host ends it")
        if first.upid != told:
            say(f"{where}: waits for {first.kind} of {first.guest}, at most {seconds / 60:.0f} minutes")
            told = first.upid
        sleep(pause)
        pause = min(pause * 1.5, 15)
