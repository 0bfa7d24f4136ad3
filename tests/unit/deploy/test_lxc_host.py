"""Plain LXC as a host, over a simulated machine: what it writes, what it reads, what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder.deploy.host import lxc_config
from builder.deploy.host.lxc import Lxc
from builder.deploy.host.lxc_config import Machine
from builder.deploy.journal import folder_name
from builder.deploy.model import Container, Device, Mark, Network, Settings
from builder.deploy.shell import Done, Shell
from builder.errors import BuilderError

UNIFIED = Machine(True, True, tuple(range(8)), False, ("nameserver 192.0.2.53", "search lab.example"))
LEGACY = replace(UNIFIED, unified=False)
SERVER = Container(
    921,
    "fp8.lab.example",
    network=Network(bridge="br0", ip="192.0.2.21/24", gateway="192.0.2.1", mac="BC:24:11:00:09:21", vlan=7, mtu=1400),
    memory_mib=1024,
    swap_mib=256,
    cores=3,
    onboot=True,
    order=4,
    delay=30,
)


def config(container: Container = SERVER, host: Machine = UNIFIED, **more: object) -> list[str]:
    return lxc_config.render(container, host, **more).splitlines()  # type: ignore[arg-type]


class TestConfig:
    def test_an_unprivileged_container_has_proxmoxs_ids(self) -> None:
        assert {"lxc.idmap = u 0 100000 65536", "lxc.idmap = g 0 100000 65536"} <= set(config())
        assert not [line for line in config(replace(SERVER, unprivileged=False)) if "idmap" in line or "userns" in line]

    def test_network_with_address_vlan_and_mtu(self) -> None:
        assert [line for line in config() if line.startswith("lxc.net")] == [
            "lxc.net.0.type = veth",
            "lxc.net.0.link = br0",
            "lxc.net.0.name = eth0",
            "lxc.net.0.flags = up",
            "lxc.net.0.hwaddr = BC:24:11:00:09:21",
            "lxc.net.0.mtu = 1400",
            "lxc.net.0.veth.vlan.id = 7",
        ]

    def test_limits_are_in_the_words_of_the_hosts_control_groups(self) -> None:
        assert [line for line in config() if "memory" in line] == [
            f"lxc.cgroup2.memory.max = {1 << 30}",
            f"lxc.cgroup2.memory.swap.max = {256 << 20}",
        ]
        assert [line for line in config(host=LEGACY) if "memory" in line] == [
            f"lxc.cgroup.memory.limit_in_bytes = {1 << 30}",
            f"lxc.cgroup.memory.memsw.limit_in_bytes = {(1 << 30) + (256 << 20)}",
        ]
        assert not [line for line in config(host=replace(LEGACY, swap=False)) if "memsw" in line]

    @given(st.integers(100, 10_000), st.integers(1, 12), st.integers(1, 12))
    def test_a_container_has_as_many_cpus_as_cores_and_only_such_that_there_are(
        self, ctid: int, cores: int, cpus: int
    ) -> None:
        online = tuple(range(0, 2 * cpus, 2))
        container = replace(SERVER, ctid=ctid, cores=cores)
        lines = [line for line in config(container, replace(UNIFIED, cpus=online)) if "cpuset" in line]
        if cores >= cpus:
            assert lines == []
        else:
            chosen = [int(word) for word in lines[0].partition(" = ")[2].split(",")]
            assert len(set(chosen)) == len(chosen) == cores
            assert set(chosen) <= set(online)

    def test_start_at_boot(self) -> None:
        assert {"lxc.start.auto = 1", "lxc.start.order = 4", "lxc.start.delay = 30"} <= set(config())
        assert "lxc.start.auto = 0" in config(replace(SERVER, onboot=False))

    def test_apparmor_only_where_it_is(self) -> None:
        assert "lxc.apparmor.profile = unconfined" in config()
        active = config(host=replace(UNIFIED, apparmor=True))
        assert {"lxc.apparmor.profile = generated", "lxc.apparmor.allow_nesting = 1"} <= set(active)

    def test_one_rule_never_closes_the_other_devices_of_an_unprivileged_container(self) -> None:
        lines = config(raw=["lxc.cgroup2.devices.allow: c 195:* rwm"])
        rules = [line for line in lines if "devices" in line]
        assert rules == ["lxc.cgroup2.devices.allow = a", "lxc.cgroup2.devices.allow = c 195:* rwm"]

    def test_raw_lines_in_both_spellings(self) -> None:
        container = replace(SERVER, raw=("lxc.prlimit.nofile=4096",))
        assert config(container, raw=["lxc.mount.entry: /a b none bind 0 0"])[-2:] == [
            "lxc.prlimit.nofile = 4096",
            "lxc.mount.entry = /a b none bind 0 0",
        ]

    @pytest.mark.parametrize("line", ["", "lxc.idmap", "mp0: /a,mp=/b", "lxc.a: b\nlxc.rootfs.path: /", "lxc.: b"])
    def test_a_raw_line_that_is_none(self, line: str) -> None:
        with pytest.raises(BuilderError, match=r"no line of the form lxc\.KEY: VALUE"):
            config(raw=[line])

    @pytest.mark.parametrize("host", [UNIFIED, LEGACY])
    @pytest.mark.parametrize("unprivileged", [True, False])
    def test_what_is_written_is_read_again(self, host: Machine, unprivileged: bool) -> None:
        text = lxc_config.render(replace(SERVER, unprivileged=unprivileged), host)
        assert "".join(f"{key} = {value}\n" for key, value in lxc_config.parse(f"# note\n\n{text}")) == text


class TestDevices:
    NULL = Device("/dev/nvidia0")

    def test_the_node_is_bound_and_a_privileged_container_may_open_it(self) -> None:
        nodes = lxc_config.nodes([self.NULL], "character special file|c3|fe|666|/dev/nvidia0\n")
        entry = "lxc.mount.entry = /dev/nvidia0 dev/nvidia0 none bind,optional,create=file"
        assert entry in config(nodes=nodes)
        assert "lxc.cgroup2.devices.allow = c 195:254 rwm" not in config(nodes=nodes)
        privileged = replace(SERVER, unprivileged=False)
        assert {entry, "lxc.cgroup2.devices.allow = c 195:254 rwm"} <= set(config(privileged, nodes=nodes))
        assert "lxc.cgroup.devices.allow = c 195:254 rwm" in config(privileged, LEGACY, nodes=nodes)

    @pytest.mark.parametrize(
        ("said", "message"),
        [
            ("", "/dev/nvidia0: does not exist"),
            ("regular empty file|0|0|644|/dev/nvidia0", "is no device node but a regular empty file"),
            ("character special file|c3|0|660|/dev/nvidia0", "mode 0660 on the host.*run: chmod 0666 /dev/nvidia0"),
        ],
    )
    def test_a_node_that_would_not_serve_is_refused(self, said: str, message: str) -> None:
        with pytest.raises(BuilderError, match=message):
            lxc_config.nodes([self.NULL], said)

    def test_a_path_that_lxc_would_read_otherwise_is_refused(self) -> None:
        with pytest.raises(BuilderError, match="no path of a device node"):
            lxc_config.nodes([Device("/dev/a b")], "")


class TestIdentity:
    def test_a_fixed_address(self) -> None:
        files = lxc_config.identity(SERVER, UNIFIED)
        assert files["/etc/hostname"] == "fp8\n"
        assert files["/etc/hosts"].splitlines()[-1] == "192.0.2.21 fp8.lab.example fp8"
        assert files["/etc/network/interfaces"] == (
            "auto lo\niface lo inet loopback\n\n"
            "auto eth0\niface eth0 inet static\n\taddress 192.0.2.21/24\n\tgateway 192.0.2.1\n"
        )

    @pytest.mark.parametrize("ip", ["dhcp", "manual"])
    def test_no_fixed_address(self, ip: str) -> None:
        files = lxc_config.identity(replace(SERVER, name="fp8", network=Network(ip=ip)), UNIFIED)
        assert files["/etc/network/interfaces"].endswith(f"auto eth0\niface eth0 inet {ip}\n")
        assert files["/etc/hosts"].splitlines()[-1] == "127.0.1.1 fp8"

    def test_own_nameservers_or_the_hosts_that_a_container_reaches(self) -> None:
        own = replace(SERVER.network, nameservers=("192.0.2.1", "192.0.2.2"), searchdomain="own.example")
        assert lxc_config.identity(replace(SERVER, network=own), UNIFIED)["/etc/resolv.conf"] == (
            "search own.example\nnameserver 192.0.2.1\nnameserver 192.0.2.2\n"
        )
        assert lxc_config.identity(SERVER, UNIFIED)["/etc/resolv.conf"] == (
            "search lab.example\nnameserver 192.0.2.53\n"
        )
        stub = replace(UNIFIED, resolv=("nameserver 127.0.0.53",))
        assert "/etc/resolv.conf" not in lxc_config.identity(SERVER, stub)


@pytest.mark.parametrize(
    ("table", "allowed"),
    [
        ("root:100000:65536", True),
        ("alice:100000:65536\n0:65536:1000000\n", True),
        ("alice:100000:65536\n", False),
        ("root:100000:65535\n", False),
        ("root:100001:65536\n", False),
        ("root:many:65536\n\n#", False),
    ],
)
def test_subordinate_ids(table: str, allowed: bool) -> None:
    assert lxc_config.allowed(table) is allowed


@dataclass
class SimulatedMachine:
    """A channel that answers commands with the first text whose key is in the command, else with nothing."""

    answers: dict[str, str] = field(default_factory=dict)
    fails: str | None = None
    ran: list[str] = field(default_factory=list)
    name: str = "a simulated machine"

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | Path | None = None,
        timeout: float | None = None,
        output: Callable[[bytes], None] | None = None,
    ) -> Done:
        line = " ".join(argv)
        self.ran.append(line)
        if self.fails is not None and self.fails in line:
            return Done(tuple(argv), 2, b"", b"tar: x: Cannot write: No space left on device\ntar: exiting\n")
        said = next((text for key, text in self.answers.items() if key in line), "")
        return Done(tuple(argv), 0, said.encode(), b"")


FACTS = """\
uid=0
version=5.0.2
root=yes
bridge=1 1500
subuid=root:100000:65536
subgid=root:100000:65536
node=666 /dev/nvidia0
"""
MACHINE = "cgroup=cgroup2fs\ncpus=0-3,8\napparmor=N\nresolv=nameserver 192.0.2.53\n"
MARK = Mark("r1", "fp8", "server", "0" * 64, "smoke_1")


def look(*containers: tuple[int, dict[str, object] | None, str | None], active: Sequence[int] = ()) -> str:
    """What the script that looks prints of containers: id, record, configuration."""
    lines = []
    for ctid, record, text in containers:
        lines += [f"{ctid}/"]
        lines += [f"{ctid}/builder.json:{json.dumps(record)}"] if record is not None else []
        lines += [f"{ctid}/config:{line}" for line in text.splitlines()] if text is not None else []
    return "\n".join([*lines, *(f"active:{ctid}" for ctid in active)]) + "\n"


def lxc(*containers: tuple[int, dict[str, object] | None, str | None], **more: object) -> tuple[Lxc, SimulatedMachine]:
    running = more.pop("active", ())
    answers = {
        "lxc-ls": look(*containers, active=running),  # type: ignore[arg-type]
        "command -v": FACTS,
        "cpu/online": MACHINE,
        "lxc-info": "STOPPED",
        **more.pop("answers", {}),  # type: ignore[dict-item]
    }
    channel = SimulatedMachine(answers, **more)  # type: ignore[arg-type]
    return Lxc(Shell(channel)), channel


OWN = {"name": "fp8", "tags": ["builder"], "description": f"two\n{MARK.line()}"}
CONFIG = "lxc.uts.name = fp8\nlxc.idmap = u 0 100000 65536\nlxc.rootfs.path = dir:/var/lib/lxc/920/rootfs\n"
CLONED_ONLY = CONFIG + "lxc.hook.pre-start = /bin/false\n"


class TestGuests:
    def test_ours_foreign_and_unfinished_ones(self) -> None:
        host, _ = lxc((920, OWN, CLONED_ONLY), (921, OWN, None), (99, None, CONFIG), (98, None, None), active=[99])
        empty, foreign, template, half = host.guests()
        assert (template.name, template.template, template.running, template.lock) == ("fp8", True, False, "")
        assert template.mark == MARK
        assert (half.lock, half.mark) == ("create", MARK)
        assert (foreign.name, foreign.running, foreign.lock, foreign.mark) == ("fp8", True, "", None)
        assert foreign.raw[0] == "lxc.uts.name: fp8"
        assert (empty.name, empty.lock, empty.mark) == ("98", "", None)

    def test_a_record_that_is_none_marks_nothing(self) -> None:
        host, channel = lxc()
        channel.answers["lxc-ls"] = "921/\n921/builder.json:[1\n921/config:lxc.uts.name = x\n"
        (guest,) = host.guests()
        assert (guest.name, guest.mark) == ("x", None)

    def test_the_name_of_a_host_fits_a_file(self) -> None:
        assert lxc()[0].name == "lxc"
        places = ("/srv/lxc", "/srv-lxc", "/srv_lxc", "/srv+lxc")
        names = [folder_name(Lxc(Shell(SimulatedMachine()), Path(place)).name) for place in places]
        assert names[0].startswith("lxc-srv-lxc-")
        assert len(set(names)) == len(places)


class TestProblems:
    @pytest.mark.parametrize(
        ("instead", "by", "message"),
        [
            ("uid=0", "uid=1000", "as root"),
            ("version=5.0.2", "missing=lxc-start\nversion=", "apt-get install lxc"),
            ("version=5.0.2", "version=3.1.0", "too old"),
            ("root=yes\n", "", "mkdir -m 755 /var/lib/lxc"),
            ("bridge=1 1500\n", "", "no bridge br0.*ip link add br0"),
            ("bridge=1", "bridge=0", "vlan_filtering 1"),
            ("1500", "1300", "MTU 1400 is more than the 1300"),
            ("subgid=root", "subgid=alice", "usermod --add-subuids 100000-165535 --add-subgids 100000-165535 root"),
            ("node=666", "node=660", "chmod 666 /dev/nvidia0"),
        ],
    )
    def test_each_names_the_way_out(self, instead: str, by: str, message: str) -> None:
        host, channel = lxc()
        assert host.problems(replace(SERVER, gpus=(0,))) == ()
        channel.answers["command -v"] = FACTS.replace(instead, by)
        (problem,) = host.problems(replace(SERVER, gpus=(0,)))
        assert re.search(message, problem)

    def test_a_firewall_that_would_not_be_there(self) -> None:
        host, _ = lxc()
        assert host.problems(replace(SERVER, network=replace(SERVER.network, firewall=True))) == (
            "plain LXC has no firewall: switch it off for this container",
        )


class TestChanges:
    SETTINGS = Settings(SERVER, ("builder",), MARK.line())

    def test_a_template_is_unpacked_as_proxmox_does_and_inside_the_id_map(self) -> None:
        host, channel = lxc()
        host.create(SERVER, "/tmp/a.tar.zst", self.SETTINGS)
        (line,) = [line for line in channel.ran if "tar xpf" in line]
        order = ["lxc-usernsexec", "tar xpf", "--numeric-owner", "-C /var/lib/lxc/921/rootfs", "--exclude ./dev/*"]
        assert [line.index(word) for word in order] == sorted(line.index(word) for word in order)
        chroots = [line for line in channel.ran if "exec chroot" in line]
        assert chroots
        assert all(line.startswith("flock /var/lib/lxc/921 lxc-usernsexec ") for line in chroots)

    def test_what_fails_is_taken_back_and_told_in_one_line(self) -> None:
        host, channel = lxc(fails="tar xpf")
        with pytest.raises(BuilderError, match="No space left on device") as error:
            host.create(SERVER, "/tmp/a.tar.zst", self.SETTINGS)
        assert str(error.value) == "container 921: tar: x: Cannot write: No space left on device | tar: exiting"
        assert channel.ran[-1].endswith("/var/lib/lxc 921")
        assert "rm -rf --one-file-system" in channel.ran[-1]

    def test_full_copies_keep_everything_and_links_lie_over_the_template(self) -> None:
        host, channel = lxc((920, OWN, CLONED_ONLY))
        host.clone(920, SERVER, full=True, description="d")
        assert any("cp -a --preserve=xattr --reflink=auto /var/lib/lxc/920/rootfs" in line for line in channel.ran)
        host.clone(920, SERVER, full=False, description="d")
        assert sum("cp -a" in line for line in channel.ran) == 1
        lines = lxc_config.root_lines("/r/921", "/r/920", unprivileged=True)
        assert lines == "lxc.rootfs.path = overlay:/r/920/rootfs:/r/921/delta/upper\nlxc.rootfs.options = userxattr\n"
        assert lxc_config.base_of(lxc_config.parse(lines)) == "/r/920/rootfs"

    @pytest.mark.parametrize(
        ("containers", "active", "change", "message"),
        [
            ([(920, OWN, CLONED_ONLY)], [], lambda host: host.start(920), "only cloned"),
            ([(921, OWN, None)], [], lambda host: host.start(921), "was not finished"),
            ([(921, OWN, CONFIG)], [921], lambda host: host.destroy(921), "runs; stop it first"),
            ([(921, None, CONFIG)], [], lambda host: host.destroy(921), "not of the builder's making"),
            ([], [], lambda host: host.destroy(921), "is not there"),
            ([(920, OWN, CONFIG)], [], lambda host: host.clone(920, SERVER, full=True, description=""), "no template"),
            ([], [], lambda host: host.clone(920, SERVER, full=True, description=""), "template 920: is not there"),
            ([(921, OWN, CONFIG)], [921], lambda host: host.configure(TestChanges.SETTINGS), "runs; stop it first"),
            ([(921, OWN, CLONED_ONLY)], [], lambda host: host.configure(TestChanges.SETTINGS), "only cloned"),
        ],
    )
    def test_refusals_change_nothing(
        self,
        containers: list[tuple[int, dict[str, object] | None, str | None]],
        active: list[int],
        change: Callable[[Lxc], None],
        message: str,
    ) -> None:
        host, _ = lxc(*containers, active=active)
        with pytest.raises(BuilderError, match=message):
            change(host)
        assert host.shell.record == []

    def test_a_template_with_linked_clones_stays(self) -> None:
        over = CONFIG.replace(
            "dir:/var/lib/lxc/920/rootfs", "overlay:/var/lib/lxc/920/rootfs:/var/lib/lxc/921/delta/upper"
        )
        host, _ = lxc((920, OWN, CLONED_ONLY), (921, OWN, over))
        with pytest.raises(BuilderError, match=r"has linked clones: 921 \(fp8\)"):
            host.destroy(920)
        with pytest.raises(BuilderError, match="is a linked clone itself"):
            host.make_template(921)
        assert host.shell.record == []

    def test_recover_takes_only_what_was_not_finished(self) -> None:
        whole, _ = lxc((921, OWN, CONFIG))
        whole.recover(921, 920)
        assert not [line for line in whole.shell.record if "rm -rf" in line]
        half, _ = lxc((921, OWN, None))
        half.recover(921, 920)
        assert [line for line in half.shell.record if "rm -rf" in line]
        assert "flock --timeout" in half.shell.record[0]

    def test_a_start_that_fails_tells_the_cause_from_the_log(self) -> None:
        log = (
            "lxc-start 921 20260101000000.000 ERROR    network - ../src/network.c:f:1 - No such device - no bridge\n"
            "lxc-start 921 20260101000000.000 ERROR    lxc_start - ../src/lxc/tools/lxc_start.c:main:306 - It failed\n"
        )
        host, _ = lxc((921, OWN, CONFIG), answers={"cat ": log}, fails="lxc-start -P")
        with pytest.raises(BuilderError, match=r"container 921: it did not start: No such device - no bridge$"):
            host.start(921)

    def test_inside_a_container_nothing_of_the_hosts_environment_is_seen(self) -> None:
        host, _ = lxc()
        argv = host.inside(921, ("env", "--", "-x"))
        assert argv[:6] == ("lxc-attach", "-P", "/var/lib/lxc", "-n", "921", "--clear-env")
        assert argv[-4:] == ("--", "env", "--", "-x")
