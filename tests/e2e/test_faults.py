"""What goes wrong is told in one line with the place and the way out, and nothing is left behind."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import User
from project import Project, project

from builder.lock import read

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300), pytest.mark.usefixtures("no_leftovers")]


@pytest.fixture
def here(user: User, tiny: Callable[[User], Path]) -> Project:
    """A project of its own with the recipe tiny, over the user's store."""
    return project(user, Path(tempfile.mkdtemp(dir=user.home)), "tiny", store=tiny(user))


@pytest.fixture
def roots(root_user: User, tiny: Callable[[User], Path]) -> Project:
    """`here` for root alone."""
    return project(root_user, Path(tempfile.mkdtemp(dir=root_user.home)), "tiny", store=tiny(root_user))


def recipe(of: Project) -> Path:
    return of.folder / "recipes/tiny"


def add(of: Project, text: str) -> None:
    """Append to the recipe."""
    path = recipe(of) / "recipe.toml"
    path.write_text(f"{path.read_text()}\n{text}\n")


def add_script(of: Project, name: str, script: str, more: str = "") -> None:
    """Append a stage of this name that runs `script`."""
    path = recipe(of) / "script"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    add(of, f'[[Stage]]\nName = "{name}"\nKind = "files"\nPostInstallationScripts = ["script"]\n{more}')


def refused(of: Project, *arguments: str, code: int = 1, prefix: tuple[str, ...] = ()) -> str:
    """The one line that a command which must fail says, after a look that it left no trace."""
    before = files(of)
    done = of.builder(*arguments, prefix=prefix)
    said = done.stderr.decode()
    assert (done.returncode, done.stdout) == (code, b""), said
    assert re.fullmatch(r"builder: [^\n]+\n", said), said
    after = files(of)
    assert [path for path, state in after.items() if before.get(path) != state] == []
    assert list((of.store / "tmp").glob("session-*")) == []
    return said


def files(of: Project) -> dict[str, str]:
    """The state of each file of project and store, but for those in the store's temporary folder.

    What a build uses it marks by its time, which is left out: blobs, and layers by their meta.json.
    """
    states = {}
    for marked, shown in ("", "%i %s"), ("!", "%i %s %T@"):
        which = ["-type", "f", *marked.split(), "(", "-path", f"{of.store}/blobs/*", "-o", "-name", "meta.json", ")"]
        argv = [
            "find",
            of.folder,
            of.store,
            "-path",
            of.store / "tmp",
            "-prune",
            "-o",
            *which,
            "-printf",
            f"%p\\0{shown}\n",
        ]
        found = subprocess.run(argv, capture_output=True, text=True, errors="surrogateescape").stdout
        states |= dict(line.split("\0") for line in found.splitlines())
    return states


def told(line: str) -> list[str]:
    """The arguments of the command that the line says to run."""
    return shlex.split(re.findall(r"run `builder ([^`]+)`", line)[-1])


def sha(of: Project, *arguments: str) -> str:
    """The hash of tiny's template, which must be that of the file and the one in SHA256SUMS."""
    made = of.json(*(arguments or ("build", "recipes/tiny")))
    path = Path(made["path"])
    assert sha256(path.read_bytes()).hexdigest() == made["sha256"]
    subprocess.run(["sha256sum", "--check", "--quiet", "--strict", "SHA256SUMS"], cwd=path.parent, check=True)
    assert sorted(os.listdir(path.parent)) == sorted(
        ["SHA256SUMS", *(f"tiny_1_amd64.{end}" for end in ("cdx.json", "manifest.json", "tar.zst"))]
    )
    return str(made["sha256"])


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a web server over `folder`."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def archive(path: Path, name: str, content: bytes = b"", **more: Any) -> bytes:
    """Make the tar.gz `path` with one member; its bytes."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in more.items():
        setattr(member, field, value)
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(member, io.BytesIO(content))
    return path.read_bytes()


def add_locked(of: Project, address: str, path: Path) -> Path:
    """Append a stage with the archive `path` of a web server, lock and fetch it; where the store has it."""
    data = path.read_bytes()
    digest = sha256(data).hexdigest()
    add(of, f'[[Url]]\nName = "data"\nUrl = "{address}/{path.name}"\nSha256 = "{digest}"\nSize = {len(data)}')
    add(of, '[[Stage]]\nName = "data"\nKind = "files"\nExtraTrees = ["url:data:/opt/data"]')
    of.json("lock", "recipes/tiny")
    of.json("fetch", "recipes/tiny")
    return of.store / "blobs/sha256" / digest[:2] / digest


@pytest.mark.parametrize(
    ("member", "what"),
    [
        ({"name": "../evil"}, "'../evil': leaves the folder"),
        ({"name": "/evil"}, "'/evil': absolute or not a name"),
        ({"name": "a", "type": tarfile.SYMTYPE, "linkname": "/etc/shadow"}, "'a': links to '/etc/shadow', outside"),
        ({"name": "a", "type": tarfile.SYMTYPE, "linkname": "../../x"}, "'a': the link leaves the folder"),
        ({"name": "a", "type": tarfile.LNKTYPE, "linkname": "/etc/shadow"}, "'/etc/shadow': absolute"),
        ({"name": "a", "type": tarfile.CHRTYPE}, "'a': is a device"),
        ({"name": "a", "content": bytes(100 << 20)}, "'a': unpacks to more than 67,108,864 bytes"),
        ({}, "not a sound archive"),
    ],
    ids=["dotdot", "absolute", "link", "link-out", "hard-link", "device", "bomb", "cut"],
)
def test_an_archive_that_means_harm(here: Project, member: dict[str, Any], what: str) -> None:
    path = recipe(here) / "evil.tar.gz"
    if member:
        archive(path, **member)
    else:
        path.write_bytes(archive(path, "a", os.urandom(100_000))[:50_000])
    add(here, '[[Stage]]\nName = "evil"\nKind = "files"\nExtraTrees = ["evil.tar.gz:/opt/evil"]')
    said = refused(here, "build", "recipes/tiny")
    assert said.startswith(f"builder: stage evil: {path}: ")
    assert what in said
    assert "nothing of it was unpacked" in said


def test_a_locked_archive_that_means_harm_is_named_by_its_file_name(roots: Project) -> None:
    archive(roots.folder / "evil.tar.gz", "../evil")
    with served(roots.folder) as address:
        add_locked(roots, address, roots.folder / "evil.tar.gz")
    assert refused(roots, "build", "recipes/tiny").startswith("builder: stage data: evil.tar.gz: member '../evil': ")


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("ExtraTrees =", "ExtraTree =", r'recipe\.toml:\d+: unknown key "ExtraTree" .*did you mean "ExtraTrees"\?'),
        ("[Content]", "[Contents]", r'recipe\.toml:\d+: unknown section "Contents"; did you mean "Content"\?'),
        ('Kind = "files"', 'Kind = "file"', r'recipe\.toml:\d+: unknown Kind "file" .*did you mean "files"\?'),
        ('"files:/"', '"file:/"', r"recipe\.toml:\d+: .*file\b"),
        ("[[Stage]]", "[[Stage", r"recipe\.toml:\d+: is not TOML"),
    ],
)
def test_a_wrong_recipe(roots: Project, old: str, new: str, what: str) -> None:
    path = recipe(roots) / "recipe.toml"
    path.write_text(path.read_text().replace(old, new, 1))
    assert re.search(what, refused(roots, "build", "recipes/tiny", code=2))


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("build", "recipes/none"), "recipes/none: No such file"),
        (("build", "recipes/tiny", "--variant", "x"), 'has no variant "x"'),
        (("build", "recipes/tiny", "--explian"), "No such option.*--explain.*builder build --help"),
        (("biuld", "recipes/tiny"), "No such command.*builder --help"),
        (("build",), "Missing argument 'RECIPE'.*builder build --help"),
        (("store", "gc", "--max-size", "much"), "--max-size.*a size such as 50G.*builder store gc --help"),
    ],
)
def test_a_wrong_command_line(roots: Project, arguments: tuple[str, ...], what: str) -> None:
    assert re.search(what, refused(roots, *arguments, code=2))


def test_a_flipped_hash_of_a_deb(roots: Project) -> None:
    path = roots.folder / "locks/tiny/lock.toml"
    debs = read(path.parent).debs["base"]
    deb = next(deb for deb in debs if deb.name == "netbase")
    wrong = f"{deb.blob.sha256[:-1]}{'0' if deb.blob.sha256[-1] != '0' else '1'}"
    with served(roots.store / "blobs/sha256") as address:
        text = path.read_text()
        for url in deb.blob.urls:
            text = text.replace(url, f"{address}/{deb.blob.sha256[:2]}/{deb.blob.sha256}")
        path.write_text(text.replace(f'sha256 = "{deb.blob.sha256}"', f'sha256 = "{wrong}"'))
        said = refused(roots, "build", "recipes/tiny")
        assert said.startswith(f"builder: stage base: {deb.blob.filename}, a locked file, is not in the store; run ")
        assert told(said) == ["fetch", str(recipe(roots))]
        said = refused(roots, *told(said))
        assert f"builder: {deb.blob.filename}: {address}/" in said
        assert f"expected sha256 {wrong}, got {deb.blob.sha256}" in said
        assert "run `builder lock RECIPE --upgrade netbase`" in said


def test_a_flipped_hash_of_a_wheel(root_user: User, tiny: Callable[[User], Path]) -> None:
    here = project(root_user, Path(tempfile.mkdtemp(dir=root_user.home)), "smoke", store=tiny(root_user))
    folder = here.folder / "locks/smoke"
    wheel = read(folder).venvs["smoke"][0]
    path = folder / "lock.toml"
    path.write_text(path.read_text().replace(wheel.blob.sha256, wheel.blob.sha256[::-1]))
    said = refused(here, "build", "recipes/smoke")
    assert "wheels-smoke.txt:" in said
    assert "run `builder lock`" in said


def test_a_lock_that_is_missing_cut_or_of_another_recipe(roots: Project) -> None:
    path = roots.folder / "locks/tiny/lock.toml"
    good = path.read_text()
    path.write_text(good[:5000])
    assert f"builder: {path}: not a lock: " in refused(roots, "build", "recipes/tiny")
    path.unlink()
    said = refused(roots, "build", "recipes/tiny")
    assert said.startswith(f"builder: {path}: there is no lock yet; run ")
    assert told(said) == ["lock", str(recipe(roots))]
    path.write_text(good)
    text = (recipe(roots) / "recipe.toml").read_text()
    (recipe(roots) / "recipe.toml").write_text(text.replace('"netbase",', '"netbase", "tree",'))
    said = refused(roots, "build", "recipes/tiny")
    assert re.search(r"the lock is not of this recipe any more: .*packages of stage base changed", said), said
    assert told(said) == ["lock", str(recipe(roots))]


@pytest.mark.parametrize("harm", ["cut", "flip"])
def test_a_damaged_blob_is_dropped_and_the_command_told_brings_it_back(here: Project, harm: str) -> None:
    archive(here.folder / "data.tar.gz", "data", os.urandom(50_000))
    with served(here.folder) as address:
        blob = add_locked(here, address, here.folder / "data.tar.gz")
        good = blob.read_bytes()
        blob.chmod(0o644)
        blob.write_bytes(good[:-1] if harm == "cut" else good[:-1] + bytes([good[-1] ^ 1]))
        said = refused(here, "build", "recipes/tiny")
        assert said.startswith("builder: stage data: data.tar.gz")
        assert ("was dropped from the store" if harm == "flip" else "is not in the store") in said
        here.json(*told(said))
    assert blob.read_bytes() == good
    sha(here)


@pytest.mark.parametrize("name", ["tree/etc/more/file", "tree/etc/more", "index", "meta.json"])
@pytest.mark.parametrize("harm", ["write", "remove"])
def test_a_layer_that_was_changed_on_disk_is_built_again(roots: Project, name: str, harm: str) -> None:
    (recipe(roots) / "files/etc/more").mkdir()
    (recipe(roots) / "files/etc/more/file").write_text("more\n")
    made = roots.json("build", "recipes/tiny")
    folder = next(roots.store.glob(f"layers/*/{made['stages'][-1]['key']}"))
    path = folder / name
    Path(made["path"]).unlink()
    if path.is_dir():
        (path / "added").touch() if harm == "write" else (path / "file").unlink()
    elif harm == "write":
        path.write_bytes(b"{}")
    else:
        path.unlink()
    done = roots.builder("build", "recipes/tiny")
    assert done.returncode == 0
    if name != "meta.json":
        assert re.fullmatch(r"files: layer \w{12} was changed on disk \(\S+\), dropped; .*\n", done.stderr.decode())
    assert sha(roots) == made["sha256"]


def test_a_changed_digest_of_a_layer_is_noticed(roots: Project) -> None:
    made = roots.json("build", "recipes/tiny")
    path = next(roots.store.glob(f"layers/*/{made['stages'][-1]['key']}")) / "meta.json"
    text = path.read_text()
    path.write_text(text.replace(json.loads(text)["digest"], "0" * 64))
    assert "was changed on disk (meta.json)" in roots.builder("build", "recipes/tiny").stderr.decode()
    assert sha(roots) == made["sha256"]


@pytest.mark.parametrize("name", ["tiny_1_amd64.tar.zst", "tiny_1_amd64.manifest.json", "tiny_1_amd64.cdx.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_damaged_template_is_made_again(roots: Project, name: str, harm: str) -> None:
    expected = sha(roots)
    path = roots.artifacts / name
    good = path.read_bytes()
    middle = len(good) // 2
    if harm == "flip":
        path.write_bytes(good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :])
    elif harm == "cut":
        path.write_bytes(good[:middle])
    else:
        path.unlink()
    assert sha(roots) == expected
    assert path.read_bytes() == good


@pytest.mark.parametrize("text", [None, "", "\0\xff", "[]", "null", "{}"])
def test_lost_and_damaged_records_cost_no_more_than_time(roots: Project, text: str | None) -> None:
    expected = sha(roots)
    for path in (roots.artifacts / "SHA256SUMS", *roots.store.glob("outputs/*"), *roots.store.glob("last/tiny/*")):
        if text is None:
            path.unlink()
        else:
            path.write_text(text)
    rows = roots.json("build", "recipes/tiny", "--dry-run")
    assert [row["reason"] for row in rows] == ["cached", "cached"]
    assert sha(roots) == expected


def test_a_stage_that_reaches_for_the_network(here: Project) -> None:
    add_script(here, "net", "exec python3 -c 'import urllib.request as r; r.urlopen(\"http://deb.debian.org/\")'")
    said = refused(here, "build", "recipes/tiny")
    assert said.startswith("builder: stage net: ")
    assert "stages have no network: lock the input instead" in said
    log = Path(re.findall(r"all output is in (\S+)", said)[0])
    assert "urlopen error" in log.read_text()


def test_a_stage_that_takes_twice_its_memory(here: Project) -> None:
    add_script(
        here, "fat", "exec python3 -c 'import time; x = b\"x\" * (256 << 20); time.sleep(60)'", "MemoryMiB = 128"
    )
    said = refused(here, "build", "recipes/tiny")
    assert re.search(r"stage fat: .*: used \d+ MiB, over its limit of 128 MiB; raise MemoryMiB of the stage", said)


def test_a_stage_that_takes_twice_its_time(here: Project) -> None:
    add_script(here, "slow", "sleep 60", "TimeoutSeconds = 2")
    said = refused(here, "build", "recipes/tiny")
    assert re.search(r"stage slow: .*: ran for 2 s, its limit; raise TimeoutSeconds of the stage", said)


def small(folder: Path, size: str, fill: str = "true") -> tuple[str, ...]:
    """A prefix that runs a command where `folder` is a disk of this size, which nobody else sees, after `fill`.

    Files that are newer afterwards, and folders of unfinished work, are told on stderr; not blobs, which are marked as
    used by their time.
    """
    script = (
        'mkdir -p "$0"; mount -t tmpfs -o size=$1,mode=755 small "$0"; cd "$0"; eval "$2"; shift 2; touch /dev/shm/$$;'
        '"$@" || code=$?; find . -path ./blobs -prune -o -newer /dev/shm/$$ -type f -not -name lock -not -path'
        ' "*/logs/*" -print >&2;'
        'find . -name "session-*" -o -name ".pack-*" >&2; rm /dev/shm/$$; exit ${code:-0}'
    )
    return "unshare", "--mount", "sh", "-ec", script, str(folder), size, fill


@pytest.mark.parametrize("size", ["100k", "20m", "47m"])
def test_a_full_disk_under_the_template(roots: Project, size: str) -> None:
    folder = roots.folder / "small"
    said = refused(roots, "build", "recipes/tiny", "--output", str(folder), prefix=small(folder, size))
    assert said == (
        f"builder: {folder}: No space left on device; free some space or name another folder with --output\n"
    )


@pytest.mark.parametrize(
    ("size", "what"),
    [
        ("20m", "74,.* bytes to fetch, .* free"),
        ("80m", "stage base: .*No space left on device"),  # copies of the packages
        ("200m", "stage base: .*(the disk is full|No space left on device)"),  # what they unpack to
    ],
)
def test_a_full_disk_under_the_store(roots: Project, size: str, what: str) -> None:
    fill = "true" if size == "20m" else f"cp -a {roots.store}/blobs ."
    folder = roots.folder / "small"
    of = roots.with_env(BUILDER_STORE=str(folder))
    said = refused(of, "template", "recipes/tiny", prefix=small(folder, size, fill))
    assert re.search(what, said)
    assert "`builder store gc`" in said


@pytest.mark.parametrize("size", ["1m", "30m", "50m"])
def test_a_full_disk_under_a_stage(roots: Project, size: str) -> None:
    (recipe(roots) / "big").write_bytes(os.urandom(28 << 20))
    add(roots, '[[Stage]]\nName = "big"\nKind = "files"\nExtraTrees = ["big:/opt/big"]')
    said = refused(roots, "build", "recipes/tiny", prefix=small(roots.store / "tmp", size))
    assert re.match(r"builder: stage big: .*(No space left on device|the disk is full)", said)
    assert "`builder store gc`" in said
