"""The nodes and mounts of a container."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import tempfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.deploy.gpu import devices, mounts
from builder.deploy.model import Device, Folder
from builder.errors import BuilderError

from .hosts import host


def test_a_container_gets_its_cards_and_what_all_users_of_cuda_open() -> None:
    assert devices((1,), host()) == (
        Device("/dev/nvidia1", "0666"),
        Device("/dev/nvidiactl", "0666"),
        Device("/dev/nvidia-uvm", "0666"),
        Device("/dev/nvidia-uvm-tools", "0666"),
    )


def test_a_container_without_a_card_gets_nothing() -> None:
    assert devices((), host()) == ()


def test_a_card_that_is_not_there_is_an_error_that_names_those_that_are() -> None:
    with pytest.raises(BuilderError, match="the host has no card 2; it has 0, 1"):
        devices((2,), host())


def test_the_drivers_folder_and_the_models_are_mounted_read_only() -> None:
    assert mounts("/var/lib/builder/nvidia/current", [Folder("/tank/models", "/models")]) == (
        "lxc.mount.entry: /var/lib/builder/nvidia/current usr/lib/nvidia-host none ro,rbind,optional,create=dir",
        "lxc.mount.entry: /tank/models models none ro,rbind,optional,create=dir",
    )
    assert mounts(None, []) == ()


class MountEntry(ctypes.Structure):
    """struct mntent of getmntent(3)."""

    _fields_ = (
        *((name, ctypes.c_char_p) for name in ("source", "target", "kind", "options")),
        *((name, ctypes.c_int) for name in ("freq", "passno")),
    )


def as_lxc_reads_it(line: str) -> tuple[str, str]:
    """Source and target of an entry, read with the C library's function that LXC uses (src/lxc/conf.c)."""
    libc = ctypes.CDLL(ctypes.util.find_library("c"))
    libc.setmntent.restype = ctypes.c_void_p
    libc.getmntent.argtypes, libc.getmntent.restype = (ctypes.c_void_p,), ctypes.POINTER(MountEntry)
    libc.endmntent.argtypes = (ctypes.c_void_p,)
    with tempfile.NamedTemporaryFile() as file:
        file.write(os.fsencode(line.removeprefix("lxc.mount.entry: ")) + b"\n")
        file.flush()
        stream = libc.setmntent(file.name.encode(), b"r")
        entry = libc.getmntent(stream)[0]
        found = os.fsdecode(entry.source), os.fsdecode(entry.target)
        libc.endmntent(stream)
    return found


PATHS = st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(source=PATHS, target=PATHS)
def test_every_path_survives_the_way_through_lxcs_reader(source: str, target: str) -> None:
    (line,) = mounts(None, [Folder(f"/{source}", f"/{target}")])
    assert "\n" not in line
    assert as_lxc_reads_it(line) == (f"/{source}", target)
