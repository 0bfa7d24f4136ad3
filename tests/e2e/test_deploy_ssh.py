"""`builder deploy --host ssh:...` through a real sshd to a simulated Proxmox node with real containers: what users see
when it works, when it fails, and when the line drops."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from conftest import User
from container import traces
from deploying import deploy, models
from simulated_pve.node import command_lines
from simulated_pve.place import NodeSite, node_site

from builder.deploy.host import open_host
from builder.deploy.host.base import Host
from builder.deploy.model import Container, Device, Network, Settings
from builder.errors import BuilderError

pytestmark = [pytest.mark.e2e, pytest.mark.lxc]

ROWS = [(921, "sim-fp8", "good", 21), (922, "sim-lab", "good", 22), (951, "sim-first", "fails-at-first-answer", 51)]
TEMPLATE = ["base-920-disk-0.raw"]
SIMULATED_CARD = """\
cd /proc/driver
mkdir -p nvidia/gpus/0000:01:00.0
echo "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.76.05  Release Build" > nvidia/version
printf 'Model: NVIDIA GeForce RTX 5060 Ti\\nBus Location: 0000:01:00.0\\nDevice Minor: 0\\n' \
    > nvidia/gpus/0000:01:00.0/information
"""


@pytest.fixture(scope="module")
def place(root_user: User) -> Iterator[NodeSite]:
    with node_site(root_user, ROWS) as made:
        yield made
        made.clear()
        assert [line for line in traces(str(made.lxc)) if "pytest" not in line] == []


@pytest.fixture
def here(place: NodeSite) -> NodeSite:
    """The site with nothing on the node."""
    place.clear()
    return place


@pytest.fixture
def templated(place: NodeSite) -> NodeSite:
    """The site with the template alone; that of the test before, where it left it so."""
    shutil.rmtree(place.state / "deploy", ignore_errors=True)
    if not is_clean(place):
        place.clear()
        place.passes("deploy", "--ctid", "921")
        place.passes("destroy", "921", "--yes")
    return place


def is_clean(here: NodeSite) -> bool:
    """Whether the node has the template alone, which nobody locks."""
    left = (here.containers(), here.node.volumes())
    return left == (["920"], TEMPLATE) and "lock:" not in here.node.config(920)


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def watched(secret: str) -> Iterator[list[str]]:
    """Collects every command line of the machine that shows `secret` while the block lasts."""
    seen: list[str] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            seen.extend(line.decode(errors="replace") for _, line in command_lines() if secret.encode() in line)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield seen
    finally:
        over.set()
        watcher.join()


DAMAGING_CAT = """\
#!/bin/sh
[ $# -eq 0 ] || exec /bin/cat "$@"
dd bs=1 count=1000 status=none
dd bs=1 count=1 status=none | tr '\\000-\\377' '\\001-\\377\\000'
exec /bin/cat
"""


def test_a_template_that_arrives_with_another_byte_is_refused_and_not_kept(here: NodeSite) -> None:
    here.node.does("sh", "-c", 'printf %s "$1" > "$0"; chmod 755 "$0"', "/usr/local/sbin/cat", DAMAGING_CAT)
    try:
        done = deploy(here, 921)
    finally:
        here.node.does("rm", "/usr/local/sbin/cat")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "step template" in last
    assert "was damaged on its way to the host" in last
    assert here.containers() == []
    assert here.node.templates() == []
    assert here.node.volumes() == []


def test_a_container_that_somebody_else_made_is_never_touched(here: NodeSite) -> None:
    config = here.node.root / "pve/lxc/921.conf"
    config.write_text("#mine\nhostname: foreign\nmemory: 512\nrootfs: local:921/vm-921-disk-0.raw,size=4G\n")
    precious = here.node.root / "vz/images/921/vm-921-disk-0.raw/precious"
    precious.parent.mkdir(parents=True)
    precious.write_text("mine")
    before = config.read_bytes()
    for command in (("deploy", "--ctid", "921"), ("deploy", "--ctid", "921", "--replace"), ("destroy", "921", "--yes")):
        done = here.on_host(*command)
        assert done.returncode == 2, done.stderr
    assert (config.read_bytes(), precious.read_text()) == (before, "mine")
    assert here.containers() == ["921"]


def test_from_nothing_to_an_answer_and_back(here: NodeSite, tmp_path: Path) -> None:
    key = "sesame-4711-sesame-4711"
    (tmp_path / "key").write_text(f"{key}\n")
    (tmp_path / "key").chmod(0o600)
    with watched(key) as seen:
        done = deploy(here, 921, "--api-key-file", str(tmp_path / "key"))
    assert done.returncode == 0, done.stderr
    assert "sim-fp8: container 921" in done.stdout
    assert (here.containers(), here.running()) == (["920", "921"], ["921"])
    assert (models(here, 21, key), models(here, 21)) == (200, 401)
    config = here.node.config(921)
    assert "tags: builder;builder-sim-fp8;sha256-" in config
    assert "template: 1" in here.node.config(920)
    assert "unprivileged: 1" in config
    logs = [log.read_text() for log in here.node.tasks()]
    assert len(logs) >= 3
    for text in (done.stdout, done.stderr, config, here.journal(921).read_text(), *logs):
        assert key not in text
    assert seen == []

    again = deploy(here, 921)
    assert again.returncode == 2
    assert "deployed already" in again.stderr
    here.passes("destroy", "921", "--yes")
    assert is_clean(here)


def test_two_deploys_at_once_clone_one_after_the_other(templated: NodeSite) -> None:
    here = templated
    with here.popen("deploy", "--host", here.host, "--ctid", "921") as first:
        second = deploy(here, 922)
        _, said = first.communicate(timeout=120)
    assert (first.returncode, second.returncode) == (0, 0), said + second.stderr
    assert here.containers() == ["920", "921", "922"]
    rows = here.json("status")["deployments"]
    assert {row["name"]: row["ctid"] for row in rows} == {"sim-fp8": 921, "sim-lab": 922}
    here.passes("destroy", "922", "--yes")
    here.passes("destroy", "921", "--yes")


def test_replace_takes_the_place_and_the_address_of_the_old_one(templated: NodeSite) -> None:
    here = templated
    here.passes("deploy", "--ctid", "921")
    here.passes("deploy", "--ctid", "921", "--replace")
    assert (here.containers(), here.running()) == (["920", "921", "931"], ["931"])
    macs = [line for ctid in (921, 931) for line in here.node.config(ctid).splitlines() if line.startswith("net0")]
    assert macs[0] == macs[1]
    assert "onboot: 0" in here.node.config(921)
    here.passes("destroy", "sim-fp8", "--old", "--yes")
    here.passes("destroy", "931", "--yes")
    assert is_clean(here)


def in_step(here: NodeSite, step: str, ready: Callable[[], object]) -> subprocess.Popen[str]:
    """A deploy of 921 that is in `step`, and of which `ready` holds."""
    process = here.popen("deploy", "--host", here.host, "--ctid", "921")
    until(lambda: process.poll() is not None or (f'"name": "{step}"' in here.events(921) and ready()))
    assert process.poll() is None, process.communicate()
    return process


def copying(here: NodeSite) -> bool:
    return any(here.node.root.glob("vz/images/921/vm-921-disk-0.raw/usr/*"))


def drop(here: NodeSite) -> None:
    """The connections end as when a network goes: at once, and nobody on either side is asked."""
    for pid in here.node.sshd.sessions():
        os.kill(pid, signal.SIGKILL)


def held(here: NodeSite) -> list[int]:
    """What asks for the service's state at this moment, stopped while it does."""
    found = asking(here)
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    return [pid for pid in found if pid in asking(here)]


def asking(here: NodeSite) -> list[int]:
    return sorted({*here.node.processes("lxc-attach")} & {*here.node.processes("-I", "-", "state")})


def test_a_line_that_drops_is_rolled_back_over_a_new_one(templated: NodeSite) -> None:
    here = templated
    with in_step(here, "clone", lambda: copying(here)) as process:
        drop(here)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    last = said.splitlines()[-1]
    assert "step clone" in last
    assert "the line dropped while" in last
    assert is_clean(here)
    assert here.running() == []
    assert '"rolled back"' in here.journal(921).read_text()


def test_a_line_that_drops_while_the_service_comes_up_is_waited_for(templated: NodeSite) -> None:
    here = templated
    with in_step(here, "serve", lambda: held(here)) as process:
        drop(here)
        for pid in here.node.processes("lxc-attach"):
            os.kill(pid, signal.SIGCONT)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "the line dropped while" in said
    assert here.running() == ["921"]
    here.passes("destroy", "921", "--yes")
    assert is_clean(here)


def test_a_line_that_stays_away_leaves_a_journal_that_a_roll_back_finishes(templated: NodeSite) -> None:
    here = templated
    keys = here.node.root / "ssh/authorized_keys"
    with in_step(here, "clone", lambda: copying(here)) as process:
        keys.rename(keys.with_suffix(".away"))
        try:
            drop(here)
            _, said = process.communicate(timeout=120)
        finally:
            keys.with_suffix(".away").rename(keys)
    assert process.returncode == 1
    assert "nothing was taken back" in said.splitlines()[-1]
    refused = deploy(here, 921)
    assert refused.returncode == 1
    assert "run `builder deploy --ctid 921 --resume` or `builder rollback 921`" in refused.stderr
    here.passes("rollback", "921")
    assert is_clean(here)


def test_a_killed_builder_is_resumed_once_its_clone_on_the_node_has_ended(templated: NodeSite) -> None:
    here = templated
    with in_step(here, "clone", lambda: copying(here)) as process:
        process.kill()
    here.passes("deploy", "--ctid", "921", "--resume")
    assert (here.containers(), here.running()) == (["920", "921"], ["921"])
    here.passes("destroy", "921", "--yes")
    assert is_clean(here)


def test_what_a_hangup_leaves_on_the_node_is_taken_away(templated: NodeSite) -> None:
    here = templated
    with in_step(here, "clone", lambda: copying(here)) as process:
        command, _worker = sorted(here.node.processes("simulated_pve", "pct", "clone"))
        os.kill(command, signal.SIGHUP)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "step clone" in said.splitlines()[-1]
    assert is_clean(here)


@pytest.fixture
def host(templated: NodeSite, monkeypatch: pytest.MonkeyPatch) -> Host:
    """The node as the builder drives it."""
    monkeypatch.setenv("BUILDER_SSH", templated.env["BUILDER_SSH"])
    return open_host(templated.host)


def test_a_device_that_is_not_there_is_told_with_the_way_out(host: Host, templated: NodeSite) -> None:
    node, network = templated.node, Network(bridge=templated.bridge.name, mac="02:00:00:00:09:21")
    container = Container(921, "sim-card", network=network, root_gib=12)
    settings = Settings(container, ("builder",), "", (Device("/dev/nvidia-uvm"),))
    host.clone(920, container, full=True, description="")
    way_out = r"Device /dev/nvidia-uvm does not exist.*`nvidia-modprobe -c 0 -u`"
    with pytest.raises(BuilderError, match=way_out):
        host.configure(settings)
    node.does("mknod", "/dev/nvidia-uvm", "c", "10", "200")
    host.configure(settings)
    host.start(921)
    assert host.shell.ask(*host.inside(921, ("stat", "-c", "%F %t:%T %a", "/dev/nvidia-uvm"))).text == (
        "character special file a:c8 666"
    )
    host.stop(921)
    node.does("rm", "/dev/nvidia-uvm")
    with pytest.raises(BuilderError, match=way_out):
        host.start(921)
    host.set_onboot(921, True)
    assert "onboot: 1" in node.config(921)
    host.destroy(921)
    assert is_clean(templated)


def test_a_card_whose_driver_cannot_be_loaded_is_refused_before_anything_is_made(templated: NodeSite) -> None:
    here, before = templated, templated.node.does("ls", "-A", "/usr/local/sbin", "/etc/systemd/system")
    here.node.does("mount", "-t", "tmpfs", "none", "/proc/driver")
    try:
        here.node.does("sh", "-euc", SIMULATED_CARD)
        done = deploy(here, 921, "--profile", "card")
    finally:
        here.node.does("umount", "/proc/driver")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert "step host unit" in last
    assert "module nvidia-uvm cannot be loaded" in last
    assert "builder-nvidia" in last
    assert here.node.does("ls", "-A", "/usr/local/sbin", "/etc/systemd/system") == before
    assert is_clean(here)
