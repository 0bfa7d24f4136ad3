"""What must not be in a template that goes to other machines."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from builder.check.model import Finding, Severity
from builder.check.rules import unseen
from builder.check.tree import Tree
from builder.tree import Entry

_SOURCE = "docs/template.md"
_PLACES = ("etc", "root", "home", "srv", "usr/local", "var/lib/vllm", "var/cache", "opt/models")
"""Folders whose small files are searched for secrets: what recipes and people write."""
_SMALL = 64 << 10
_SECRET = re.compile(
    r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----|\bhf_[A-Za-z0-9]{30,}|\bgithub_pat_\w{40,}|\bghp_\w{36}"
    r"|\bAKIA[0-9A-Z]{16}\b|\bsk-[A-Za-z0-9_-]{32,}"
)
_SECRET_FILES = re.compile(
    r"(.*/)?(\.netrc|\.pgpass|\.docker/config\.json|\.aws/credentials|\.ssh/(id_\w+|authorized_keys)|\.git-credentials"
    r"|\.cache/huggingface/token|\.huggingface/token|\.bash_history|\.python_history)"
)
_HOST_KEY = re.compile(r"etc/ssh/ssh_host_\w+_key(\.pub)?")
_CACHES = re.compile(
    r"var/cache/apt/.*\.(bin|deb)|var/lib/apt/lists/[^/]+_[^/]+|root/\.cache/.+|home/[^/]+/\.cache/.+"
    r"|var/cache/ldconfig/aux-cache|var/cache/vllm/.+|var/lib/vllm/\.cache/.+"
)
_TRACES = re.compile(r"(^|/)(direct_url\.json|RECORD|pyvenv\.cfg)$|\.pth$|^etc/|/bin/[^/]+$")
"""Files that name the place where they were made, when something does."""
_SHOWN = 3
_NO_ID = len("uninitialized\n")  # what machine-id(5) has in its place; an id is longer


def clean(tree: Tree, build_paths: Sequence[str]) -> Iterator[Finding]:
    """All of it. `build_paths`: folders of the building machine that nothing may name. Raises BuilderError."""
    members = tree.entries.values()
    yield from _mode(members)
    files = [entry for entry in members if entry.type in ("file", "hardlink")]
    kinds = (
        ("hygiene-host-key", _HOST_KEY, "ssh host keys: every container of it would have the same", "leave them out"),
        ("hygiene-secret-file", _SECRET_FILES, "files that hold secrets or traces of a person", "leave them out"),
        ("hygiene-cache", _CACHES, "caches, which are of no use to a container", "leave them out"),
    )
    for rule, pattern, what, mend in kinds:
        found = [entry for entry in files if pattern.fullmatch(entry.path) and _filled(tree, entry)]
        yield from _told(rule, Severity.ERROR, what, found, mend)
    machine = tree.find("/etc/machine-id")
    if machine is not None and machine.size not in (0, _NO_ID):
        what, seen = "a machine-id: every container of it would have the same", f"{machine.size} bytes"
        yield Finding(
            "hygiene-machine-id", Severity.ERROR, "/etc/machine-id", what, seen, "leave it empty", "machine-id(5)"
        )
    if tree.readable:
        yield from _content(tree, files, build_paths)
    else:
        yield unseen("hygiene-content", "template", "secrets in files", "only the list of files is at hand")


def _filled(tree: Tree, entry: Entry) -> bool:
    return entry.size > 0 or entry.type == "hardlink"


def _mode(members: Iterable[Entry]) -> Iterator[Finding]:
    open_ = [entry for entry in members if entry.type in ("file", "dir", "fifo") and entry.mode & 0o002]
    loose = [entry for entry in open_ if entry.type != "dir" or not entry.mode & 0o1000]
    yield from _told("hygiene-world-writable", Severity.ERROR, "members that anyone may write", loose, "chmod o-w")


def _content(tree: Tree, files: Iterable[Entry], build_paths: Sequence[str]) -> Iterator[Finding]:
    names = [path for path in build_paths if len(path) > 5]  # not "/root", which templates have too
    trace = re.compile("|".join(map(re.escape, names))) if names else None
    secret: list[Entry] = []
    traces: list[Entry] = []
    for entry in files:
        is_place = entry.path.startswith(tuple(f"{place}/" for place in _PLACES))
        is_trace = trace is not None and _TRACES.search(entry.path) is not None
        if (entry.size > _SMALL and not (is_trace and entry.path.endswith("RECORD"))) or not (is_place or is_trace):
            continue
        text = tree.read(entry.path) or ""
        if is_place and _SECRET.search(text):
            secret.append(entry)
        if is_trace and trace is not None and trace.search(text):
            traces.append(entry)
    yield from _told(
        "hygiene-secret", Severity.ERROR, "keys or tokens in files", secret, "leave them out, and change them"
    )
    yield from _told(
        "hygiene-build-path", Severity.WARNING, "paths of the building machine", traces, "build in the sandbox"
    )
    shadow = tree.read("/etc/shadow") or ""
    if users := re.findall(r"^([^:]+):(?:\$[^:]*|):", shadow, re.MULTILINE):
        what = "passwords that every container of it would have, or none at all"
        mend = "`*` or `!` in /etc/shadow"
        yield Finding("hygiene-password", Severity.ERROR, "/etc/shadow", what, ", ".join(users), mend, "shadow(5)")
    what = f"secrets elsewhere than in small files of {', '.join(f'/{place}' for place in _PLACES)}"
    yield unseen("hygiene-elsewhere", "template", what, "packages hold test keys of their own, told apart by no rule")


def _told(rule: str, severity: Severity, what: str, found: Sequence[Entry], mend: str) -> Iterator[Finding]:
    if found:
        shown = ", ".join(f"/{entry.path}" for entry in found[:_SHOWN])
        more = f" and {len(found) - _SHOWN} more" if found[_SHOWN:] else ""
        yield Finding(rule, severity, "template", what, shown + more, mend, _SOURCE)
