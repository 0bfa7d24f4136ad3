"""The simulated node against what was recorded of a real one: the same statuses and the same words."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import User
from simulated_pve.node import Node
from simulated_pve.place import NodeSite, node_site

pytestmark = [pytest.mark.e2e, pytest.mark.lxc]

RECORDED = Path(__file__).parent / "simulated_pve/recorded.txt"
CREATE = ("local:vztmpl/base.tar.zst", "--rootfs", "local:4", "--unprivileged", "1", "--features", "nesting=1")


@pytest.fixture(scope="module")
def place(root_user: User) -> Iterator[NodeSite]:
    with node_site(root_user, []) as made:
        yield made


@pytest.fixture
def node(place: NodeSite) -> Node:
    """A node with nothing on it but a template's file."""
    place.clear()
    os.link(place.template, place.node.root / "vz/template/cache/base.tar.zst")
    return place.node


@pytest.fixture
def cloned(place: NodeSite, request: pytest.FixtureRequest) -> Node:
    """The node with template 940 alone; that of the test before, where it left it so."""
    if (place.node.containers(), place.node.volumes()) != (["940"], ["base-940-disk-0.raw"]):
        node: Node = request.getfixturevalue("node")
        net = f"name=eth0,bridge={place.bridge.name},ip={place.bridge.network}.40/24"
        node.does("pct", "create", "940", *CREATE, "--net0", net)
        node.does("pct", "template", "940")
    assert "lock" not in place.node.config(940)
    return place.node


def test_it_says_what_was_recorded(node: Node, place: NodeSite) -> None:
    text = RECORDED.read_text().replace("vmbr0", place.bridge.name).replace("10.99.0.", f"{place.bridge.network}.")
    steps = re.findall(r"^([$%]) (.*)\n((?:(?![$%] |rc=|\n).*\n)*)(?:rc=(\d+)\n)?", text, re.MULTILINE)
    assert len(steps) > 100
    for sign, command, said, status in steps:
        done = node.run(*shlex.split(command))
        assert done.returncode == int(status or 0), f"{command}: {done.stdout}"
        assert status or (sign == "%" and not said)
        plain = re.sub(r",hwaddr=[0-9A-F:]*", "", done.stdout)
        for line in said.splitlines():
            assert line in plain, f"{command}: {done.stdout}"


def begun(node: Node, *argv: str) -> subprocess.Popen[str]:
    """A clone or create of 941 that copies files."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(node.argv(*argv), stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True)
    wait_until(lambda: any(node.root.glob("vz/images/941/vm-941-disk-0.raw/usr/*")))
    return process


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def idle(node: Node) -> bool:
    argv = ("pvesh", "get", "/nodes/localhost/tasks", "--source", "active", "--output-format", "json")
    return node.does(*argv).strip() == "[]"


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "nobody reads"])
def test_a_clone_that_is_told_to_stop_cleans_up(cloned: Node, how: str) -> None:
    with begun(cloned, "pct", "clone", "940", "941", "--full") as process:
        if how == "nobody reads":
            assert process.stdout is not None
            process.stdout.close()
        else:
            process.send_signal(signal.Signals[how])
        said = process.stderr.read() if process.stderr else ""
    assert (process.returncode, said) == (255, "clone failed: interrupted by signal\n")
    assert cloned.containers() == ["940"]
    assert cloned.volumes() == ["base-940-disk-0.raw"]
    assert "lock" not in cloned.config(940)


def test_a_hangup_in_a_clone_leaves_locks_and_a_volume(cloned: Node) -> None:
    with begun(cloned, "pct", "clone", "940", "941", "--full", "--description", "mine") as process:
        process.send_signal(signal.SIGHUP)
    assert process.returncode == -signal.SIGHUP
    wait_until(lambda: idle(cloned))
    assert "lock: disk" in cloned.config(940)
    assert "lock: create" in cloned.config(941)
    assert cloned.config(941).startswith("#mine\n")
    assert "vm-941-disk-0.raw" in cloned.volumes()
    for argv in ("clone", "940", "942", "--full"), ("set", "940", "--memory", "600"):
        refused = cloned.run("pct", *argv)
        assert (refused.returncode, refused.stdout) == (255, "CT is locked (disk)\n")
    refused = cloned.run("pct", "destroy", "941")
    assert (refused.returncode, refused.stdout) == (255, "CT is locked (create)\n")
    for recovery in ("unlock 940", "unlock 941", "destroy 941 --destroy-unreferenced-disks 1"):
        cloned.does("pct", *recovery.split())
    assert cloned.containers() == ["940"]
    assert cloned.volumes() == ["base-940-disk-0.raw"]


def test_a_killed_create_leaves_its_volume_and_its_mount_past_a_destroy(node: Node) -> None:
    with begun(node, "pct", "create", "941", *CREATE) as process:
        (worker,) = (pid for pid in node.processes("pct", "create", "941") if pid != process.pid)
        process.kill()
        os.kill(worker, signal.SIGKILL)
    wait_until(lambda: not node.processes("xpf"))
    mounted = ("mountpoint", "-q", "/var/lib/lxc/941/rootfs")
    assert node.config(941) == "lock: create\n"
    node.does(*mounted)
    refused = node.run("pct", "destroy", "941")
    assert (refused.returncode, refused.stdout) == (255, "CT is locked (create)\n")
    node.does("pct", "unlock", "941")
    node.does("pct", "destroy", "941")
    assert node.containers() == []
    assert "local:941/vm-941-disk-0.raw" in node.does("pvesm", "list", "local", "--vmid", "941")
    node.does(*mounted)
    said = node.does("pvesm", "free", "local:941/vm-941-disk-0.raw")
    assert said == "Removed volume 'local:941/vm-941-disk-0.raw'\n"
    assert node.volumes() == []


def test_a_template_is_cloned_by_one_at_a_time(cloned: Node) -> None:
    with begun(cloned, "pct", "clone", "940", "941", "--full") as first:
        second = cloned.run("pct", "clone", "940", "942", "--full")
        assert (second.returncode, second.stdout) == (255, "CT is locked (disk)\n")
        assert not idle(cloned)
        out, _ = first.communicate()
    assert first.returncode == 0
    assert "create full clone of mountpoint rootfs (local:940/base-940-disk-0.raw)" in out
    assert cloned.containers() == ["940", "941"]
    cloned.does("pct", "destroy", "941")
