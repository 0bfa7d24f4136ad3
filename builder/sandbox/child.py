"""The sandbox's side of a run, in a Python of its own: namespaces, then pid 1, then the command.

Started by `builder.sandbox.engine` as ``main()`` with two arguments: the descriptor of a socket, on which a pickled
`Spec` comes in (four bytes of length first) and one line of JSON goes out, and the pid of the parent.
"""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import resource
import signal
import socket
import sys
import termios
from collections.abc import Mapping
from typing import NoReturn

from builder.sandbox import linux, root
from builder.sandbox.spec import Spec
from builder.sandbox.supervise import supervise

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "TZ": "UTC",
    "DEBIAN_FRONTEND": "noninteractive",
}
"""What every command finds in its environment; `Spec.env` adds and replaces."""

LIMITS = {
    resource.RLIMIT_NOFILE: (1024, 4096),
    resource.RLIMIT_STACK: (8 << 20, resource.RLIM_INFINITY),
    resource.RLIMIT_CORE: (0, 0),
}
"""The kernel's own defaults (getrlimit(2)), without core files: no host is below them."""

_SYS_ADMIN = 21
CAPABILITIES = frozenset((0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 29, 31))
"""What a command may do (capabilities(7), linux/capability.h): the set of a Docker container without mknod, enough for
the scripts of packages: chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service, net_raw,
sys_chroot, audit_write, setfcap."""
MOUNTING = frozenset((_SYS_ADMIN,))
"""On top of them for a run over the host's root: mmdebstrap mounts. Nobody gets mknod, which no user namespace has."""


def main() -> NoReturn:
    os.umask(0o022)
    control = socket.socket(fileno=int(sys.argv[2]))
    control.set_inheritable(False)
    linux.die_with_parent(signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM})
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.getppid() != int(sys.argv[3]):
        os._exit(1)
    with control.makefile("rb") as wire:
        spec: Spec = pickle.loads(wire.read(int.from_bytes(wire.read(4), "big")))
    flags = linux.CLONE_NEWNS | linux.CLONE_NEWPID | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS | linux.CLONE_NEWCGROUP
    try:
        linux.unshare(flags if spec.network else flags | linux.CLONE_NEWNET)
        init = os.fork()
    except OSError as error:
        _fail(control, error)
    if init == 0:
        _init(spec, control)
    while signal.sigwait({signal.SIGCHLD, signal.SIGTERM}) == signal.SIGTERM:
        os.kill(init, signal.SIGKILL)
    os.waitpid(init, 0)  # pid 1 is reaped only when nothing is left in its pid namespace
    os._exit(0)


def _init(spec: Spec, control: socket.socket) -> NoReturn:
    try:
        linux.die_with_parent(signal.SIGKILL)
        root.enter(spec)
        command = os.fork()
        if command == 0:
            _command(spec, control)
        result = supervise(command, spec.limits, control)
    except OSError as error:
        _fail(control, error)
    _report(control, result)
    os._exit(0)


def _command(spec: Spec, control: socket.socket) -> NoReturn:
    try:
        os.setsid()
        if spec.interactive and os.isatty(0):
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        os.chdir(spec.cwd)
        os.umask(0o022)
        os.setgroups([])
        os.setresgid(0, 0, 0)
        for limit, values in LIMITS.items():
            resource.setrlimit(limit, values)
        linux.fix_addresses()
        linux.keep_capabilities(CAPABILITIES | MOUNTING if spec.host_root else CAPABILITIES)
        linux.no_new_privileges()
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        os.execvpe(spec.argv[0], spec.argv, {**ENVIRONMENT, **spec.env})
    except FileNotFoundError as error:
        missing = f"no such folder {spec.cwd}" if error.filename == spec.cwd else "command not found in the layers"
        _report(control, {"error": missing})
    except OSError as error:
        _fail(control, error)
    os._exit(127)


def _fail(control: socket.socket, error: OSError) -> NoReturn:
    what = f"cannot {error.filename}: {error.strerror}" if error.filename else str(error)
    _report(control, {"error": what})
    os._exit(1)


def _report(control: socket.socket, result: Mapping[str, int | str]) -> None:
    control.sendall(json.dumps(result).encode() + b"\n")
