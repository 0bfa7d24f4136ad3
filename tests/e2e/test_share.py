"""What one machine built another takes: keys, exported stores, and templates looked at without building."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import HOUSE, User
from project import Project, project, seed

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900), pytest.mark.usefixtures("no_leftovers")]

Tiny = Callable[[User], Path]


@dataclass(frozen=True)
class Exported:
    """An exported store of `tiny`, which everybody may read, and the template that was built with it."""

    path: Path
    sha256: str


@pytest.fixture(scope="module")
def exports(tiny: Tiny) -> Callable[[User], Exported]:
    """The export of a user's own store."""
    made: dict[str, Exported] = {}

    def of(user: User) -> Exported:
        if user.name not in made:
            theirs = fresh(user, "exporting", store=tiny(user))
            path = Path(f"/tmp/builder-share-{os.getpid()}-{user.name}.tar")
            done = theirs.builder("store", "export", "recipes/tiny", str(path))
            assert done.returncode == 0, done.stderr.decode()
            path.chmod(0o644)
            made[user.name] = Exported(path, theirs.json("template", "recipes/tiny")["sha256"])
        return made[user.name]

    yield of
    for exported in made.values():
        exported.path.unlink()


def fresh(user: User, name: str, store: Path | None = None) -> Project:
    """A project of `tiny` in a folder of its own, with an empty store unless one is given."""
    folder = user.home / f"share-{name}-{time.monotonic_ns()}"
    folder.mkdir()
    return project(user, folder, "tiny", store=store or folder / "store")


def taken(of: Project, path: Path | str) -> dict[str, object]:
    found: dict[str, object] = of.json("store", "import", str(path))
    return found


def reasons(of: Project) -> tuple[str, list[str]]:
    """The sha256 of the template that `of` builds, and why each stage was built."""
    made = of.json("template", "recipes/tiny")
    return made["sha256"], [stage["reason"] for stage in made["stages"]]


def test_with_a_warm_store_a_second_job_builds_nothing(user: User, exports: Callable[[User], Exported]) -> None:
    exported = exports(user)
    job = fresh(user, "second")
    done = taken(job, exported.path)
    assert (done["layers"], done["there"], done["left_out"]) == (2, 0, [])
    assert job.json("fetch", "recipes/tiny")["fetched"] == 0
    assert reasons(job) == (exported.sha256, ["cached", "cached"])
    assert job.builder("store", "verify").returncode == 0
    again = taken(job, exported.path)
    assert (again["blobs"], again["layers"], again["left_out"]) == (0, 0, [])


def test_the_job_of_ci_takes_its_cache_and_makes_it_anew_when_it_is_damaged(root_user: User, tiny: Tiny) -> None:
    cache = root_user.home / f"ci-cache-{time.monotonic_ns()}"
    archive, key = cache / "store.tar", cache / "key"

    def job(name: str, *prefix: str, store: Path | None = None) -> tuple[str, str]:
        of = fresh(root_user, name, store=store)
        done = of.user.run([*prefix, str(HOUSE / "scripts/ci-cache"), str(cache), str(of.folder / "recipes/tiny")])
        assert done.returncode == 0, done.stderr.decode()
        said = done.stdout.decode() + done.stderr.decode()
        assert key.read_bytes() == of.builder("key", "recipes/tiny").stdout
        assert ("exported" in said) == (name != "second")
        return re.findall("sha256:([0-9a-f]{64})", said)[0], said

    first, _ = job("first", store=tiny(root_user))
    assert job("second", "unshare", "--net")[0] == first, "it needs no network: the cache has all"
    os.truncate(archive, archive.stat().st_size - (1 << 20))
    again, said = job("third")
    assert again == first
    assert "left out" in said
    archive.unlink()
    assert job("fourth", store=tiny(root_user))[0] == first, "a key without an archive is no cache"
    assert archive.exists()


@pytest.mark.parametrize(("giver", "taker"), [("root_user", "ordinary_user"), ("ordinary_user", "root_user")])
def test_what_root_built_a_user_takes_and_the_other_way_round(
    request: pytest.FixtureRequest, exports: Callable[[User], Exported], giver: str, taker: str
) -> None:
    """Layers lie under other owners on disk, and are the same within the id map."""
    exported = exports(request.getfixturevalue(giver))
    job = fresh(request.getfixturevalue(taker), "other")
    assert taken(job, exported.path)["left_out"] == []
    assert reasons(job) == (exported.sha256, ["cached", "cached"])


def test_through_a_pipe(root_user: User, exports: Callable[[User], Exported], tiny: Tiny) -> None:
    there = fresh(root_user, "there", store=tiny(root_user))
    here = fresh(root_user, "here")
    with (
        there.user.popen(there.argv("store", "export", "recipes/tiny", "-"), stdout=subprocess.PIPE) as export,
        here.user.popen(here.argv("store", "import", "-"), stdin=export.stdout, stdout=subprocess.PIPE) as taking,
    ):
        said, _ = taking.communicate()
    assert re.fullmatch(r"\d+ blobs and 2 layers taken, [\d.]+ MiB; 0 in the store before, 0 left out\n", said.decode())
    assert (export.returncode, taking.returncode) == (0, 0)
    assert reasons(here)[1] == ["cached", "cached"]


def harmed(exported: Exported, folder: Path, which: Callable[[str], bool], cut: bool = False) -> Path:
    """A copy of the archive with one byte changed in the first member of that name, or cut off there."""
    data = bytearray(exported.path.read_bytes())
    with tarfile.open(exported.path) as tar:
        info = next(info for info in tar if which(info.name))
    place = info.offset_data + info.size // 2
    data[place] ^= 1
    path = folder / "harmed.tar"
    path.write_bytes(data[:place] if cut else data)
    path.chmod(0o644)
    return path


def test_damage_costs_time_and_nothing_else(root_user: User, exports: Callable[[User], Exported]) -> None:
    exported = exports(root_user)
    job = fresh(root_user, "damaged")
    with tarfile.open(exported.path) as tar:
        files_layer = [info.name for info in tar if info.name.startswith("layers/")][-1]
    done = job.builder("store", "import", str(harmed(exported, job.folder, lambda name: name == files_layer)))
    assert done.returncode == 1
    assert done.stdout.decode().endswith("0 in the store before, 1 left out\n")
    assert done.stderr.decode().startswith("layer files of tiny ")
    assert done.stderr.decode().endswith(": left out\n")
    assert reasons(job) == (exported.sha256, ["cached", "never built in this store"])


def test_half_an_archive_costs_time_and_nothing_else(root_user: User, exports: Callable[[User], Exported]) -> None:
    exported = exports(root_user)
    job = fresh(root_user, "half")
    half = harmed(exported, job.folder, lambda name: name.endswith("000001"), cut=True)
    said = job.builder("store", "import", str(half), "--json")
    assert said.returncode == 1
    done = json.loads(said.stdout)
    assert done["layers"] == 0
    assert [row["what"] for row in done["left_out"]] == ["layer base of tiny", "layer files of tiny"]
    assert job.builder("store", "verify").returncode == 0
    assert taken(job, exported.path)["there"] == done["blobs"]
    assert reasons(job) == (exported.sha256, ["cached", "cached"])


def test_a_reader_that_goes_away_is_one_line(root_user: User, tiny: Tiny) -> None:
    there = fresh(root_user, "pipe", store=tiny(root_user))
    script = '"$@" | head -c 1000 >/dev/null; exit "${PIPESTATUS[0]}"'
    done = there.user.run(["bash", "-c", script, "bash", *there.argv("store", "export", "recipes/tiny", "-")])
    assert done.returncode == 1
    assert done.stderr.decode() == "builder: stdout: Broken pipe\n"


def test_a_stopped_export_leaves_nothing(root_user: User, tiny: Tiny) -> None:
    there = fresh(root_user, "stopped", store=tiny(root_user))
    target = there.folder / "out.tar"
    status = 0
    while status == 0:  # it may be done before the signal comes
        target.write_bytes(b"before")
        with there.user.popen(there.argv("store", "export", "recipes/tiny", str(target))) as running:
            while running.poll() is None and not list(there.folder.glob(".out.tar.part-*")):
                time.sleep(0.005)
            running.send_signal(signal.SIGTERM)
        status = running.returncode
    assert status == 130
    assert [path.name for path in there.folder.glob("*out.tar*")] == ["out.tar"]
    assert target.read_bytes() == b"before"


def test_what_a_killed_export_left_goes_with_the_next(root_user: User, tiny: Tiny) -> None:
    there = fresh(root_user, "killed", store=tiny(root_user))
    target = there.folder / "out.tar"
    while not (left := list(there.folder.glob(".out.tar.part-*"))):
        target.unlink(missing_ok=True)
        with there.user.popen(there.argv("store", "export", "recipes/tiny", str(target))) as running:
            while running.poll() is None and not list(there.folder.glob(".out.tar.part-*")):
                time.sleep(0.005)
            running.kill()
    assert len(left) == 1
    assert not target.exists()
    assert there.builder("store", "export", "recipes/tiny", str(target)).returncode == 0
    assert [path.name for path in there.folder.glob("*out.tar*")] == ["out.tar"]


def test_a_full_disk_is_one_line_and_a_sound_store(root_user: User, exports: Callable[[User], Exported]) -> None:
    job = fresh(root_user, "full")
    script = """
        mkdir "$BUILDER_STORE"; mount -t tmpfs -o size=120m tmpfs "$BUILDER_STORE"
        "$@" store import "$ARCHIVE"; echo "status $?"
        "$@" store verify; ls "$BUILDER_STORE"/layers 2>/dev/null | wc -l
    """
    small = job.with_env(ARCHIVE=str(exports(root_user).path))
    done = small.user.run(["unshare", "--mount", "bash", "-c", script, "bash", *small.argv()])
    assert done.stdout.decode().split("\n")[:2] == ["status 1", "sound"]
    line = done.stderr.decode()
    assert line.count("\n") == 1
    assert "No space left on device; free some space" in line


def test_what_is_not_built_is_left_out_with_a_line(root_user: User) -> None:
    job = fresh(root_user, "unbuilt")
    seed(job.store, job.folder, ["tiny"])
    blobs = sorted(path for path in (job.store / "blobs").rglob("*") if path.is_file())
    blobs[0].unlink()
    harmed = bytearray(blobs[1].read_bytes())
    harmed[0] ^= 1
    blobs[1].chmod(0o644)
    blobs[1].write_bytes(harmed)
    done = job.builder("store", "export", "recipes/tiny", str(job.folder / "out.tar"))
    assert done.returncode == 0
    assert done.stderr.decode().splitlines() == [
        f"2 of {len(blobs)} locked files are not in the store, or were damaged there: left out",
        "stage base and those above it are not built: left out",
        f"{len(blobs) - 2} blobs and 0 layers exported",
    ]
    assert taken(fresh(root_user, "taker"), job.folder / "out.tar")["left_out"] == []


def test_an_export_of_nothing_is_a_failure(root_user: User) -> None:
    job = fresh(root_user, "empty")
    argv = ("store", "export", "recipes/tiny", str(job.folder / "out.tar"))
    done = job.builder(*argv)
    assert (done.returncode, job.store.exists()) == (1, False)
    assert done.stderr.decode().startswith(f"builder: {job.store}: there is no store; ")
    job.store.mkdir()
    done = job.builder(*argv)
    assert done.returncode == 1
    assert re.search(r": has nothing of .*/tiny; is BUILDER_STORE as in the build\?\n$", done.stderr.decode())
    assert not (job.folder / "out.tar").exists()


def test_the_key_needs_no_store_and_moves_with_what_is_copied(user: User, root_user: User) -> None:
    one, other = fresh(user, "key-one"), fresh(root_user, "key-other")
    keys = {of.builder("key", "recipes/tiny").stdout for of in (one, other)}
    assert len(keys) == 1
    key = keys.pop()
    assert re.fullmatch(rb"[0-9a-f]{64}\n", key)
    assert not one.store.exists()
    (one.folder / "recipes/tiny/files/etc").mkdir(parents=True, exist_ok=True)
    (one.folder / "recipes/tiny/files/etc/added").write_text("more")
    assert one.builder("key", "recipes/tiny").stdout != key


def test_a_template_is_verified_and_compared(user: User, tiny: Tiny) -> None:
    job = fresh(user, "templates", store=tiny(user))
    job.json("template", "recipes/tiny")
    first = next(job.artifacts.glob("*.tar.zst"))
    assert job.json("verify", str(first))["differences"] == []
    recipe = job.folder / "recipes/tiny/recipe.toml"
    recipe.write_text(recipe.read_text().replace('ImageVersion = "1"', 'ImageVersion = "2"'))
    added = job.folder / "recipes/tiny/files/etc/added"
    added.parent.mkdir(parents=True, exist_ok=True)
    added.write_text("more")
    second = Path(job.json("template", "recipes/tiny")["path"])
    told = job.json("diff", str(first), str(second))
    assert "etc/added" in [row["name"] for row in told["file"] if row["a"] is None]
    assert [row["name"] for row in told["stage"]] == ["files"]
    assert told["deb"] == told["wheel"] == []
    manifest = json.loads(second.with_name(second.name.replace(".tar.zst", ".manifest.json")).read_bytes())
    assert len(manifest["files"]) == job.json("verify", str(second))["files"]
