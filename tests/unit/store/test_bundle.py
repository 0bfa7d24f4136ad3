"""From store to store as one stream: everything arrives, damage costs only what it hits, hostile archives nothing."""

from __future__ import annotations

import io
import json
import os
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from builder import canonical, tree
from builder.errors import BuilderError
from builder.lock.model import Blob
from builder.progress import Silent
from builder.store import Layer, Store, bundle, upkeep

from .conftest import blob

NOISE = random.Random(1).randbytes(20 << 20)  # more than two frames, and zstd makes it no smaller


def layer(store: Store, stage: str, content: bytes) -> Layer:
    body = {"stage": stage}
    with store.draft(canonical.digest(body)) as draft:
        (draft.upper / "opt").mkdir()
        (draft.upper / "opt/big").write_bytes(content)
        (draft.upper / "opt/link").symlink_to("big")
        tree.normalise(draft.upper, 1000, [(0, 1 << 62)])
        facts = {"recipe": "demo", "stage": stage, "kind": "files", "body": body, "over": []}
        return draft.commit(tree.scan(draft.upper), facts)


@pytest.fixture
def blobs(store: Store) -> list[Blob]:
    contents = [b"first" * 1000, b"second" * 1000, b""]
    for content in contents:
        store.add_stream([content])
    return [blob(content, name=f"file-{number}") for number, content in enumerate(contents)]


@pytest.fixture
def layers(store: Store) -> list[Layer]:
    return [layer(store, "base", NOISE), layer(store, "top", b"small")]


@pytest.fixture
def exported(store: Store, blobs: list[Blob], layers: list[Layer]) -> bytes:
    out = io.BytesIO()
    bundle.write(store, blobs, layers, out, Silent())
    return out.getvalue()


@pytest.fixture
def other(tmp_path: Path) -> Store:
    return Store(tmp_path / "other")


def take(store: Store, data: bytes) -> bundle.Taken:
    return bundle.read(store, io.BytesIO(data), Silent())


def sound(store: Store) -> None:
    assert upkeep.verify(store) == []
    assert [found.changed() for found in store.layers() if found.changed()] == []


def test_everything_arrives_sound_and_with_stat_data_of_its_new_place(
    exported: bytes, other: Store, blobs: list[Blob], layers: list[Layer]
) -> None:
    done = take(other, exported)
    assert (done.blobs, done.layers, done.there, done.left_out) == (3, 2, 0, ())
    assert all(other.sound(wanted) for wanted in blobs)
    for wanted in layers:
        found = other.layer(wanted.key)
        assert found is not None
        assert (found.digest, found.size, found.files, found.facts) == (
            wanted.digest,
            wanted.size,
            wanted.files,
            wanted.facts,
        )
        assert found.changed() == []
    sound(other)


def test_what_is_there_stays(exported: bytes, other: Store, layers: list[Layer]) -> None:
    take(other, exported)
    before = {path: path.stat().st_ino for path in other.root.rglob("*") if "tmp" not in path.parts}
    done = take(other, exported)
    assert (done.blobs, done.layers, done.there, done.left_out) == (0, 0, 5, ())
    assert {path: path.stat().st_ino for path in other.root.rglob("*") if "tmp" not in path.parts} == before


def test_an_archive_can_come_through_a_pipe(exported: bytes, other: Store) -> None:
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.close(reading)
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(exported)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        assert bundle.read(other, pipe, Silent()).layers == 2
    os.wait()


def member(data: bytes, name: str) -> tarfile.TarInfo:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getmember(name)


def flip(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def harm(data: bytes, name: str, part: str) -> bytes:
    info = member(data, name)
    return flip(data, info.offset + 5 if part == "header" else info.offset_data + info.size // 2)


@pytest.mark.parametrize("part", ["header", "data"])
def test_a_damaged_blob_is_left_out_and_the_rest_taken(
    exported: bytes, other: Store, blobs: list[Blob], part: str
) -> None:
    sha256 = blobs[0].sha256
    done = take(other, harm(exported, f"blobs/sha256/{sha256[:2]}/{sha256}", part))
    assert (done.blobs, done.layers) == (2, 2)
    why = "is missing: the archive is damaged or cut short" if part == "header" else "does not have its sha256"
    assert done.left_out == (("file-0", why),)
    sound(other)


@pytest.mark.parametrize("part", ["header", "data"])
@pytest.mark.parametrize("name", ["index", "000000", "000001", "000002"])
def test_a_damaged_layer_is_left_out_and_the_rest_taken(
    exported: bytes, other: Store, layers: list[Layer], name: str, part: str
) -> None:
    done = take(other, harm(exported, f"layers/{layers[0].key}/{name}", part))
    assert (done.blobs, done.layers) == (3, 1)
    assert [what for what, _ in done.left_out] == ["layer base of demo"]
    assert other.layer(layers[0].key) is None
    sound(other)


@pytest.mark.parametrize("share", [0.0005, 0.3, 0.6, 0.9])
def test_of_half_an_archive_is_taken_what_is_whole_and_the_rest_comes_with_the_next(
    exported: bytes, other: Store, share: float
) -> None:
    done = take(other, exported[: int(len(exported) * share)])
    assert done.blobs + done.layers + len(done.left_out) == 5
    assert all(why == "is missing: the archive is damaged or cut short" for _, why in done.left_out)
    assert (done.blobs, done.layers) == (1 if share == 0.0005 else 3, 0)
    sound(other)
    again = take(other, exported)
    assert again.there == done.blobs + done.layers
    assert again.left_out == ()
    sound(other)


def test_a_layer_before_the_cut_is_taken(exported: bytes, other: Store, layers: list[Layer]) -> None:
    done = take(other, exported[: member(exported, f"layers/{layers[1].key}/000000").offset_data + 1])
    assert (done.blobs, done.layers) == (3, 1)
    assert [what for what, _ in done.left_out] == ["layer top of demo"]
    sound(other)


def test_bytes_that_the_index_does_not_tell_of_are_no_layer(store: Store, other: Store) -> None:
    made = layer(store, "base", b"as captured")
    path = made.tree / "opt/big"
    path.write_bytes(b"as changed!")
    out = io.BytesIO()
    bundle.write(store, [], [made], out, Silent())
    done = take(other, out.getvalue())
    assert done.left_out == (("layer base of demo", "differs from its index, first in 'opt/big'"),)


@pytest.mark.parametrize("data", [b"", b"x" * 5000, bytes(10240)])
def test_what_is_no_export_is_refused(other: Store, data: bytes) -> None:
    with pytest.raises(BuilderError, match="is no archive of `builder store export`"):
        take(other, data)
    assert upkeep.ls(other) == []


def archive(*members: tuple[str, bytes, bytes]) -> bytes:
    """A tar with members of these names, types and contents."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, data in members:
            info = tarfile.TarInfo(name)
            info.type, info.size = kind, len(data)
            info.linkname = "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def table(**more: object) -> tuple[str, bytes, bytes]:
    return "builder-store.json", b"0", json.dumps({"format": 2, "blobs": [], "layers": [], **more}).encode()


ONE = blob(b"one")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../out", b"0"),
        ("/etc/out", b"0"),
        ("blobs/sha256/00/" + "0" * 64, b"0"),
        ("layers/" + "0" * 64 + "/index", b"0"),
        ("out", tarfile.SYMTYPE),
        ("out", tarfile.LNKTYPE),
        ("out", tarfile.CHRTYPE),
        ("out", tarfile.FIFOTYPE),
        ("out", tarfile.DIRTYPE),
        ("out", tarfile.XHDTYPE),
        ("out", tarfile.GNUTYPE_LONGNAME),
        (f"blobs/sha256/{ONE.sha256[:2]}/{ONE.sha256}", tarfile.SYMTYPE),
    ],
)
def test_a_member_that_no_export_has_stops_the_import(other: Store, tmp_path: Path, name: str, kind: bytes) -> None:
    data = archive(table(blobs=[["one", ONE.sha256, 3]]), (name, kind, b""))
    with pytest.raises(BuilderError, match=r"member .* is n.* of it was taken"):
        take(other, data)
    assert upkeep.ls(other) == []
    assert sorted(os.listdir(tmp_path)) in ([], ["other"])


BODY = {"a": 1}
FACTS = {"recipe": "r", "stage": "s", "kind": "k", "body": BODY, "over": []}


@pytest.mark.parametrize(
    "more",
    [
        {"format": 1},
        {"blobs": [["x", "../../etc/passwd", 1]]},
        {"blobs": [["\x1b[2J", "0" * 64, 1]]},
        {"blobs": [["x", 1, 1]]},
        {"blobs": 1},
        {"layers": [["0" * 64, "0" * 64, 1, FACTS]]},
        {"layers": [[canonical.digest(BODY), "0" * 64, 1, {**FACTS, "stage": "\n"}]]},
        {"layers": [[canonical.digest(BODY), "0" * 64, 1, {"body": BODY}]]},
        {"layers": [[canonical.digest(BODY), "0" * 64, 1, 1]]},
    ],
)
def test_a_table_that_no_export_has_is_refused(other: Store, more: dict[str, object]) -> None:
    with pytest.raises(BuilderError, match="is no archive of `builder store export`"):
        take(other, archive(table(**more)))


def test_a_blob_larger_than_told_is_not_written(other: Store) -> None:
    place = f"blobs/sha256/{ONE.sha256[:2]}/{ONE.sha256}"
    done = take(other, archive(table(blobs=[["one", ONE.sha256, 3]]), (place, b"0", b"x" * 5000)))
    assert done.left_out == (("one", "has 5000 bytes, not 3"),)


def bomb(size: int) -> bytes:
    return zstandard.ZstdCompressor(level=1).compress(bytes(size))


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ([("index", b"")], "has a damaged index"),
        ([("index", bomb(100))], "damaged index of a layer"),
        ([("index", b"\x28\xb5\x2f\xfd\xe0" + b"\xff" * 8)], "has an index of unlikely size"),
        ([("000000", b"")], "has no index"),
    ],
)
def test_an_index_that_would_fill_the_memory_is_not_read(
    other: Store, parts: list[tuple[str, bytes]], why: str
) -> None:
    key = canonical.digest(BODY)
    members = [(f"layers/{key}/{name}", b"0", data) for name, data in parts]
    done = take(other, archive(table(layers=[[key, "0" * 64, 1, FACTS]]), *members))
    assert done.left_out[0][0] == "layer s of r"
    assert why in done.left_out[0][1]


@pytest.mark.parametrize("change", [lambda data: bomb(64 << 20), lambda data: data[:-1], lambda data: b""])
def test_a_part_that_is_no_frame_is_no_layer(store: Store, other: Store, change: Callable[[bytes], bytes]) -> None:
    made = layer(store, "base", b"x" * 1000)
    out = io.BytesIO()
    bundle.write(store, [], [made], out, Silent())
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as tar:
        members = [(info.name, tar.extractfile(info)) for info in tar]
    parts = [(name, b"0", b"" if file is None else file.read()) for name, file in members]
    done = take(other, archive(*parts[:2], (parts[2][0], b"0", change(parts[2][2]))))
    assert [what for what, _ in done.left_out] == ["layer base of demo"]
