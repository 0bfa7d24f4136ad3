"""What keeps a container from using the cards, and what is said of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from builder.deploy.gpu import Driver, Gpus, Need, complete, need, preflight

from .hosts import card, host

PATHS = (
    "opt/vllm/lib/python3.11/site-packages/nvidia_cuda_runtime_cu12-12.8.90.dist-info/METADATA",
    "opt/vllm/lib/python3.11/site-packages/torch-2.8.0.dist-info/METADATA",
    "usr/lib/nvidia-host",
)


def manifest(*paths: str) -> dict[str, object]:
    return {"files": [{"path": path} for path in paths]}


def test_a_host_as_it_should_be_has_no_problem() -> None:
    assert preflight(host(), "570.26", "12.0") == ()


def test_no_module() -> None:
    nothing = Gpus(None, (), ())
    assert preflight(nothing, None, "") == ("no NVIDIA kernel module is loaded: install the driver",)


@pytest.mark.parametrize(
    ("version", "old"), [("570.26", False), ("580.76.05", False), ("570.9", True), ("550.163.01", True)]
)
def test_an_old_driver_is_named_with_what_needs_a_newer_one(version: str, old: bool) -> None:
    problems = preflight(host(driver=Driver(version, True, "/kept")), need(manifest(*PATHS)), "")
    assert problems == (
        (f"the host's driver is {version}, and the template needs 570.26 or later (CUDA 12.8): upgrade the host",)
        if old
        else ()
    )


def test_blackwell_needs_the_open_modules_and_older_cards_do_not() -> None:
    closed = Driver("580.76.05", False, "/kept")
    (problem,) = preflight(host(card(0), driver=closed), None, "")
    assert problem.startswith("card 0 (GeForce RTX 5060 Ti) needs the open kernel modules")
    assert preflight(host(card(0, capability="9.0"), driver=closed), None, "") == ()


def test_only_the_cards_that_will_be_used_are_looked_at() -> None:
    mixed = host(card(0, capability="8.9"), card(1))
    assert preflight(mixed, None, "12.0", cards=(1,)) == ()
    assert preflight(mixed, None, "12.0") == (
        "card 0 (GeForce RTX 5060 Ti) has compute capability 8.9, and the template is for 12.0",
    )


def test_missing_nodes_and_userspace_are_problems_unless_the_unit_mends_them() -> None:
    bare = host(card(0), driver=Driver("580.76.05", True, None), nodes=["/dev/nvidia0", "/dev/nvidiactl"])
    nodes, userspace = preflight(bare, None, "")
    assert nodes.startswith("the host has no /dev/nvidia-uvm, /dev/nvidia-uvm-tools: run `builder-nvidia`")
    assert userspace.startswith("the host keeps no userspace of its running driver 580.76.05")
    assert preflight(bare, None, "", unit_follows=True) == ()
    assert not complete(bare)
    assert complete(host())


def test_a_template_with_a_driver_of_its_own_needs_the_very_version_and_no_userspace_of_the_host() -> None:
    own = need(manifest(*PATHS, "usr/lib/x86_64-linux-gnu/libcuda.so.580.76.05"))
    assert own == Need("570.26", "CUDA 12.8", "580.76.05")
    without = replace(host(), driver=Driver("580.76.05", True, None))
    assert preflight(without, own, "") == ()
    (problem,) = preflight(host(driver=Driver("590.44.01", True, None)), own, "")
    assert "carries the userspace of 580.76.05" in problem


def test_the_newest_cuda_of_a_template_decides() -> None:
    newer = "opt/x/site-packages/nvidia_cuda_runtime-13.0.96.dist-info/METADATA"
    assert need(manifest(*PATHS, newer)).oldest == "580.65.06"
    assert need(manifest("usr/bin/env")) == Need()


def test_a_card_in_mig_mode_is_refused_with_the_way_out() -> None:
    (problem,) = preflight(host(card(0, mig=True)), None, "")
    assert problem.endswith("`nvidia-smi -i 0000:01:00.0 -mig 0`")


def test_a_module_without_a_card() -> None:
    assert preflight(Gpus(Driver("580.76.05", True, "/kept"), (), ("/dev/nvidiactl",)), None, "")[0] == (
        "the driver knows no card: `dmesg` on the host says why"
    )
