"""Templates to another machine with rsync(1), which sends only what an earlier one there does not hold already.

What arrives lies in a hidden folder beside its place until its sha256 was checked there; then it is renamed. So no name
ever stands for half a template, and a push that was cut short goes on where it ended.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from builder import pack
from builder.command import run, tail
from builder.errors import BuilderError, UsageError
from builder.progress import Progress, Task
from builder.store.files import sha256_of

_RSYNC = (
    *("rsync", "--fuzzy", "--fuzzy", "--copy-dest=..", "--no-whole-file"),
    *("--partial", "--times", "--ignore-times", "--chmod=F644"),
    *("--info=progress2", "--stats", "--no-human-readable"),
)
"""With --fuzzy twice a basis is looked for in the folder of --copy-dest too: among the templates there. Not with
--secluded-args, with which rsync 3.5 finds none."""
_PRESENT = """\
mkdir -p -- "$1" && cd -- "$1" || exit
shift
for name; do [ ! -f "$name" ] || sha256sum -- "$name"; done"""
_TAKE = """\
cd -- "$1/$2" || exit
stage=$2
shift 2
printf '%s\\n' "$@" | sha256sum --check --strict --quiet >&2 || { cd .. && rm -r "$stage"; exit 1; }
sync -- * || exit
for pair; do mv -f -- "${pair#*  }" .. || exit; done
cd .. && rmdir "$stage" && sync .
find . -maxdepth 1 -name '.push-*' -mtime +7 -exec rm -r {} +"""
"""Takes lines of sha256sum as arguments; the last is the template, which comes last. Left overs go after a week."""
_REMOTE = re.compile(r"((?:[^/:\[\]@-][^/:\[\]@]*@)?(?:[^/:\[\]@-][^/:\[\]@]*|\[[0-9A-Fa-f:.]+\])):(?!:)(.*)")
_DONE = re.compile(rb"([0-9]+)\s+[0-9]+%")
_HINTS = (
    ("rsync: command not found", "install rsync there"),
    ("rsync: not found", "install rsync there"),
    ("Permission denied", "name a folder of yours, or another user"),
    ("No space left", "free some space there"),
    ("Could not resolve", "see `ssh` to it by hand"),
    ("Connection", "see `ssh` to it by hand"),
    ("Not a directory", "name a folder"),
    ("File exists", "name a folder"),
    ("No such file", "name a folder that can be made"),
)


_AGAIN = "build the template again"


@dataclass(frozen=True)
class Target:
    """A folder, on this machine when `host` is ""."""

    host: str  # as ssh takes it: [USER@]HOST
    folder: str

    def __str__(self) -> str:
        return f"{self.host}:{self.folder}" if self.host else self.folder


@dataclass(frozen=True)
class Pushed:
    """A template that is in place, and what went over the line for it and for what lies beside it; sizes in bytes."""

    place: str
    sha256: str
    size: int  # of the files
    literal: int  # of them, that the other side did not have
    sent: int  # in all, the line's own overhead included
    received: int  # mostly checksums of what the other side has
    seconds: float
    fresh: bool  # False when all was there


def parse(text: str) -> Target:
    """[USER@]HOST:FOLDER, or a folder of this machine as one that has a slash before any colon. Raises UsageError."""
    found = _REMOTE.fullmatch(text)
    if found:
        return Target(found[1], found[2] or ".")
    if not text or text.startswith("-") or ":" in text.partition("/")[0]:
        raise UsageError("is no place to push to", where=text or "''", hint="give HOST:PATH, or a folder")
    return Target("", os.path.abspath(text))


def push(template: Path, target: Target, progress: Progress) -> Pushed:
    """Bring `template` with its manifest and bill of materials into the folder of `target`, which is made if missing.

    ssh is called as $RSYNC_RSH says, where it is set. Raises BuilderError when one of the three is not as
    SHA256SUMS has it, the other machine cannot be reached, its disk is full, or what arrived has another sha256.
    """
    started = time.monotonic()
    files = [*pack.parts(template)[1:], template]
    with progress.task("sha256"):
        sums = _sums(template, files)
    names = [path.name for path in files]
    present = _present(_shell(target, _PRESENT, target.folder, *names))
    place = f"{target}/{template.name}"
    size = sum(path.stat().st_size for path in files)
    if present == sums:
        return Pushed(place, sums[template.name], size, 0, 0, 0, time.monotonic() - started, fresh=False)
    stage = f".push-{sums[template.name][:12]}"
    with progress.task("push", size) as task:
        stats = _rsync(files, target, stage, task)
    with progress.task("sha256 there"):
        _shell(target, _TAKE, target.folder, stage, *(f"{sums[name]}  {name}" for name in names))
    return Pushed(place, sums[template.name], size, *stats, time.monotonic() - started, fresh=True)


def _sums(template: Path, files: Sequence[Path]) -> Mapping[str, str]:
    try:
        found = {path.name: sha256_of(path) for path in files}
        listed = {path.name: pack.listed(path) for path in files}
    except OSError as error:
        raise BuilderError(error.strerror or str(error), where=error.filename or template, hint=_AGAIN) from error
    for path in files:
        if listed[path.name] is None:
            raise BuilderError("is not in SHA256SUMS beside it", where=path, hint=_AGAIN)
        if found[path.name] != listed[path.name]:
            raise BuilderError("is not as SHA256SUMS beside it says", where=path, hint=_AGAIN)
    return found


def _present(said: bytes) -> Mapping[str, str]:
    lines = said.decode(errors="replace").splitlines()
    return {line[66:]: line[:64] for line in lines if line[64:66] == "  "}


def _shell(target: Target, script: str, *arguments: str) -> bytes:
    """Run a script of sh(1) there. Raises BuilderError."""
    argv = ["sh", "-c", script, "sh", *arguments]
    if target.host:
        argv = [*_ssh(), "--", target.host, shlex.join(argv)]
    try:
        return run(argv, env=_env())
    except BuilderError as error:
        raise _failure(error.what, target) from error


def _rsync(files: Sequence[Path], target: Target, stage: str, task: Task) -> tuple[int, int, int]:
    """Bring `files` into the folder `stage` there; bytes literal, sent and received. Raises BuilderError."""
    argv = [*_RSYNC, *(("--rsh", shlex.join(_ssh())) if target.host else ())]
    argv += ["--", *(str(path.absolute()) for path in files), f"{target}/{stage}/"]
    try:
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_env(), bufsize=0)
    except FileNotFoundError as error:
        raise BuilderError("command not found", where="rsync", hint="run: sudo apt install rsync") from error
    try:
        said, done = b"", 0
        assert process.stdout is not None
        while piece := process.stdout.read(4096):
            said = (said + piece)[-8192:]
            if counts := _DONE.findall(piece):
                task.advance(int(counts[-1]) - done)
                done = int(counts[-1])
        _, err = process.communicate()
    except BaseException:
        process.terminate()
        process.communicate()
        raise
    if process.returncode != 0:
        raise _failure(f"rsync: exit {process.returncode}: {tail(err)}", target)
    names = ("Literal data", "Total bytes sent", "Total bytes received")
    literal, sent, received = (_stat(said.decode(errors="replace"), name) for name in names)
    return literal, sent, received


def _stat(said: str, name: str) -> int:
    found = re.search(rf"^{name}: ([0-9,]+)", said, re.MULTILINE)
    if found is None:
        raise BuilderError(f"says no {name!r}", where="rsync", hint="rsync 3.2 or newer is needed")
    return int(found[1].replace(",", ""))


def _ssh() -> list[str]:
    return shlex.split(os.environ.get("RSYNC_RSH", "")) or ["ssh"]


def _env() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C"}


def _failure(what: str, target: Target) -> BuilderError:
    return BuilderError(what, where=target, hint=next((hint for text, hint in _HINTS if text in what), None))
