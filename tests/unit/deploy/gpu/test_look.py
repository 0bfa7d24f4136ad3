"""What the files of the driver and nvidia-smi tell, in all the ways in which parts of it can be missing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.deploy.gpu.look import DRIVER_FOLDER, look, read
from builder.deploy.gpu.model import Card, Driver, Gpus
from builder.deploy.shell import Shell

from .hosts import SimulatedChannel

OPEN = """\
NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.76.05  Release Build  (root@pve)  Mon Aug 4 12:00 UTC 2025
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14+deb12u1)
"""
CLOSED = """\
NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.163.01  Tue Apr  8 12:41:17 UTC 2025
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)
"""
FIRST = """\
== card
Model: \t\t NVIDIA GeForce RTX 5060 Ti
IRQ:   \t\t 152
GPU UUID: \t GPU-00000000-1111-2222-3333-444444444444
Video BIOS: \t 98.06.1f.00.01
Bus Type: \t PCIe
DMA Size: \t 52 bits
DMA Mask: \t 0xfffffffffffff
Bus Location: \t 0000:01:00.0
Device Minor: \t 1
GPU Firmware: \t 580.76.05
GPU Excluded:\t No
"""
SECOND = """\
== card
Model: \t\t NVIDIA GeForce RTX 5060 Ti
Bus Location: \t 0000:0A:00.0
Device Minor: \t 0
"""
NODES = """\
== nodes
/dev/nvidia-uvm
/dev/nvidia0
/dev/nvidia1
/dev/nvidiactl
"""
USERSPACE = """\
== userspace
bin
libcuda.so
libcuda.so.1
libcuda.so.580.76.05
"""
MEMORY = """\
== memory
00000000:01:00.0, 16311, 5210, 12.0, [N/A]
00000000:0A:00.0, 16311, 4, 12.0, Enabled
"""


def test_a_whole_host() -> None:
    found = read(OPEN + FIRST + SECOND + NODES + USERSPACE + MEMORY)
    assert found == Gpus(
        driver=Driver("580.76.05", True, DRIVER_FOLDER),
        cards=(
            Card(0, "GeForce RTX 5060 Ti", "0000:0a:00.0", 16311, 4, "12.0", mig=True),
            Card(1, "GeForce RTX 5060 Ti", "0000:01:00.0", 16311, 5210, "12.0"),
        ),
        nodes=("/dev/nvidia-uvm", "/dev/nvidia0", "/dev/nvidia1", "/dev/nvidiactl"),
    )


def test_the_closed_module_is_told_from_the_open_one() -> None:
    assert read(CLOSED).driver == Driver("550.163.01", False)


def test_a_userspace_of_another_version_is_none() -> None:
    assert read(OPEN + USERSPACE.replace("580.76.05", "590.44.01")).driver == Driver("580.76.05", True)


def test_without_nvidia_smi_the_cards_are_still_known() -> None:
    (found,) = read(OPEN + FIRST + "== memory\n").cards
    assert (found.index, found.memory_mib, found.capability) == (1, 0, "")


@pytest.mark.parametrize(
    "said",
    [
        "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 590.44",
        "No devices were found",
        "00000000:01:00.0, [N/A], [N/A], [Unknown Error], [N/A]",
    ],
)
def test_what_nvidia_smi_says_instead_of_numbers_is_no_number(said: str) -> None:
    (found,) = read(f"{OPEN}{FIRST}== memory\n{said}\n").cards
    assert (found.memory_mib, found.used_mib, found.capability) == (0, 0, "")


def test_a_card_without_a_node_of_its_own_is_no_card() -> None:
    assert read(OPEN + SECOND.replace("Device Minor: \t 0\n", "")).cards == ()


def test_a_host_without_nvidia() -> None:
    assert read("== nodes\n== userspace\n== memory\n") == Gpus(None, (), ())
    assert read("") == Gpus(None, (), ())


def test_looking_is_one_command_that_runs_dry_too() -> None:
    channel = SimulatedChannel(lambda argv: (0, OPEN + FIRST))
    shell = Shell(channel, dry=True)
    assert look(shell).cards[0].index == 1
    assert len(channel.seen) == 1
    assert shell.record == []


@given(st.text(alphabet=st.sampled_from("=\n :,.[]0123456789abN/ \tDevice Minor"), max_size=200))
def test_damaged_text_is_no_traceback(text: str) -> None:
    read(OPEN + FIRST + text + MEMORY)
    read(text)
