"""What runs: LXC's own containers under the simulated ones, looked at, stopped and entered."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

from .state import ROOT, Config, RefusedError, check_lock, load, pairs

LXC = ROOT / "lxc"
FIRST_ID, IDS = 100_000, 65_536
"""The host's ids of unprivileged containers."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def runs(ctid: int) -> bool:
    return "RUNNING" in lxc("info", ctid, "--state", "--no-humanize").stdout


def owner(config: Config) -> int:
    """The host's id of the container's root."""
    return FIRST_ID if config.keys.get("unprivileged") == "1" else 0


def check_devices(config: Config, status: int) -> None:
    """Refuse a node that is not there, as `set` and `start` both do for all of `dev[n]`."""
    for device in config.devices():
        path = Path(device["path"])
        if not path.exists():
            raise RefusedError(f"Device {path} does not exist", status)
        if not stat.S_ISCHR(path.stat().st_mode) and not stat.S_ISBLK(path.stat().st_mode):
            raise RefusedError(f"{path} is not a device")


def check_bridge(config: Config, status: int) -> None:
    bridge = pairs(config.keys.get("net0", "")).get("bridge")
    if bridge is not None and not Path(f"/sys/class/net/{bridge}/bridge").exists():
        raise RefusedError(f"bridge '{bridge}' does not exist", status)


def stop(ctid: int, *options: str) -> int:
    """Raises RefusedError where it does not run."""
    check_lock(load(ctid))
    if not runs(ctid):
        raise RefusedError(f"CT {ctid} not running")
    return lxc("stop", ctid, *options).returncode


def execute(ctid: int, argv: Sequence[str], keep_env: bool) -> int:
    """Become a command in the container."""
    load(ctid)
    if not runs(ctid):
        raise RefusedError(f"container '{ctid}' not running!")
    env = [] if keep_env else ["--clear-env", f"--set-var=PATH={_PATH}", "--set-var=TERM=linux"]
    os.execvp("lxc-attach", ["lxc-attach", "-P", str(LXC), "-n", str(ctid), *env, "--", *argv])


def push(ctid: int, source: Path, target: str, options: dict[str, str]) -> int:
    """Write a file in the container; what goes wrong is said, and the status is 0 all the same."""
    load(ctid)
    if not runs(ctid):
        raise RefusedError("can only push files to a running CT")
    if not source.exists():
        print(f"failed to open {source} for reading")
        return 0
    who = {kind: options.get(kind, "root") for kind in ("user", "group")}
    for kind, table in ("user", "passwd"), ("group", "group"):
        if not who[kind].isdecimal() and _attached(ctid, "getent", table, who[kind]).returncode != 0:
            print(f"failed to get {'uid' if kind == 'user' else 'gid'} for: {who[kind]}")
            return 0
    content = b"" if source.is_dir() else source.read_bytes()
    if _attached(ctid, "sh", "-c", 'cd / && cat > "$1"', "sh", target, stdin=content).returncode != 0:
        print(f"failed to create file: {target}: No such file or directory")
        return 0
    _attached(ctid, "chown", f"{who['user']}:{who['group']}", target)
    _attached(ctid, "chmod", options.get("perms", "0644"), target)
    return 0


def lxc(command: str, ctid: int, *options: str) -> subprocess.CompletedProcess[str]:
    """One of LXC's programs. The output of `lxc-start` is no pipe: its monitor would hold that open."""
    argv = [f"lxc-{command}", "-P", str(LXC), "-n", str(ctid), *options]
    pipe = subprocess.DEVNULL if command == "start" else subprocess.PIPE
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)
    return subprocess.CompletedProcess(argv, done.returncode, done.stdout or "", done.stderr or "")


def _attached(ctid: int, *argv: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    attach = ["lxc-attach", "-P", str(LXC), "-n", str(ctid), "--clear-env", "--", *argv]
    return subprocess.run(attach, input=stdin, capture_output=True)
