"""Builds again, one variation after the other, each in a store of its own that holds the locked files and no layer."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import builder
from builder.command import tail
from builder.errors import BuilderError
from builder.lock.model import Blob
from builder.rebuild import differ
from builder.rebuild.model import CannotVaryError, Outcome, State, Way
from builder.rebuild.variations import VARIATIONS
from builder.sandbox import linux
from builder.store import Store
from builder.store.files import remove_tree

_MAIN = "from builder.cli import main; main()"
_COPIED = ("recipes", "locks")
_PATIENCE = 10  # seconds until disorderfs has mounted


@dataclass(frozen=True)
class Job:
    """What is built again."""

    project: Path  # holds recipes/ and locks/, or is the recipe's own folder
    recipe: Path  # the recipe's folder, in the project
    variant: str
    blobs: Sequence[Blob]  # all that a build takes
    store: Store  # that has them

    def words(self, project: Path) -> list[str]:
        """The command line that builds it, where `project` is the project's place."""
        words = ["build", str(project / self.recipe.relative_to(self.project)), "--json"]
        return [*words, "--variant", self.variant] if self.variant else words


@dataclass(frozen=True)
class _Place:
    """Where a rebuild finds everything, as it sees it itself."""

    work: Path
    python: Sequence[str]
    env: Mapping[str, str]


def reference(job: Job) -> Path:
    """The template as the caller's own store and surroundings give it, made unless it is in artifacts/.

    Raises BuilderError when it cannot be built.
    """
    done = _run([sys.executable, "-c", _MAIN, *job.words(job.project)], {**os.environ}, Way(), Path.cwd())
    if done.returncode != 0:
        raise BuilderError(tail(done.stderr, 1).removeprefix("builder: "), where="the template to compare with")
    return Path(json.loads(done.stdout)["path"])


def rebuild(job: Job, name: str, template: Path, folder: Path, *, keep: bool) -> Outcome:
    """Build again as the variation `name` (or several, joined by "+") says and compare with `template`.

    Works below `folder`, which is empty afterwards unless `keep`. Needs a mount namespace of its own, in which uid 0
    may mount. Raises BuilderError when `folder` cannot be written.
    """
    way, told = Way(), []
    try:
        for part in name.split("+"):
            way, how = VARIATIONS[part].vary(way)
            told.append(how)
    except CannotVaryError as error:
        return Outcome(name, State.NOT_TRIED, str(error))
    started = time.monotonic()
    home = folder / name
    work = home / way.folder
    try:
        _lay_out(job, way, work)
        with ExitStack() as stack:
            place = stack.enter_context(_reachable(work, way)) if way.user else _Place(work, [sys.executable], {})
            if way.shuffled:
                stack.enter_context(_shuffled(place.work / "project"))
            done = _build(job, way, place)
        outcome = Outcome(name, State.SAME, "; ".join(told), seconds=round(time.monotonic() - started, 1))
        if done.returncode != 0:
            return replace(outcome, state=State.FAILED, how=f"{outcome.how}: {tail(done.stderr, 1)}")
        return _compared(outcome, template, json.loads(done.stdout), work / "artifacts")
    finally:
        if not keep:
            remove_tree(home)


def _compared(outcome: Outcome, template: Path, made: Mapping[str, Any], artifacts: Path) -> Outcome:
    again = artifacts / Path(made["path"]).name
    found = replace(outcome, sha256=made["sha256"])
    if differ.sha256(template) == differ.sha256(again) == made["sha256"]:
        return found
    stage, files, shown = differ.explain(template, again)
    return replace(found, state=State.DIFFERENT, stage=stage, files=files, shown=shown)


def _lay_out(job: Job, way: Way, work: Path) -> None:
    """A copy of the project and a store with the locked files, hard links where that can be."""
    work.mkdir(parents=True)
    if job.recipe == job.project:
        shutil.copytree(job.project, work / "project", symlinks=True, ignore=shutil.ignore_patterns("artifacts"))
    else:
        for name in _COPIED:
            shutil.copytree(job.project / name, work / "project" / name, symlinks=True)
    (work / "artifacts").mkdir()
    store = Store(work / "store")
    for sha256 in {blob.sha256 for blob in job.blobs}:
        _take(job.store.path(sha256), store.path(sha256), link=way.user is None)
    if way.umask is not None:
        _mask(work / "project", way.umask)
    if way.user is not None:
        _give(work, pwd.getpwnam(way.user))


def _take(source: Path, target: Path, *, link: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if link:
            os.link(source, target)
            return
    except OSError:  # another file system
        pass
    shutil.copyfile(source, target)
    target.chmod(0o444)


def _mask(folder: Path, umask: int) -> None:
    """The modes that a checkout under `umask` gives."""
    for path in (folder, *folder.rglob("*")):
        mode = path.lstat().st_mode
        if not stat.S_ISLNK(mode):
            path.chmod((0o777 if stat.S_ISDIR(mode) or mode & stat.S_IXUSR else 0o666) & ~umask)


def _give(folder: Path, user: pwd.struct_passwd) -> None:
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)


@contextmanager
def _shuffled(folder: Path) -> Iterator[None]:
    """Let `folder` show its names in another order at each look."""
    plain = folder.with_name("plain")
    folder.rename(plain)
    folder.mkdir()
    options = ("--multi-user=yes", "--shuffle-dirents=yes", "--reverse-dirents=no", "--pad-blocks=0")
    argv = ["setpriv", "--pdeathsig", "TERM", "disorderfs", "-f", "-q", *options, str(plain), str(folder)]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + _PATIENCE
        while not folder.is_mount():
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise BuilderError(tail(process.communicate()[1]) or "does not mount", where="disorderfs")
            time.sleep(0.02)
        yield
    finally:
        _unmount(folder)
        process.terminate()
        process.communicate()


@contextmanager
def _reachable(work: Path, way: Way) -> Iterator[_Place]:
    """`work`, this Python and the builder where `way.user` can reach them: all may lie in folders closed to others."""
    with tempfile.TemporaryDirectory(prefix="builder-", dir="/tmp") as name, ExitStack() as stack:
        os.chmod(name, 0o755)

        def bind(source: str | Path, as_name: str, *, writable: bool = False) -> Path:
            target = Path(name, as_name)
            target.mkdir()
            linux.attach(linux.clone_tree(source, writable=writable), str(target))
            stack.callback(_unmount, target)
            return target

        house = bind(Path(builder.__file__).parents[1], "house")
        packages = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
        found = [bind(path, f"packages-{number}") for number, path in enumerate(packages) if os.path.isdir(path)]
        python = Path(sys.executable).resolve()
        if not python.is_relative_to("/usr"):
            python = bind(sys.base_prefix, "python") / python.relative_to(Path(sys.base_prefix).resolve())
        yield _Place(
            bind(work, "work", writable=True),
            [str(python)],
            {"PYTHONPATH": ":".join(map(str, (house, *found))), "PYTHONDONTWRITEBYTECODE": "1"},
        )


def _unmount(path: Path) -> None:
    subprocess.run(["umount", "--lazy", str(path)], check=False, capture_output=True)


def _build(job: Job, way: Way, place: _Place) -> subprocess.CompletedProcess[bytes]:
    words = [*job.words(place.work / "project"), "--output", str(place.work / "artifacts"), "--engine", way.engine]
    env = {**os.environ, **way.env, **place.env, "BUILDER_STORE": str(place.work / "store")}
    return _run([*way.before, *place.python, "-c", _MAIN, *words], env, way, place.work)


def _run(argv: Sequence[str], env: Mapping[str, str], way: Way, cwd: Path) -> subprocess.CompletedProcess[bytes]:
    """Run the builder; whatever is raised meanwhile ends it first, in its own way."""
    who: dict[str, Any] = {}
    if way.user is not None:
        user = pwd.getpwnam(way.user)
        who = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    process = subprocess.Popen(
        list(argv),
        env=dict(env),
        cwd=cwd,
        umask=-1 if way.umask is None else way.umask,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **who,
    )
    try:
        out, err = process.communicate()
    except BaseException:
        process.terminate()
        process.communicate()
        raise
    return subprocess.CompletedProcess(list(argv), process.returncode, out, err)
