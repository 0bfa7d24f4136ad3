"""Whether `pct create` takes the template, and what it makes of it boots and can be configured."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path

import zstandard

from builder.check.model import Finding, Severity, Subject
from builder.check.rules import unseen
from builder.check.tree import Tree
from builder.tree.archive import Header

_NAME = re.compile(r"[A-Za-z0-9_.-]+\.tar\.(gz|xz|zst|bz2)", re.IGNORECASE)
_LARGEST_ID = 65535  # of an unprivileged container
_MEMBERS = 200  # looked at in the packed file: `builder verify` compares them all
_WINDOW = 1 << 27
_SETUP = "PVE/LXC/Setup (pve-container 5.3.5, 6.1.10), run on both"
_UNTAR = "PVE/LXC/Create.pm: tar --exclude './dev/*' under lxc-usernsexec"


def accepts(subject: Subject) -> Iterator[Finding]:
    """Everything about Proxmox. Raises BuilderError when a file cannot be read."""
    yield from _file(subject)
    yield from _owners(subject.tree)
    yield from _start(subject.tree)
    yield from _distribution(subject.tree)


def _file(subject: Subject) -> Iterator[Finding]:
    path = subject.file
    if path is None:
        yield unseen("proxmox-file", "template", "name and members of the packed file", "the template is not packed")
        return
    if not _NAME.fullmatch(path.name):
        what = "Proxmox does not list a template of this name, or renames it at upload"
        mend = "letters, digits, dot, dash and underscore, ended by .tar.zst"
        yield Finding("proxmox-name", Severity.ERROR, path.name, what, path.name, mend, "PVE/Storage.pm, VZTMPL_EXT_RE")
    try:
        bad, size = _odd_member(path), path.stat().st_size
    except (tarfile.TarError, zstandard.ZstdError, OSError) as error:
        yield _damaged(path, str(error))
        return
    if bad:
        what = "a member's name does not begin with ./: what is in its dev/ would be unpacked too"
        yield Finding("proxmox-members", Severity.ERROR, path.name, what, bad, "names from ./", _UNTAR)
    if subject.size not in (None, size):
        yield _damaged(path, f"{size} bytes, and its manifest tells of {subject.size}")
    else:
        what, mend = "whether every byte of it is as it was packed", f"`builder verify {path.name}` reads them all"
        yield unseen("packed-file", path.name, what, f"only its first {_MEMBERS} members are read", mend)


def _damaged(path: Path, seen: str) -> Finding:
    what, mend = "the packed file is damaged or cut off", "build or bring it again"
    return Finding("packed-file", Severity.ERROR, path.name, what, seen, mend, "the manifest beside it")


def _odd_member(path: Path) -> str:
    """The first of the first members whose name is not as tar makes them of `.`; "" when there is none.

    Raises what tarfile, zstandard and the system do for a file that is none.
    """
    with path.open("rb") as file:
        reader = zstandard.ZstdDecompressor(max_window_size=_WINDOW).stream_reader(file, read_across_frames=True)
        with tarfile.open(fileobj=reader, mode="r|", tarinfo=Header) as tar:
            for _, member in zip(range(_MEMBERS), tar, strict=False):
                if member.name != "." and not member.name.startswith("./"):
                    return member.name
    return ""


def _owners(tree: Tree) -> Iterator[Finding]:
    foreign = [entry for entry in tree.entries.values() if max(entry.uid, entry.gid) > _LARGEST_ID]
    if foreign:
        what = f"{len(foreign)} members have an owner above {_LARGEST_ID}: an unprivileged container cannot be made"
        seen = f"/{foreign[0].path} {foreign[0].uid}:{foreign[0].gid}"
        yield Finding("proxmox-owner", Severity.ERROR, "template", what, seen, "users below 65536", _UNTAR)


def _start(tree: Tree) -> Iterator[Finding]:
    wanted = (
        ("/sbin/init", Severity.ERROR, "does not start, which `pct create` does not notice", "systemd-sysv"),
        ("/bin/sh", Severity.WARNING, "has an architecture that Proxmox has to guess", "dash"),
        ("/sbin/ifup", Severity.ERROR, "gets no network: Proxmox writes /etc/network/interfaces", "ifupdown"),
        ("/etc/network", Severity.ERROR, "gets no network: Proxmox writes /etc/network/interfaces", "ifupdown"),
        ("/sbin/dhclient", Severity.WARNING, "gets no address by DHCP", "isc-dhcp-client"),
        ("/etc/ssh", Severity.NOTE, "gets no ssh host keys", "openssh-server"),
    )
    for path, severity, what, package in wanted:
        if tree.find(path) is None:
            mend = f'"{package}" among the Packages of the base'
            yield Finding("proxmox-start", severity, "template", f"a container {what}", f"no {path}", mend, _SETUP)


def _distribution(tree: Tree) -> Iterator[Finding]:
    if not tree.readable:
        yield unseen("proxmox-distribution", "template", "what os-release says", "only the list of files is at hand")
        return
    release = dict(re.findall(r'^(\w+)="?(.*?)"?$', tree.read("/etc/os-release") or "", re.MULTILINE))
    name = release.get("ID", "")
    if name not in ("debian", "ubuntu"):
        what = "Proxmox would leave network, host name and keys alone, or refuse"
        mend = "/etc/os-release of Debian or Ubuntu"
        yield Finding("proxmox-distribution", Severity.ERROR, "template", what, f"ID={name or 'missing'}", mend, _SETUP)
    if name == "debian":
        yield from _debian(tree.read("/etc/debian_version"))


def _debian(version: str | None) -> Iterator[Finding]:
    text = (version or "").strip()
    found = re.fullmatch(r"(\d+)(\.\d+)?(\.\d+)?|[a-z]+/sid", text)
    if found is None:
        what = "`pct create` ends with: unable to read version info"
        yield Finding(
            "proxmox-debian", Severity.ERROR, "template", what, f"/etc/debian_version: {text!a}", "base-files", _SETUP
        )
    elif found[1] and int(found[1]) >= 13 and found[2] not in (None, ".0"):
        what = f"Debian {text} is refused by hosts before pve-container 5.3.1 (8) and 6.0.10 (9), of September 2025"
        yield Finding(
            "proxmox-debian", Severity.NOTE, "template", what, "/etc/debian_version", "upgrade the host", _SETUP
        )
