"""What end-to-end tests share: an ordinary user with subordinate ids, and proof that nothing is left behind."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[2]


@dataclass(frozen=True)
class User:
    """Somebody who can run the builder: `python` is an interpreter that this user may use and `env` lets it find us."""

    name: str
    uid: int
    gid: int
    home: Path
    python: str
    env: dict[str, str]

    def popen(self, argv: list[str], **options: object) -> subprocess.Popen[bytes]:
        """Start `argv` as this user, in the home folder and with nothing of the test's own environment."""
        who = {"user": self.uid, "group": self.gid, "extra_groups": []} if os.geteuid() == 0 else {}
        return subprocess.Popen(argv, cwd=self.home, env=self.env, **who, **options)  # type: ignore[call-overload]

    def run(self, argv: list[str], stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run `argv` as this user to its end."""
        with self.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            out, err = process.communicate(stdin)
        return subprocess.CompletedProcess(argv, process.returncode, out, err)

    def builder(self, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        """Run the program's command line as this user."""
        return self.run([self.python, "-c", "from builder.cli import main; main()", *arguments])


def _environment(home: Path, name: str, **more: str) -> dict[str, str]:
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return {"PATH": path, "HOME": str(home), "USER": name, "LANG": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1", **more}


@pytest.fixture(scope="session")
def root_user(tmp_path_factory: pytest.TempPathFactory) -> User:
    """The machine's root, with a home of its own for the session."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    home = tmp_path_factory.mktemp("root-home")
    return User("root", 0, 0, home, sys.executable, _environment(home, "root"))


@pytest.fixture(scope="session")
def ordinary_user() -> Iterator[User]:
    """A new user with 65536 subordinate ids, removed with the home folder at the end of the session."""
    if os.geteuid() != 0:
        pytest.skip("needs root to make a user")
    name = f"builder-test-{os.getpid()}"
    subprocess.run(["useradd", "--create-home", "--shell", "/bin/sh", name], check=True, capture_output=True)
    try:
        _give_ids(name)
        entry = pwd.getpwnam(name)
        yield _with_python(name, entry.pw_uid, entry.pw_gid, Path(entry.pw_dir))
    finally:
        subprocess.run(["userdel", name], check=True, capture_output=True)
        shutil.rmtree(f"/home/{name}")


def _give_ids(name: str) -> None:
    for table, option in (("/etc/subuid", "--add-subuids"), ("/etc/subgid", "--add-subgids")):
        if f"{name}:" not in Path(table).read_text():
            subprocess.run(["usermod", option, "100000-165535", name], check=True)


def _with_python(name: str, uid: int, gid: int, home: Path) -> User:
    """The user with this test's interpreter, or Debian's where it lies in a folder closed to others."""
    packages = ":".join(path for path in sys.path if path.endswith("site-packages"))
    for python, more in (sys.executable, {}), ("/usr/bin/python3", {"PYTHONPATH": f"{HOUSE}:{packages}"}):
        user = User(name, uid, gid, home, python, _environment(home, name, **more))
        try:
            if user.run([python, "-c", "import builder.cli, zstandard, requests"]).returncode == 0:
                return user
        except PermissionError:
            continue
    pytest.skip("no interpreter that an ordinary user may use can import the builder")


@pytest.fixture(params=["root_user", "ordinary_user"])
def user(request: pytest.FixtureRequest) -> User:
    """Each test that takes this runs twice: as root and as an ordinary user."""
    found: User = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def no_leftovers() -> Iterator[None]:
    """Fails a test after which a mount is there that was not before, or a sandbox whose builder is gone."""
    before = _mounts()
    yield
    deadline = time.monotonic() + 5
    while (left := (_mounts() - before) | _orphans()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def _mounts() -> set[str]:
    found = subprocess.run(["findmnt", "--raw", "--noheadings", "-o", "TARGET,FSTYPE"], check=True, capture_output=True)
    return set(found.stdout.decode().splitlines())


def _orphans() -> set[str]:
    """Sandboxes whose builder, named by the last argument, does not run any more, or is this very process."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            argv = (folder / "cmdline").read_bytes().split(b"\0")[:-1]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if any(b"builder.sandbox.child" in word for word in argv) and argv[-1].isdigit():
            builder = int(argv[-1])
            if builder == os.getpid() or not Path(f"/proc/{builder}").exists():
                found.add(f"{folder.name}: {b' '.join(argv).decode()}")
    return found
