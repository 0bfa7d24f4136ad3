"""Containers and entries as the reader finds them, and what it says of damage."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from fatbins import Code, container, elf
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.errors import BuilderError
from builder.gpucode import Container, Kind, read

FIRST = container(Code("ptx", 90, isa=(8, 4), options=b"-O3"), Code("cubin", 120, "a"), room=4096)
SECOND = container(Code("cubin", 120, "f"), Code("ptx", 120), Code("ptx", 90, "a"), Code("cubin", 80))
RELOCATABLE = container(Code("cubin", 89, payload=b"x" * 100))
LIBRARY = elf({".text": b"host code", ".nv_fatbin": FIRST + SECOND, "__nv_relfatbin": RELOCATABLE})
HEADS = [*range(64), *range(LIBRARY.index(FIRST), len(LIBRARY))]
"""Where its headers and sections lie."""

Read = Callable[[bytes], tuple[Container, ...]]


@pytest.fixture
def reading(tmp_path: Path) -> Read:
    def read_bytes(data: bytes) -> tuple[Container, ...]:
        (tmp_path / "lib.so").write_bytes(data)
        return read(tmp_path / "lib.so")

    return read_bytes


def names(containers: tuple[Container, ...]) -> list[list[str]]:
    return [[entry.name for entry in container.entries] for container in containers]


def test_each_translation_unit_with_its_entries(reading: Read) -> None:
    found = reading(LIBRARY)
    assert names(found) == [
        ["compute_90", "sm_120a"],
        ["sm_120f", "compute_120", "compute_90a", "sm_80"],
        ["sm_89"],
    ]
    assert [unit.section for unit in found] == [".nv_fatbin", ".nv_fatbin", "__nv_relfatbin"]
    for unit in found:
        assert LIBRARY[unit.offset :].startswith(b"\x50\xed\x55\xba")
    ptx, cubin = found[0].entries
    assert (ptx.kind, ptx.arch, ptx.version, cubin.kind, cubin.suffix) == (Kind.PTX, 90, (8, 4), Kind.CUBIN, "a")
    assert LIBRARY[ptx.offset + ptx.header :].startswith(b"code")
    assert (found[2].size, found[2].entries[0].unpacked) == (104, 104)


def test_a_bare_fat_binary(reading: Read) -> None:
    assert names(reading(SECOND)) == [["sm_120f", "compute_120", "compute_90a", "sm_80"]]


def test_a_container_that_holds_nothing(reading: Read) -> None:
    assert names(reading(elf({".nv_fatbin": container(room=64) + RELOCATABLE}))) == [[], ["sm_89"]]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x7fELF",
        b"#!/bin/sh\n" * 100,
        elf({".text": b"host code"}),
        LIBRARY.replace(b"\x7fELF\x02", b"\x7fELF\x01", 1),  # 32 bits
    ],
)
def test_files_without_gpu_code_are_no_error(reading: Read, data: bytes) -> None:
    assert reading(data) == ()


def test_holes_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As slimming leaves them: of 64 GiB hardly anything is read."""
    hole = 1 << 36
    data = elf({".nv_fatbin": RELOCATABLE})
    (table,) = struct.unpack_from("<Q", data, 0x28)
    head, rest = bytearray(data[:table]), bytearray(data[table:])
    struct.pack_into("<Q", head, 0x28, table + hole)
    struct.pack_into("<Q", rest, 64 + 32, len(RELOCATABLE) + hole)
    (place,) = struct.unpack_from("<Q", rest, 128 + 24)
    names = data[place:table]
    struct.pack_into("<Q", rest, 128 + 24, place + hole)
    with open(tmp_path / "lib.so", "wb") as file:
        file.write(head[:place])
        file.seek(place + hole)
        file.write(names + rest)
    reads: list[int] = []

    def pread(fd: int, size: int, at: int) -> bytes:
        reads.append(size)
        return real(fd, size, at)

    real = os.pread
    monkeypatch.setattr(os, "pread", pread)
    assert len(read(tmp_path / "lib.so")) == 1
    assert sum(reads) < 1 << 20


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (LIBRARY[:-100], "the section table of the ELF file is damaged or cut off"),
        (LIBRARY[:0x28] + bytes(8) + LIBRARY[0x30:], "the ELF file has no section table"),
        (LIBRARY.replace(b"\x50\xed\x55\xba", b"oops"), "no container of a known layout at 0x50 in .nv_fatbin"),
        (LIBRARY.replace(struct.pack("<HH", 2, 0x0101), b"\7\0\1\1"), "no entry of a known layout"),
        (SECOND[:-1], "no container of a known layout at 0x0 in the file"),
        (container() * 100_001, "more than 100,000 pieces of GPU code"),
    ],
)
def test_damage_is_one_line_with_file_and_place(reading: Read, data: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(BuilderError) as caught:
        reading(data)
    assert str(caught.value).startswith(f"{tmp_path}/lib.so: {said}")


def test_sections_that_overlap_are_damage(reading: Read) -> None:
    data = bytearray(LIBRARY)
    (table,) = struct.unpack_from("<Q", data, 0x28)
    data[table + 3 * 64 + 24 : table + 3 * 64 + 40] = data[table + 2 * 64 + 24 : table + 2 * 64 + 40]
    with pytest.raises(BuilderError, match="overlap"):
        reading(bytes(data))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BuilderError, match=r"gone\.so: No such file"):
        read(tmp_path / "gone.so")
    with pytest.raises(BuilderError, match="Is a directory"):
        read(tmp_path)


def test_ten_thousand_damaged_libraries(tmp_path: Path) -> None:
    """Header bytes changed, the file cut, pieces moved: read as something else, or one kind of error."""
    dice = random.Random(7)
    place = tmp_path / "lib.so"
    said = []
    with open(place, "wb", buffering=0) as file:  # one file: to make a new one each time takes ten times as long
        for _ in range(10_000):
            file.seek(0)
            file.truncate(max(file.write(damaged(dice)), 1))
            try:
                read(place)
            except BuilderError as error:
                said.append(str(error))
    assert len(said) > 2_000
    assert all(line.startswith(f"{place}: ") for line in said)


def damaged(dice: random.Random) -> bytes:
    data = bytearray(LIBRARY)
    for _ in range(dice.choice((1, 1, 2, 8))):
        at = dice.choice(HEADS)
        data[at] = dice.choice((0, 0xFF, data[at] ^ 1 << dice.randrange(8), dice.randrange(256)))
    if dice.random() < 0.2:
        del data[dice.randrange(len(data)) :]
    if dice.random() < 0.1:
        at, length = dice.randrange(len(data) + 1), dice.randrange(200)
        data[at:at] = data[:length]
    return bytes(data)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_bytes_in_a_section(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    codes = st.builds(
        Code,
        st.sampled_from(("ptx", "cubin")),
        st.integers(0, 2**32 - 1),
        st.sampled_from(("", "a", "f")),
        st.tuples(st.integers(0, 99), st.integers(0, 99)),
        st.binary(max_size=40),
        st.binary(max_size=40),
    )
    pieces = data.draw(st.lists(st.lists(codes).map(lambda some: container(*some)) | st.binary(max_size=80)))
    place = tmp_path_factory.getbasetemp() / f"any-{os.getpid()}.so"
    place.write_bytes(elf({".nv_fatbin": b"".join(pieces)}))
    try:
        found = read(place)
    except BuilderError:
        return
    assert sum(len(unit.entries) for unit in found) <= sum(map(len, pieces)) // 64
