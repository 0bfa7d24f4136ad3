"""What Proxmox's own words mean for somebody who deploys, and the way out."""

from __future__ import annotations

import re

from builder.command import tail
from builder.deploy.shell import Done
from builder.errors import BuilderError

_NOISE = re.compile(
    r"^(?:400 (?:Parameter verification failed\.|unable to parse option)|pct \w+ <vmid>.*|setlogsock\(\).*)$",
    re.MULTILINE,
)

_HINTS = (
    (r"CT is locked \((?:disk|create)\)", "another job works on it: wait for it, or `builder rollback` after a crash"),
    (r"CT is locked \((\w+)\)", "wait until its {0} is over; after a crash `pct unlock {ctid}` on the host"),
    (r"detected modified configuration", "somebody else changed it just now: try again"),
    (r"can't lock file .* got timeout", "another job holds it: try again"),
    (r"Device (/dev/nvidia\S*) does not exist", "load the driver on the host: `nvidia-modprobe -c 0 -u`"),
    (r"Device (\S+) does not exist", "make it on the host, or leave it out"),
    (r"no quorum", "the cluster has too few nodes up: `pvecm status`"),
    (r"bridge '\S+' does not exist", "`ip -br link show type bridge` on the host lists them"),
    (r"storage '\S+' does not exist", "`pvesm status` on the host lists them"),
    (r"already exists on node", "take another --ctid"),
    (r"Configuration file '\S+' does not exist", "it is not on this host, or gone"),
    (r"unsupported debian version", "update pve-container on the host: Debian 13.1 wants 5.3.1 (8) or 6.0.10 (9)"),
    (
        r"unable to (?:read|parse) version info|unable to detect OS",
        "the template is damaged, or not one of the builder",
    ),
    (r"No space left on device", "give a larger RootGiB, or make room on its storage"),
    (r"Cannot mknod|Cannot change ownership", "this template cannot be unprivileged"),
    (r"Linked clone feature for '\S+' is not available", "deploy with --full"),
    (r"unable to clone mountpoint '(\w+)'", "bind mounts block clones: `pct set {ctid} --delete {0}`"),
    (r"Template feature is not available", "this storage takes no templates: take another one"),
    (r"Full clones? .*running container|full clones on a running", "stop it first"),
    (r"protection mode enabled", "`pct set {ctid} --protection 0` on the host, if it may go"),
    (r"still in use by linked clones", "destroy its clones first"),
    (r"is bigger than bridge MTU", "take the bridge's MTU, or raise it"),
    (r"lxc\.hook\.pre-start", "a folder that it mounts may be missing on the host"),
    (r"startup for container '\d+' failed", "`pct start {ctid} --debug 1` on the host says more"),
)


def said(done: Done) -> str:
    """What a command said, without what says nothing."""
    words = done.err if done.err.strip() else done.out
    return tail(_NOISE.sub("", words.decode(errors="replace")).encode()) or "it said nothing"


def failure(done: Done, ctid: int) -> BuilderError:
    """The error for a command that failed on a container."""
    text = (done.err + done.out).decode(errors="replace")
    hint = None
    for pattern, way_out in _HINTS:
        found = re.search(pattern, text)
        if found:
            hint = way_out.format(*found.groups(), ctid=ctid)
            break
    command = " ".join(done.argv[:2])
    return BuilderError(f"`{command}`: {said(done)}", where=f"container {ctid}", hint=hint)
