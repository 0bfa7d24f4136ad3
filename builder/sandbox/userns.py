"""Turns an ordinary user's process into uid 0 of a user namespace of its own."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

from builder.errors import BuilderError
from builder.sandbox import linux

IDS = 65535
"""Subordinate ids that are needed: 1 to 65535 of a template."""

_SYSCTLS = (
    ("kernel.unprivileged_userns_clone", "0", "sudo sysctl -w kernel.unprivileged_userns_clone=1"),
    ("user.max_user_namespaces", "0", "sudo sysctl -w user.max_user_namespaces=65536"),
    (
        "kernel.apparmor_restrict_unprivileged_userns",
        "1",
        "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
    ),
)
"""Settings that forbid user namespaces: name, the forbidding value, the command that mends it."""


def become_root() -> None:
    """Let this process go on as uid 0 of a new user namespace, with all capabilities there.

    uid and gid 0 are the caller's own, 1 to 65535 its subordinate ids (subuid(5)), mapped by newuidmap(1). Does
    nothing for a process that is uid 0 already. Must be called before the process starts a thread (unshare(2)):
    RuntimeError otherwise. Raises BuilderError with the command that mends what is missing.
    """
    if os.geteuid() == 0:
        return
    if len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError("become_root() after a thread was started")
    uids, gids = subordinate(Path("/etc/subuid")), subordinate(Path("/etc/subgid"))
    tools = newidmap("newuidmap"), newidmap("newgidmap")
    pid = str(os.getpid())
    commands = (
        [tools[0], pid, "0", str(os.geteuid()), "1", *_extents(uids)],
        [tools[1], pid, "0", str(os.getegid()), "1", *_extents(gids)],
    )
    try:
        _unshare_with(lambda: _write_maps(commands))
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    except OSError as error:
        raise BuilderError("user namespaces are not allowed", hint=forbidden()) from error


def forbidden(settings: Path = Path("/proc/sys")) -> str:
    """The command that allows user namespaces on this machine, by the one of `settings` that forbids them."""
    for name, value, mend in _SYSCTLS:
        path = settings / name.replace(".", "/")
        if path.exists() and path.read_text().strip() == value:
            return f"run: {mend}"
    return "a container or security module forbids them: build as root, or outside of it"


def newidmap(name: str) -> str:
    """The path of newuidmap or newgidmap. Raises BuilderError."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/bin:/bin")
    if path is None:
        raise BuilderError("command not found", where=name, hint="run: sudo apt install uidmap")
    return path


def subordinate(table: Path, uid: int | None = None) -> list[tuple[int, int]]:
    """The (first id, count) ranges in `table` (subuid(5)) of user `uid`, the caller when None, that make `IDS` ids.

    Lines count by login name and by number. Raises BuilderError when they are fewer.
    """
    uid = os.geteuid() if uid is None else uid
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = str(uid)
    entries = _entries(table)
    ranges, missing = [], IDS
    for owner, first, length in entries:
        if owner in (name, str(uid)) and length and missing:
            ranges.append((first, min(length, missing)))
            missing -= ranges[-1][1]
    if missing:
        option = "--add-subuids" if table.name == "subuid" else "--add-subgids"
        free = max([100000, *(first + length for _, first, length in entries)])
        raise BuilderError(
            f"{name} has {IDS - missing} subordinate ids, {IDS} are needed",
            where=table,
            hint=f"run: sudo usermod {option} {free}-{free + IDS} {name}",
        )
    return ranges


def _entries(table: Path) -> list[tuple[str, int, int]]:
    """Owner, first id and count of each well-formed line; the tools skip the others too."""
    try:
        lines = table.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    found = (re.fullmatch(r"([^:]+):([0-9]{1,10}):([0-9]{1,10})", line.strip()) for line in lines)
    return [(match[1], int(match[2]), int(match[3])) for match in found if match]


def _extents(ranges: list[tuple[int, int]]) -> list[str]:
    words, inside = [], 1
    for first, count in ranges:
        words += [str(inside), str(first), str(count)]
        inside += count
    return words


def _unshare_with(from_outside: Callable[[], str]) -> None:
    """Enter a new user namespace, then have `from_outside` called by a child that stayed in the old one."""
    ready, go = os.pipe()
    answer, say = os.pipe()
    helper = os.fork()
    if helper == 0:
        os.close(go)
        said = from_outside() if os.read(ready, 1) else "not allowed"
        os.write(say, said.encode()[:4096])
        os._exit(0)
    os.close(ready)
    os.close(say)
    try:
        linux.unshare(linux.CLONE_NEWUSER)
        os.write(go, b"1")
    finally:
        os.close(go)
        with os.fdopen(answer, "rb") as answers:
            failure = answers.read().decode(errors="replace")
        os.waitpid(helper, 0)
    if failure:
        raise BuilderError(failure, hint="run `builder doctor`")


def _write_maps(commands: tuple[list[str], ...]) -> str:
    """Run newuidmap and newgidmap; what they complain of, '' when all is well."""
    for command in commands:
        done = subprocess.run(command, capture_output=True, check=False, text=True)
        if done.returncode != 0:
            return done.stderr.strip() or f"{command[0]}: exit {done.returncode}"
    return ""
