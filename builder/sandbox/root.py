"""Builds the root that a run sees and moves into it. Runs as pid 1 of the new namespaces."""

from __future__ import annotations

import errno
import os
import socket
import stat
import tempfile
from pathlib import Path

from builder.sandbox import linux
from builder.sandbox.spec import Bind, Spec

HOST_NAME = "builder"
STAGING = "/sys"
"""Where the new root is put together: a folder that every Linux has and in which no layer or bind can lie."""

_PRIVATE = ("proc", "sys", "dev", "run", "tmp")
_NODES = ("null", "zero", "full", "random", "urandom", "tty")
_LINKS = {
    "/dev/fd": "/proc/self/fd",
    "/dev/stdin": "/proc/self/fd/0",
    "/dev/stdout": "/proc/self/fd/1",
    "/dev/stderr": "/proc/self/fd/2",
    "/dev/ptmx": "pts/ptmx",
}
_HARDWARE = ("/sys/devices/system/cpu", "/sys/devices/system/node")
"""All that is shown of /sys: libnuma and thread pools ask for it."""
_KERNEL_SETTINGS = ("/proc/sys", "/proc/irq", "/proc/bus", "/proc/fs", "/proc/sysrq-trigger")
_ONLINE = ("/etc/resolv.conf", "/etc/hosts", "/etc/ssl/certs/ca-certificates.crt")
"""Files of the host that a run with network needs."""
_QUIET = linux.MS_NOSUID | linux.MS_NODEV


def enter(spec: Spec) -> None:
    """Make the root that `spec` asks for and pivot into it.

    Expects new mount, pid and uts namespaces. Raises OSError whose `filename` says what could not be done.
    """
    linux.make_private("/")
    online = [Bind(Path(path), path) for path in _ONLINE if spec.network and os.path.exists(path)]
    binds = [(bind, linux.clone_tree(bind.source, writable=bind.writable)) for bind in (*online, *spec.binds)]
    nodes = [(f"/dev/{name}", linux.clone_tree(f"/dev/{name}", writable=True)) for name in _NODES]
    if spec.interactive and os.isatty(0):
        nodes.append(("/dev/console", linux.clone_tree(os.ttyname(0), writable=True)))
    hardware = [(path, linux.clone_tree(path)) for path in _HARDWARE if os.path.isdir(path)]
    host = linux.clone_tree("/") if spec.host_root else None

    linux.mount("tmpfs", STAGING, "tmpfs", _QUIET, "mode=755")
    os.chdir(STAGING)
    os.mkdir("root")
    if host is not None:
        linux.attach(host, "root")
    else:
        _overlay(spec)
    for folder in _PRIVATE:
        if not os.path.lexists(f"root/{folder}"):
            os.mkdir(f"root/{folder}")
    linux.mount("proc", "root/proc", "proc", _QUIET | linux.MS_NOEXEC)  # refused once the host's is out of sight
    linux.pivot_into("root")

    for path in _KERNEL_SETTINGS:
        if os.path.exists(path):
            linux.attach(linux.clone_tree(path), path)
    _sys(hardware)
    _dev(nodes)
    linux.mount("tmpfs", "/run", "tmpfs", _QUIET, "mode=755")
    os.mkdir("/run/lock")
    os.chmod("/run/lock", 0o1777)
    linux.mount("tmpfs", "/tmp", "tmpfs", _QUIET, "mode=1777")
    kept = spec.host_root or (spec.upper is not None and not spec.network)
    for bind, tree in binds:
        linux.attach(tree, _mount_point(bind.target, stat.S_ISDIR(os.fstat(tree).st_mode), kept))
    if spec.upper is None and not spec.host_root:
        linux.set_readonly("/")
    socket.sethostname(HOST_NAME)
    linux.setdomainname("(none)")


def _overlay(spec: Spec) -> None:
    """Mount the layers at `root`, through links with short names: mount(2) takes 4095 bytes of options."""
    for folder in (*spec.layers, *filter(None, (spec.upper, spec.work))):
        if not folder.is_dir():
            raise FileNotFoundError(errno.ENOENT, "no such folder", f"use {folder} as a layer")
    os.mkdir("empty")
    names = [str(number) for number, _ in enumerate(spec.layers)]
    for name, layer in zip(names, spec.layers, strict=True):
        os.symlink(layer, name)
    if spec.upper is None:
        os.mkdir("upper")
        os.mkdir("work")
    else:
        work = tempfile.mkdtemp(prefix="overlay-", dir=spec.work)  # "volatile" leaves a mark that forbids a second use
        os.symlink(spec.upper, "upper")
        os.symlink(work, "work")
    lower = ":".join(reversed(names)) or "empty"
    options = f"userxattr,index=off,volatile,lowerdir={lower},upperdir=upper,workdir=work"
    linux.mount("overlay", "root", "overlay", linux.MS_NODEV | linux.MS_NOATIME, options)


def _sys(hardware: list[tuple[str, int]]) -> None:
    linux.mount("tmpfs", "/sys", "tmpfs", _QUIET | linux.MS_NOEXEC, "mode=755")
    for path, tree in hardware:
        os.makedirs(path)
        linux.attach(tree, path)
    linux.set_readonly("/sys")


def _dev(nodes: list[tuple[str, int]]) -> None:
    linux.mount("tmpfs", "/dev", "tmpfs", linux.MS_NOSUID, "mode=755")
    for path, tree in nodes:
        _touch(path)
        linux.attach(tree, path)
    os.mkdir("/dev/shm")
    os.mkdir("/dev/pts")
    linux.mount("tmpfs", "/dev/shm", "tmpfs", _QUIET, "mode=1777")
    linux.mount("devpts", "/dev/pts", "devpts", linux.MS_NOSUID | linux.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620")
    for path, target in _LINKS.items():
        os.symlink(target, path)


def _mount_point(target: str, is_folder: bool, kept: bool) -> str:
    """Make the place for a bind, but not in a root that is `kept`; its path without symbolic links."""
    target = os.path.realpath(target)
    if os.path.exists(target):
        return target
    if kept and not target.startswith(("/run/", "/tmp/", "/dev/")):
        reason = "no such place in the layers (use one below /run/builder)"
        raise FileNotFoundError(errno.ENOENT, reason, f"bind to {target}")
    os.makedirs(target if is_folder else os.path.dirname(target), exist_ok=True)
    if not is_folder:
        _touch(target)
    return target


def _touch(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644))
