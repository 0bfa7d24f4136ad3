"""What end-to-end tests share: an ordinary user with subordinate ids, and proof that nothing is left behind."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from builder import sandbox
from builder.build import Built, build
from builder.build.plan import plan
from builder.lock.model import Blob, Lock
from builder.progress import Silent
from builder.recipe.model import Distribution, Recipe, Stage, Url, Venv
from builder.recipe.tables import default
from builder.sandbox import Spec
from builder.stage import KINDS
from builder.stage.kind import Context, Inputs, Kind
from builder.store import Store, fetch
from builder.store.tools import tool_blobs
from tests.bench.machine import machine

HOUSE = Path(__file__).parents[2]
EPOCH = 1760572800
OPEN_FOLDER = "/tmp/builder-boot-"
"""How the folders begin in which tests keep containers."""
OURS = rb"%b|/tmp/builder-\w+/house" % re.escape(os.fsencode(HOUSE))
MIRROR = "http://deb.debian.org/debian"
Measure = Callable[[str, Any], None]


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


@pytest.fixture(scope="session")
def tiny() -> Callable[[User], Path]:
    """The store of a user, in which the template of `tiny` was built; made at first use, and shared by all tests."""
    from project import project

    stores: dict[str, Path] = {}

    def of(user: User) -> Path:
        if user.name not in stores:
            home = user.home / "tiny"
            home.mkdir()
            made = project(user, home, "tiny")
            made.json("template", "recipes/tiny")
            stores[user.name] = made.store
        return stores[user.name]

    return of


@pytest.fixture
def no_leftovers() -> Iterator[None]:
    """Fails a test after which a mount is there that was not before, or a sandbox whose builder is gone."""
    before = _mounts()
    yield
    deadline = time.monotonic() + 60
    while (left := (_mounts() - before) | _orphans()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def _mounts() -> set[str]:
    """All mounts but those of tests with LXC, which may run at the same time."""
    found = (line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return {words[4] for words in found if OPEN_FOLDER not in words[4]}


def _orphans() -> set[str]:
    """Our sandboxes whose builder, named by the last argument, does not run any more, or is this very process.

    The argument before but one is the folder of the builder's code: ours, or as `builder rebuild-check` lends it.
    """
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            argv = (folder / "cmdline").read_bytes().split(b"\0")[:-1]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if any(b"builder.sandbox.child" in word for word in argv) and re.fullmatch(OURS, argv[-3]):
            builder = int(argv[-1])
            if builder == os.getpid() or not Path(f"/proc/{builder}").exists():
                found.add(f"{folder.name}: {b' '.join(argv).decode()}")
    return found


@pytest.fixture(scope="module")
def measure() -> Iterator[Measure]:
    """Keeps figures by name, each with the machine and the commit; $BUILDER_MEASURED, a JSON file, gets them too."""
    about = machine()
    figures: dict[str, Any] = {}

    def keep(name: str, found: Any) -> None:
        figures[name] = {"found": found, "machine": about}

    yield keep
    if place := os.environ.get("BUILDER_MEASURED"):
        path = Path(place)
        earlier = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(earlier | figures, indent=1, sort_keys=True) + "\n")


@pytest.fixture(scope="session")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Debian with systemd, Python and a compiler, from the network."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    root = tmp_path_factory.mktemp("debian") / "root"
    packages = "--include=systemd,python3,python3-venv,gcc,libc6-dev,make"
    argv = ["mmdebstrap", "--quiet", "--variant=minbase", packages, "bookworm", str(root), MIRROR]
    env = {"PATH": os.environ["PATH"], "SOURCE_DATE_EPOCH": str(EPOCH)}
    subprocess.run(argv, check=True, capture_output=True, env=env)
    return root


@dataclass
class Bench:
    """Builds stages over `debian` in a store of its own, as `builder build` does."""

    debian: Path
    folder: Path  # the recipe's
    store: Store
    venvs: tuple[Venv, ...] = ()
    urls: tuple[Url, ...] = ()
    lock: Lock = field(default_factory=lambda: Lock("bench", "20251016T000000Z"))

    def blob(self, path: Path) -> Blob:
        """The file at `path`, locked and in the store."""
        sha256 = self.store.add(path)
        return Blob(sha256=sha256, size=path.stat().st_size, filename=path.name, urls=())

    def build(self, *stages: tuple[str, dict[str, Any]]) -> tuple[Built, ...]:
        """The layers of `stages` (kind and settings, named after their place), without that of `debian`."""
        base = Kind("base", 1, "", (), lambda *_: (), lambda *_: Inputs({}), self._copy_debian)
        kinds = {**KINDS, "base": base}
        made = [Stage("base", "base", {}, None, "", 0, 600)]
        for number, (kind, given) in enumerate(stages):
            params = {key.name: default(key) for key in kinds[kind].keys} | given
            made.append(Stage(f"{kind}-{number}", kind, params, None, "", 8192, 600))
        recipe = Recipe(
            directory=self.folder,
            name="bench",
            version="1",
            variant="",
            variants=(),
            source_date_epoch=EPOCH,
            compression_level=3,
            distribution=Distribution("debian", "bookworm", "amd64", MIRROR, "", ("main",)),
            target=None,
            venvs=self.venvs,
            urls=self.urls,
            stages=tuple(made),
        )
        return build(recipe, plan(recipe, self.lock, kinds), self.store, Silent())[1:]

    def _copy_debian(self, context: Context) -> None:
        subprocess.run(["cp", "-aT", "--reflink=auto", self.debian, context.upper], check=True)

    def run(self, layers: Sequence[Built], *argv: str, env: Mapping[str, str] | None = None) -> str:
        """What a command over `debian` and `layers` prints."""
        with self.store.scratch() as scratch:
            spec = Spec("test", argv, (self.debian, *(built.layer.tree for built in layers)), env=env or {})
            sandbox.run(spec, log=scratch / "log")
            return (scratch / "log").read_text()


@pytest.fixture(scope="session")
def uv_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The locked uv, from the network."""
    store = Store(tmp_path_factory.mktemp("uv-store"))
    (blob,) = tool_blobs("uv")
    fetch(store, [blob], progress=Silent())
    return store.path(blob.sha256)


@pytest.fixture(scope="session")
def base(debian: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layers of a store that has `debian`, the one below those that tests build."""
    folder = tmp_path_factory.mktemp("base")
    bench = Bench(debian, folder, Store(folder / "store"))
    bench.build()
    return folder / "store/layers"


@pytest.fixture
def new_bench(debian: Path, base: Path, uv_wheel: Path, tmp_path: Path) -> Callable[[str], Bench]:
    """Makes a `Bench` whose store lies in the folder of the given name; all share the recipe's folder and `base`."""

    def make(name: str) -> Bench:
        folder = tmp_path / "recipe"
        folder.mkdir(exist_ok=True)
        bench = Bench(debian, folder, Store(tmp_path / name))
        bench.store.add(uv_wheel)
        for layer in base.glob("*/*"):
            target = bench.store.folder("layers", layer.parent.name) / layer.name
            target.symlink_to(layer)
        return bench

    return make


@pytest.fixture
def bench(new_bench: Callable[[str], Bench]) -> Bench:
    """A `Bench` for tests that need only one."""
    return new_bench("store")
