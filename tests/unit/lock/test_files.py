"""Locks on disk: what is written is read back, and what was damaged is named."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
import tomli
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.errors import BuilderError
from builder.lock import read, write
from builder.lock.entries import decode, normal
from builder.lock.files import render
from builder.lock.model import Blob, Deb, Lock, Wheel

SHA = "0123456789abcdef" * 4


def blob(filename: str, sha256: str = SHA, size: int = 5) -> Blob:
    return Blob(sha256, size, filename, (f"https://example.org/{filename}", f"https://example.net/{filename}"))


def lock() -> Lock:
    return Lock(
        recipe="demo",
        snapshot="20251016T000000Z",
        requests={"distribution": SHA, "deb:base": SHA, "deb:more": SHA, "venv:app": SHA, "url:driver": SHA},
        debs={
            "base": (
                Deb("zlib1g", "1:1.2.13.dfsg-1", "amd64", "bookworm", blob("zlib1g_1.2.13_amd64.deb")),
                Deb("adduser", "3.134", "all", "bookworm-security", blob("adduser_3.134_all.deb")),
            ),
            "more": (),
        },
        venvs={
            "app": (
                Wheel("torch", "2.8.0", blob("torch-2.8.0-cp311-cp311-linux_x86_64.whl"), "2025-08-06T14:53:45Z"),
                Wheel("idna", "3.10", blob("idna-3.10-py3-none-any.whl"), "2024-09-15T18:07:37Z"),
            )
        },
        urls={"driver": blob("driver.run")},
    )


words = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,8}", fullmatch=True)
shas = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
names = st.text(st.characters(exclude_characters="/", exclude_categories=("Cs", "Cc")), min_size=1).filter(
    lambda text: text not in (".", "..")
)
blobs = st.builds(
    Blob, shas, st.integers(0, 1 << 40), names, st.lists(words.map("https://x/".__add__), min_size=1).map(tuple)
)
versions = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9.+:~!-]{0,8}", fullmatch=True)
debs = st.builds(Deb, words, versions, st.just("amd64"), words, blobs)
wheels = st.builds(Wheel, words, versions, blobs, st.just("2025-01-01T00:00:00Z"))


def sets(items: st.SearchStrategy[object]) -> st.SearchStrategy[dict[str, tuple[object, ...]]]:
    return st.dictionaries(words, st.lists(items, max_size=3, unique_by=lambda item: item.name).map(tuple), max_size=3)


@st.composite
def locks(draw: st.DrawFn) -> Lock:
    parts = draw(sets(debs)), draw(sets(wheels)), draw(st.dictionaries(words, blobs, max_size=3))
    kinds = zip(("deb", "venv", "url"), parts, strict=True)
    requests = {f"{kind}:{name}": draw(shas) for kind, part in kinds for name in part}
    return Lock("demo", draw(words), requests, *parts)


@settings(max_examples=40)
@given(locks())
def test_every_lock_survives_its_text(lock: Lock) -> None:
    assert decode(tomli.loads(render(lock)), Path("lock.toml")) == normal(lock)


def test_reads_back_what_it_wrote(tmp_path: Path) -> None:
    assert write(lock(), tmp_path / "new" / "demo")
    assert read(tmp_path / "new" / "demo") == normal(lock())


def test_a_second_write_touches_nothing(tmp_path: Path) -> None:
    write(lock(), tmp_path)
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.iterdir()}
    assert not write(read(tmp_path), tmp_path)
    assert before == {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.iterdir()}
    assert set(before) == {"lock.toml", "wheels-app.txt"}


def test_the_text_is_in_pip_tools_format(tmp_path: Path) -> None:
    write(lock(), tmp_path)
    assert (tmp_path / "wheels-app.txt").read_text() == (
        f"idna==3.10 \\\n    --hash=sha256:{SHA}\ntorch==2.8.0 \\\n    --hash=sha256:{SHA}\n"
    )


def test_order_of_the_lock_does_not_reach_the_text() -> None:
    turned = lock()
    turned = Lock(
        turned.recipe,
        turned.snapshot,
        dict(reversed(turned.requests.items())),
        {name: debs[::-1] for name, debs in reversed(turned.debs.items())},
        {name: wheels[::-1] for name, wheels in turned.venvs.items()},
        turned.urls,
    )
    assert render(turned) == render(lock())


def test_an_environment_that_is_gone_loses_its_text(tmp_path: Path) -> None:
    write(lock(), tmp_path)
    (tmp_path / "README").write_text("mine")
    smaller = Lock("demo", "", {"distribution": SHA})
    assert write(smaller, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"README", "lock.toml"}
    assert read(tmp_path) == smaller


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("idna==3.10", "idna==3.11", "wheels-app.txt:1: 'idna==3.11 \\\\', where lock.toml has 'idna==3.10 \\\\'"),
        (f"torch==2.8.0 \\\n    --hash=sha256:{SHA}\n", "", "wheels-app.txt:3: nothing, where lock.toml has 'torch"),
        ("idna", "# mine\nidna", "wheels-app.txt:1: '# mine'"),
    ],
)
def test_a_text_that_disagrees_names_the_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    write(lock(), tmp_path)
    text = tmp_path / "wheels-app.txt"
    text.write_text(text.read_text().replace(old, new))
    with pytest.raises(BuilderError) as caught:
        read(tmp_path)
    assert message in str(caught.value)
    assert "run `builder lock`" in str(caught.value)
    assert read(tmp_path, texts=False) == normal(lock())


def test_a_text_too_many_is_an_error(tmp_path: Path) -> None:
    write(lock(), tmp_path)
    (tmp_path / "wheels-old.txt").write_text("")
    with pytest.raises(BuilderError, match=r"wheels-old\.txt: lock\.toml has no such environment"):
        read(tmp_path)


@pytest.mark.parametrize("cut_after", [0, 1, 2])
def test_a_write_that_is_cut_short_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut_after: int) -> None:
    write(lock(), tmp_path)
    newer = lock()
    changed = Wheel("idna", "3.11", blob("idna-3.11-py3-none-any.whl", "f" * 64), "2025-10-12T00:00:00Z")
    newer = Lock(newer.recipe, "20251017T000000Z", newer.requests, newer.debs, {"app": (changed,)}, newer.urls)
    renamed = []
    rename = Path.rename

    def cut(path: Path, target: Path) -> Path:
        if len(renamed) == cut_after:
            raise KeyboardInterrupt
        renamed.append(path.name)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", cut)
    if cut_after < 2:
        with pytest.raises(KeyboardInterrupt):
            write(newer, tmp_path)
    else:
        write(newer, tmp_path)
    monkeypatch.undo()
    assert not (tmp_path / ".new").exists()
    if cut_after == 0:
        assert read(tmp_path) == normal(lock())
    elif cut_after == 1:
        with pytest.raises(BuilderError, match=r"wheels-app\.txt:1"):
            read(tmp_path)
    else:
        assert read(tmp_path) == normal(newer)


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".new").mkdir()
    (tmp_path / ".new" / "lock.toml").write_text("half")
    write(lock(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock.toml", "wheels-app.txt"]


def test_a_full_disk_leaves_the_old_lock(tmp_path: Path) -> None:
    write(Lock("demo", "", {"distribution": SHA}), tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    try:
        with pytest.raises(BuilderError, match="cannot write"):
            write(lock(), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert read(tmp_path) == Lock("demo", "", {"distribution": SHA})
    assert os.listdir(tmp_path) == ["lock.toml"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "idna"', 'name = "../idna"', "name of wheel ../idna is '../idna'"),
        ('venv = "app"', 'venv = "../app"', "venv of wheel idna is '../app'"),
        ('filename = "driver.run"', 'filename = "../driver"', "filename of url driver is '../driver'"),
        ("size = 5", "size = -5", "size of deb adduser is -5"),
        ("size = 5", "size = true", "size of deb adduser is True"),
        (f'sha256 = "{SHA}"', 'sha256 = "abc"', "sha256 of deb adduser is 'abc'"),
        ('suite = "bookworm-security"\n', "", "deb adduser has no suite"),
        ('suite = "bookworm-security"', 'suit = 1\nsuite = "x"', "deb adduser has an unknown key 'suit'"),
        ('stage = "base"\nname = "zlib1g"', 'stage = "other"\nname = "zlib1g"', "zlib1g is locked for deb other"),
        ('name = "torch"', 'name = "idna"', "wheel idna is there twice"),
        ('name = "driver"', 'name = "drive"', "drive is locked for url drive, which was not asked for"),
        ("[[url]]", "[[uri]]", "the lock has no url"),
        ('recipe = "demo"', "recipe = 1", "recipe and snapshot must be text"),
        ("[requests]", "[requests", "not a lock: "),
        ('"venv:app"', '"env:app"', "request 'env:app'"),
    ],
)
def test_a_damaged_lock_is_one_error_with_its_place(tmp_path: Path, old: str, new: str, message: str) -> None:
    write(lock(), tmp_path)
    path = tmp_path / "lock.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(BuilderError) as caught:
        read(tmp_path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


@given(st.binary(max_size=64))
def test_any_bytes_are_a_lock_or_an_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("lock")
    (folder / "lock.toml").write_bytes(data)
    with pytest.raises(BuilderError):
        read(folder)


def test_no_lock_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(BuilderError, match="there is no lock yet; run `builder lock`"):
        read(tmp_path)


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(BuilderError, match="not asked for"):
        write(Lock("demo", "", {}, urls={"driver": blob("driver.run")}), tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


def test_odd_text_survives_toml() -> None:
    odd = Lock("demo", '"\\ \t\x7f é 😀', {})
    assert tomli.loads(render(odd))["snapshot"] == odd.snapshot
