"""The system calls that the sandbox needs and Python 3.10 lacks, by ctypes.

Every function raises OSError whose `filename` says what was tried. Man pages: unshare(2), mount(2), open_tree(2),
mount_setattr(2), move_mount(2), pivot_root(2), prctl(2). Needs Linux 5.12.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_NOATIME = 2, 4, 8, 1024
_MS_REC, _MS_PRIVATE = 16384, 1 << 18
_MNT_DETACH = 2

_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH = 1, 4
_MOUNT_ATTR_RDONLY = 1

_PR_SET_PDEATHSIG, _PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 23, 24, 38
_ADDR_NO_RANDOMIZE = 0x0040000

_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = 428, 429, 442
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

_libc = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags), "make new namespaces")


def mount(source: str, target: str, fstype: str, flags: int = 0, options: str = "") -> None:
    """mount(2); `options` are limited by the kernel to one page."""
    done = _libc.mount(os.fsencode(source), os.fsencode(target), fstype.encode(), ctypes.c_ulong(flags),
                       os.fsencode(options))  # fmt: skip
    _check(done, f"mount {fstype} on {target}")


def make_private(target: str) -> None:
    """Let no mount or unmount below `target` travel to or from another mount namespace."""
    flags = ctypes.c_ulong(_MS_REC | _MS_PRIVATE)
    _check(_libc.mount(None, os.fsencode(target), None, flags, None), f"make {target} private")


def clone_tree(source: str | Path, *, writable: bool = False) -> int:
    """A detached copy of the mounts at and below `source` (a bind mount with no place yet), as a descriptor."""
    what = f"bind {source}"
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_RECURSIVE
    tree = _check(_syscall(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(source), flags), what)
    if not writable:
        _set_readonly(tree, "", _AT_EMPTY_PATH | _AT_RECURSIVE, what)
    return tree


def attach(tree: int, target: str) -> None:
    """Give a tree from `clone_tree` its place, and close its descriptor."""
    try:
        done = _syscall(_SYS_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH)
        _check(done, f"bind to {target}")
    finally:
        os.close(tree)


def set_readonly(target: str) -> None:
    """Make the mount at `target` read-only, but not the mounts below it."""
    _set_readonly(_AT_FDCWD, target, 0, f"make {target} read-only")


def pivot_into(root: str) -> None:
    """Make the mount at `root` the root of this mount namespace and let go of the old one."""
    os.chdir(root)
    _check(_syscall(_SYS_PIVOT_ROOT[platform.machine()], b".", b"."), f"pivot into {root}")
    _check(_libc.umount2(b".", _MNT_DETACH), "leave the old root")
    os.chdir("/")


def setdomainname(name: str) -> None:
    _check(_libc.setdomainname(name.encode(), len(name)), "set the domain name")


def die_with_parent(signal: int) -> None:
    """Get `signal` when the thread that made this process ends."""
    _prctl(_PR_SET_PDEATHSIG, signal)


def no_new_privileges() -> None:
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def keep_capabilities(kept: frozenset[int]) -> None:
    """Take every capability but `kept` from what this process and its children can get by exec."""
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    for capability in range(last + 1):
        if capability not in kept and _libc.prctl(_PR_CAPBSET_READ, ctypes.c_ulong(capability), 0, 0, 0) == 1:
            _prctl(_PR_CAPBSET_DROP, capability)


def fix_addresses() -> None:
    """Give programs the same address layout at every run."""
    _check(_libc.personality(ctypes.c_ulong(_ADDR_NO_RANDOMIZE)), "turn off address randomisation")


def _set_readonly(directory: int, path: str, flags: int, what: str) -> None:
    attributes = struct.pack("=QQQQ", _MOUNT_ATTR_RDONLY, 0, 0, 0)
    done = _syscall(_SYS_MOUNT_SETATTR, directory, os.fsencode(path), flags, attributes, len(attributes))
    _check(done, what)


def _prctl(option: int, value: int) -> None:
    _check(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl {option}")


def _syscall(number: int, *arguments: int | bytes) -> int:
    words = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    done: int = _libc.syscall(ctypes.c_long(number), *words)
    return done


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result
