"""Builders that are killed, interrupted, or two at once: the next build gives the right template, nothing is left."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from conftest import User
from project import Project, project

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600), pytest.mark.usefixtures("no_leftovers")]

POINTS = sorted(random.Random(20).sample(range(50, 1000), 20))
"""Twenty random points of a run, as thousandths of its time."""
SCRIPT = "#!/bin/sh\ntouch /srv/started\nsleep 1000 &\nsleep 1000\n"


class Victim:
    """The recipe tiny in a folder of its own, and what an undisturbed build of it gives."""

    def __init__(self, of: Project) -> None:
        self.of = of
        made = of.json("build", "recipes/tiny")
        self.sha256 = made["sha256"]
        self.template = Path(made["path"])
        self.layer = next(of.store.glob(f"layers/*/{made['stages'][-1]['key']}"))
        self.undo()
        started = time.monotonic()
        self.check()
        self.seconds = time.monotonic() - started

    def undo(self) -> None:
        """Damage the files layer and the template, so that a build drops, builds, packs and replaces."""
        (self.layer / "tree/usr/bin/tiny").write_text("damaged")
        self.template.write_text("damaged")

    def check(self) -> None:
        """A plain build gives the right template and leaves nothing but it."""
        made = self.of.json("build", "recipes/tiny")
        assert made["sha256"] == self.sha256 == sha256(self.template.read_bytes()).hexdigest()
        subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=self.of.artifacts, check=True)
        assert len(os.listdir(self.of.artifacts)) == 4
        left = {path.name for path in (self.of.store / "tmp").iterdir()}
        assert left <= {"partial", "logs"}

    def start(self) -> subprocess.Popen[bytes]:
        argv = self.of.argv("build", "recipes/tiny")
        return self.of.user.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.fixture(scope="module")
def victim_of(tiny: Callable[[User], Path]) -> Callable[[User], Victim]:
    """The victim of each user, made at first use."""
    made: dict[str, Victim] = {}

    def of(user: User) -> Victim:
        if user.name not in made:
            made[user.name] = Victim(new(user, tiny(user)))
        return made[user.name]

    return of


@pytest.fixture
def victim(user: User, victim_of: Callable[[User], Victim]) -> Victim:
    return victim_of(user)


def new(user: User, store: Path) -> Project:
    return project(user, Path(tempfile.mkdtemp(dir=user.home)), "tiny", store=store)


@pytest.mark.parametrize("point", [*POINTS[::2], *(pytest.param(p, marks=pytest.mark.full) for p in POINTS[1::2])])
def test_killed_at_a_random_point(root_user: User, victim_of: Callable[[User], Victim], point: int) -> None:
    kill_after(victim_of(root_user), point)


@pytest.mark.parametrize("point", POINTS[3::4])
def test_killed_at_a_random_point_as_a_user(
    ordinary_user: User, victim_of: Callable[[User], Victim], point: int
) -> None:
    kill_after(victim_of(ordinary_user), point)


def kill_after(victim: Victim, point: int) -> None:
    victim.undo()
    with victim.start() as running:
        time.sleep(victim.seconds * point / 1000)
        running.kill()
    victim.check()


DIES = """
import os, signal, sys, threading
lock, left = threading.Lock(), int(sys.argv.pop(1))
def counted(call):
    def wrapped(*arguments, **options):
        global left
        with lock:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)
    return wrapped
os.rename, os.replace = counted(os.rename), counted(os.replace)
from builder.cli import main
main()
"""
"""The builder, killed when one of its threads is about to make the N-th rename of all."""


def test_killed_where_a_file_is_about_to_be_renamed(root_user: User, victim_of: Callable[[User], Victim]) -> None:
    victim = victim_of(root_user)
    python, *_, recipe = victim.of.argv("build", "recipes/tiny")
    number = 0
    while True:
        number += 1
        victim.undo()
        argv = [python, "-c", DIES, str(number), "build", recipe]
        with victim.of.user.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
            said = running.communicate()
        victim.check()
        if running.returncode == 0:
            break
        assert running.returncode == -signal.SIGKILL, said
    assert number > 6  # layer dropped, layer placed, sums, manifest, bill, template, sums, record


@pytest.mark.parametrize("calls", ["rename,renameat,renameat2", "fallocate", "ftruncate", "fsync"])
def test_killed_while_a_template_is_changed_in_its_place(
    root_user: User, tiny: Callable[[User], Path], calls: str
) -> None:
    """One file of the recipe changed: the template that lies there becomes the new one, or the next build makes it."""
    here = new(root_user, tiny(root_user))
    file = here.folder / "recipes/tiny/files/etc/tiny"
    texts = [file.read_text(), random.Random(1).randbytes(50_000).hex()]
    sums = []
    for text in texts:
        file.write_text(text)
        made = here.json("build", "recipes/tiny")
        sums.append(made["sha256"])
    template = Path(made["path"])
    number, status = 0, -1
    while status != 0:
        number += 1
        wanted = (number + 1) % 2
        file.write_text(texts[wanted])
        before = template.stat().st_ino
        inject = f"inject={calls}:signal=KILL:when={number}"
        strace = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", f"trace={calls}", "-e", inject]
        with here.user.popen([*strace, *here.argv("build", "recipes/tiny")], stderr=subprocess.PIPE) as running:
            said = running.communicate()
        status = running.returncode
        assert status in (0, -signal.SIGKILL, 128 + signal.SIGKILL), said
        if (here.artifacts / "SHA256SUMS").exists():
            subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=here.artifacts, check=True)
        if status == 0:
            assert template.stat().st_ino == before
        made = here.json("build", "recipes/tiny")
        assert made["sha256"] == sums[wanted] == sha256(template.read_bytes()).hexdigest()
        assert len(os.listdir(here.artifacts)) == 4
    assert number > 2


def test_killed_while_the_base_is_made(root_user: User, tiny: Callable[[User], Path]) -> None:
    """In a store of its own, which is empty of layers; what a build from nothing gives is what `tiny` gave."""
    store = tiny(root_user)
    here = new(root_user, store)
    expected = here.json("build", "recipes/tiny")["sha256"]
    other = here.folder / "other"
    shutil.copytree(store / "blobs", other / "blobs")
    shutil.rmtree(here.artifacts)
    here = here.with_env(BUILDER_STORE=str(other))
    with here.user.popen(here.argv("build", "recipes/tiny"), stderr=subprocess.PIPE) as running:
        until(lambda: list(other.glob("tmp/session-*/*/layer/tree/usr/bin/dpkg")))
        running.kill()
    assert here.json("build", "recipes/tiny")["sha256"] == expected
    assert {path.name for path in (other / "tmp").iterdir()} <= {"partial", "logs"}


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_in_a_stage(user: User, tiny: Callable[[User], Path], number: signal.Signals) -> None:
    here = new(user, tiny(user))
    recipe = here.folder / "recipes/tiny"
    (recipe / "script").write_text(SCRIPT)
    (recipe / "script").chmod(0o755)
    stage = '[[Stage]]\nName = "slow"\nKind = "files"\nPostInstallationScripts = ["script"]\n'
    (recipe / "recipe.toml").write_text((recipe / "recipe.toml").read_text() + stage)
    with here.user.popen(here.argv("build", "recipes/tiny"), stderr=subprocess.PIPE) as running:
        until(lambda: list(here.store.glob("tmp/session-*/*/layer/tree/srv/started")))
        interrupt(running, number)
    assert list((here.store / "tmp").glob("session-*")) == []


@pytest.mark.parametrize("fraction", [0.1, 0.4, 0.6, 0.8])
def test_interrupted_at_any_time(victim: Victim, fraction: float) -> None:
    victim.undo()
    with victim.start() as running:
        until(lambda: running.poll() is not None or list((victim.of.store / "tmp").glob("session-*")))
        time.sleep(victim.seconds * fraction)
        interrupt(running, signal.SIGINT)
    assert list((victim.of.store / "tmp").glob("session-*")) == []
    assert list(victim.of.artifacts.glob(".pack-*")) == []
    victim.check()


def interrupt(running: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send the signal; the builder says one line, and ends long before a stage would."""
    sent = time.monotonic()
    running.send_signal(number)
    _, said = running.communicate()
    if running.returncode != 0:  # else it had finished before
        lines = [line for line in said.decode().splitlines() if "was changed on disk" not in line]
        assert (running.returncode, lines) == (130, ["builder: interrupted"])
    assert time.monotonic() - sent < 60


def test_two_builders_that_fail_in_the_same_stage_keep_one_log_whole(user: User, tiny: Callable[[User], Path]) -> None:
    here = new(user, tiny(user))
    recipe = here.folder / "recipes/tiny"
    (recipe / "script").write_text("#!/bin/sh\nseq 500\nsleep 0.5\nseq 501 1000\nexit 3\n")
    (recipe / "script").chmod(0o755)
    stage = '[[Stage]]\nName = "bad"\nKind = "files"\nPostInstallationScripts = ["script"]\n'
    (recipe / "recipe.toml").write_text((recipe / "recipe.toml").read_text() + stage)
    both = [here.user.popen(here.argv("build", "recipes/tiny"), stderr=subprocess.PIPE) for _ in range(2)]
    said = [running.communicate()[1].decode() for running in both]
    log = here.store / "tmp/logs/tiny-bad.log"
    assert all(line.endswith(f"; all output is in {log}\n") for line in said), said
    assert log.read_text().split() == [str(number) for number in range(1, 1001)]


def test_two_builders_at_once(victim: Victim) -> None:
    """On one store and one folder of artifacts, where both find a damaged layer and a damaged template."""
    victim.undo()
    argv = victim.of.argv("build", "recipes/tiny", "--json")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    both = [victim.of.user.popen(argv, **pipes) for _ in range(2)]
    told = [running.communicate() for running in both]
    assert [running.returncode for running in both] == [0, 0], told
    assert {json.loads(out)["sha256"] for out, _ in told} == {victim.sha256}
    victim.check()
