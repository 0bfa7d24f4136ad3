"""Containers of Proxmox, against a channel that answers as the real one was recorded to."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from builder.deploy.channel import Local
from builder.deploy.host import config, explain, open_host, open_pct
from builder.deploy.host.base import Capabilities
from builder.deploy.host.pct import Pct
from builder.deploy.host.schema import checker
from builder.deploy.model import Container, Device, File, Folder, Mark, Network, Settings
from builder.deploy.put import put
from builder.deploy.shell import Done, LostError, Shell
from builder.errors import BuilderError, UsageError

from .simulated import Recorded, SimulatedChannel, failed, recorded, told

Answers = dict[str, list[Done | str | Callable[[], Done]]]

DIGEST = "ab" * 32
CONTAINER = Container(
    ctid=941,
    name="fp8",
    network=Network(ip="10.0.0.41/24", gateway="10.0.0.1", mac="bc:24:11:00:09:41", vlan=7, nameservers=("10.0.0.53",)),
    memory_mib=8192,
    cores=8,
    root_gib=32,
    models=(Folder("/srv/models", "/models"),),
    order=3,
    delay=30,
)
MARK = Mark(run="r1", name="fp8", role="server", digest=DIGEST, recipe="vllm_1")
MOUNT = "lxc.mount.entry: /srv/models models none ro,bind,optional,create=dir"
SETTINGS = Settings(CONTAINER, ("builder", "builder-fp8"), MARK.line(), (Device("/dev/nvidia0"),), (MOUNT,))
GONE = Done((), 1, b"", b"cat: /etc/pve/lxc/941.conf: No such file or directory\n")
LOOKS: Answers = {
    "cat /etc/pve/lxc/941.conf": [told("941.conf")],
    "cat /etc/pve/.members": ['{\n"nodename": "vm",\n"version": 0\n}'],
    "cat /sys/class/net/vmbr0/mtu": ["1500\n"],
    "pvesh get /cluster/resources": [told("resources.json")],
    "pvesh get /nodes/localhost/storage": [told("storage.json")],
    "pvesh get /nodes/localhost/tasks": ["[]"],
    "pvesm list": ["Volid Format  Type              Size VMID\n"],
    "pct status 941": ["status: stopped\n"],
    "test -d /srv/models": [""],
}
OLD = Capabilities(False, True, False, "pve-container 5.0.6")
NEW = Capabilities(True, True, False, "pve-container 5.3.5")


def pct(answers: Answers, *, dry: bool = False, capabilities: Capabilities = NEW) -> tuple[Pct, SimulatedChannel]:
    channel = SimulatedChannel({**answers, **{key: list(value) for key, value in LOOKS.items() if key not in answers}})
    shell = Shell(channel, dry=dry, check=checker(8))
    return Pct("pct", shell, capabilities, sleep=lambda seconds: None), channel


# what only looks


def test_a_configuration_is_read_as_proxmox_reads_it() -> None:
    guest = pct({})[0].guest(941)
    assert guest is not None
    assert guest.description == "line1\nline2: ünicode %"
    assert (guest.name, guest.tags, guest.lock, guest.running, guest.template) == (
        "c941",
        ("a", "b", "c"),
        "",
        False,
        False,
    )
    assert guest.config is not None
    assert (guest.config["memory"], guest.config["dev0"]) == ("4096", "/dev/fuse,mode=0666")
    assert "dev1" not in guest.config  # only pending
    assert guest.raw[0] == "lxc.cgroup2.devices.allow: c 195:* rwm"
    assert len(guest.raw) == 2


def test_a_mark_survives_how_proxmox_writes_descriptions() -> None:
    line = MARK.line().replace("%", "%25").replace(":", "%3A")
    assert config.parse(f"#{line}\nhostname: fp8\n").guest(941, running=False).mark == MARK


def test_guests_of_the_whole_cluster_are_listed() -> None:
    kinds = [
        (guest.ctid, guest.name, guest.kind, guest.running, guest.template, guest.lock, guest.tags)
        for guest in pct({})[0].guests()
    ]
    assert kinds == [
        (920, "n920", "lxc", False, True, "", ("a", "b")),
        (999, "CT999", "lxc", False, False, "create", ()),
        (100, "100", "qemu", True, False, "", ()),
    ]


@pytest.mark.parametrize(("ctid", "kind"), [(100, "qemu"), (999, "lxc")])
def test_an_id_that_is_taken_elsewhere_is_not_free(ctid: int, kind: str) -> None:
    guest = pct({f"cat /etc/pve/lxc/{ctid}.conf": [GONE]})[0].guest(ctid)
    assert guest is not None
    assert (guest.kind, guest.mark, guest.config) == (kind, None, None)


def test_a_free_id_has_no_guest() -> None:
    assert pct({"cat /etc/pve/lxc/941.conf": [GONE]})[0].guest(941) is None


def test_a_guest_that_goes_while_it_is_looked_at_is_gone() -> None:
    gone = failed("Configuration file 'nodes/vm/lxc/941.conf' does not exist", 2)
    answers: Answers = {"cat /etc/pve/lxc/941.conf": [told("941.conf"), GONE], "pct status 941": [gone]}
    assert pct(answers)[0].guest(941) is None


def test_storages_are_those_of_the_node() -> None:
    found = {storage.name: storage for storage in pct({})[0].storages()}
    assert (found["local"].kind, found["local"].free, found["local"].containers) == ("dir", 40343781376, True)
    assert (found["nas"].active, found["nas"].templates) == (False, False)


def test_nothing_is_wrong_with_a_container_that_fits() -> None:
    host, channel = pct({})
    assert host.problems(CONTAINER) == ()
    assert channel.changes() == []


def test_all_that_is_wrong_is_told_at_once() -> None:
    wrong = replace(
        CONTAINER,
        name="a_b",
        storage="nas",
        network=Network(bridge="vmbr7", ip="10.0.0.1"),
        tags=("-x",),
        raw=("lxc.mount.auto",),
    )
    host, _ = pct(
        {
            "test -d /srv/models": [failed("")],
            "cat /sys/class/net/vmbr7/mtu": [failed("cat: No such file or directory", 1)],
            "cat /etc/pve/.members": ['{"cluster": {"quorate": 0}}'],
        }
    )
    told_of = "\n".join(host.problems(wrong))
    for part in (
        "--hostname 'a_b'",
        "raw line",
        "no quorum",
        "bridge vmbr7",
        "folder /srv/models",
        "storage nas: is not active",
    ):
        assert part in told_of


def test_a_storage_without_room_and_an_mtu_above_the_bridges_are_told() -> None:
    big = replace(CONTAINER, root_gib=64, storage="bt", network=replace(CONTAINER.network, mtu=9000))
    assert [text.split(":")[0] for text in pct({})[0].problems(big)] == [
        "MTU 9000 is above 1500, that of bridge vmbr0",
        "storage bt has 11.5 GiB free, the root disk may grow to 64",
    ]


def test_volumes_of_an_earlier_container_are_told_before_anything_is_made() -> None:
    row = "local:941/vm-941-disk-0.raw raw     images    2147483648 941"
    listing = f"Volid                       Format  Type            Size VMID\n{row}\n"
    host, channel = pct({"cat /etc/pve/lxc/941.conf": [GONE], "pvesm list": [listing]})
    assert any("local:941/vm-941-disk-0.raw" in text for text in host.problems(CONTAINER))
    with pytest.raises(BuilderError, match="volumes of an earlier container"):
        host.clone(920, CONTAINER, full=True, description="")
    assert channel.changes() == []


def test_backups_of_an_earlier_container_are_no_hindrance() -> None:
    listing = "Volid Format Type Size VMID\nlocal:backup/vzdump-lxc-941-2026.tar.zst tar.zst backup 1 941\n"
    assert pct({"cat /etc/pve/lxc/941.conf": [GONE], "pvesm list": [listing]})[0].problems(CONTAINER) == ()


@pytest.mark.parametrize("has", [0, 1])
def test_the_host_says_whether_clones_can_be_linked(has: int) -> None:
    answer = [f'{{"hasFeature":{has}}}']
    lies: Answers = {"cat /etc/pve/lxc/920.conf": ["rootfs: pool:base-920-disk-0,size=2G\ntemplate: 1\n"]}
    host, _ = pct({"pvesh get /nodes/localhost/lxc/920/feature": answer, **lies})
    assert host.can_link(920, None) is bool(has)
    assert host.can_link(920, "pool") is bool(has)
    assert host.can_link(920, "other") is False


# a whole deploy


def deploy(host: Pct, template: Path) -> None:
    """All calls of a deploy, in order."""
    base = Container(ctid=920, name="template", network=Network(ip="manual", mac="02:00:00:00:09:20"), root_gib=8)
    digest = sha256(template.read_bytes()).hexdigest()
    volume = host.upload(template, digest, "0123456789ab")
    host.create(base, volume, Settings(base, ("builder",), MARK.line()))
    host.make_template(920)
    host.clone(920, CONTAINER, full=True, description=MARK.line())
    host.configure(SETTINGS)
    host.start(941)
    put(host, 941, [File("/etc/vllm/env", b"VLLM_API_KEY=sesame\n", 0o600, secret=True)])
    host.describe(941, MARK.line(), ("builder",))
    host.set_onboot(941, True)
    host.stop(941)
    host.destroy(941)
    host.forget_upload(template.name, digest, "0123456789ab")


def test_a_dry_deploy_shows_every_command_and_changes_nothing(tmp_path: Path) -> None:
    template = tmp_path / "vllm_1.tar.zst"
    template.write_bytes(b"template")
    answers: Answers = {
        "cat /etc/pve/lxc/941.conf": [GONE],
        "cat /etc/pve/lxc/920.conf": [GONE],
        "pvesm path": ["/var/lib/vz/template/cache/vllm_1.tar.zst\n"],
    }
    host, channel = pct(answers, dry=True)
    deploy(host, template)
    raw = shlex.join(config.add_raw(941, [MOUNT])[4:])
    expected = told("dry-deploy.txt").rstrip("\n").replace("FILE", str(template)).replace("RAW", raw)
    assert "\n".join(host.shell.record) == expected.replace("MARK", shlex.quote(MARK.line()))
    assert channel.changes() == []
    assert "sesame" not in "\n".join(host.shell.record)


def test_a_root_disk_of_size_0_is_never_made() -> None:
    with pytest.raises(UsageError, match="needs 1 GiB or more"):
        pct({})[0].create(replace(CONTAINER, root_gib=0), "local:vztmpl/x.tar.zst", SETTINGS)


# uploads

VOLUMES = "Volid Format Type Size VMID\nlocal:vztmpl/vllm_1.tar.zst tzst vztmpl 50885157\n"


CACHE = "/var/lib/vz/template/cache"


def upload(tmp_path: Path, arrived: str | None = None) -> tuple[Callable[[], str], SimulatedChannel]:
    """An upload of the run r1 to a host, which arrives with the digest `arrived`."""
    file = tmp_path / "vllm_1.tar.zst"
    file.write_bytes(b"template")
    digest = sha256(b"template").hexdigest()
    answers: Answers = {
        "pvesm list local --content vztmpl": [VOLUMES],
        "pvesm path local:vztmpl/vllm_1-r1.tar.zst": [f"{CACHE}/vllm_1-r1.tar.zst\n"],
        f"sha256sum -b -- {CACHE}/vllm_1-r1.tar.zst.part": [f"{arrived or digest} *part\n"],
        "sh -ec": [""],
    }
    host, channel = pct(answers)
    return lambda: host.upload(file, digest, "r1"), channel


@pytest.mark.parametrize(("there", "found"), [(b"template", "local:vztmpl/vllm_1.tar.zst"), (b"another", None)])
def test_a_file_that_somebody_put_there_is_found_by_its_content(there: bytes, found: str | None) -> None:
    answers: Answers = {
        "pvesm list local --content vztmpl": [VOLUMES],
        "pvesm path local:vztmpl/vllm_1.tar.zst": [f"{CACHE}/vllm_1.tar.zst\n"],
        f"sha256sum -b -- {CACHE}/vllm_1.tar.zst": [f"{sha256(there).hexdigest()} *file\n"],
    }
    host, _ = pct(answers)
    assert host.find_upload("vllm_1.tar.zst", sha256(b"template").hexdigest()) == found


def test_a_file_is_streamed_and_renamed_when_its_digest_was_read_there(tmp_path: Path) -> None:
    run, channel = upload(tmp_path)
    assert run() == "local:vztmpl/vllm_1-r1.tar.zst"
    order = [line.split()[0] for line in channel.ran if line.startswith(("sh ", "sha256sum"))]
    assert order == ["sh", "sha256sum", "sh"]
    assert tmp_path / "vllm_1.tar.zst" in channel.fed


def test_a_file_damaged_on_its_way_is_removed_and_told(tmp_path: Path) -> None:
    run, channel = upload(tmp_path, arrived="00" * 32)
    with pytest.raises(BuilderError, match=r"vllm_1\.tar\.zst: was damaged on its way to the host; try again"):
        run()
    assert "rm -f" in channel.ran[-1]
    assert channel.ran[-1].endswith(f" {CACHE}/vllm_1-r1.tar.zst")


@pytest.fixture
def cache(tmp_path: Path) -> tuple[Pct, Path]:
    """A storage for templates that is a folder of this machine, where the builder's own scripts run."""
    folder = tmp_path / "cache"
    folder.mkdir()

    class SimulatedStorage(SimulatedChannel):
        def run(self, argv: Sequence[str], **options: Any) -> Done:
            if argv[0] in ("sh", "sha256sum"):
                return Local().run(argv, **options)
            if argv[:2] == ("pvesm", "path"):
                return Done((), 0, f"{folder}/{argv[2].partition('/')[2]}\n".encode(), b"")
            return super().run(argv, **options)

    answers: Answers = {key: list(value) for key, value in LOOKS.items()}
    return Pct("pct", Shell(SimulatedStorage(answers)), NEW), folder


def test_two_machines_that_upload_one_template_do_not_meet(cache: tuple[Pct, Path], tmp_path: Path) -> None:
    (host, folder), file, digest = cache, tmp_path / "vllm_1.tar.zst", sha256(b"template").hexdigest()
    file.write_bytes(b"template")
    with (folder / "vllm_1-other.tar.zst.part").open("wb") as theirs:
        theirs.write(b"temp")
        theirs.flush()
        assert host.upload(file, digest, "mine") == "local:vztmpl/vllm_1-mine.tar.zst"
        theirs.write(b"late")
    assert host.forget_upload(file.name, digest, "mine")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"vllm_1-other.tar.zst.part": b"template"}


def test_what_still_writes_after_its_builder_was_killed_harms_no_later_try(
    cache: tuple[Pct, Path], tmp_path: Path
) -> None:
    (host, folder), file, digest = cache, tmp_path / "vllm_1.tar.zst", sha256(b"template").hexdigest()
    file.write_bytes(b"template")
    with (folder / "vllm_1-r1.tar.zst.part").open("wb") as orphan:
        orphan.write(b"longer than the file")
        orphan.flush()
        host.upload(file, digest, "r1")
        orphan.write(b"and on")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"vllm_1-r1.tar.zst": b"template"}
    (folder / "vllm_1-r1.tar.zst.part").write_bytes(b"half")
    assert host.forget_upload(file.name, digest, "r1")
    assert not host.forget_upload(file.name, digest, "r1")
    assert list(folder.iterdir()) == []


# clones

BUSY = failed("CT is locked (disk)")
TEMPLATE = (
    "#"
    + Mark(run="r0", name="t", role="template", digest=DIGEST, recipe="x").line().replace(":", "%3A")
    + "\ntemplate: 1\n"
)


def test_a_clone_waits_until_others_of_the_template_are_done() -> None:
    host, channel = pct(
        {
            "cat /etc/pve/lxc/941.conf": [GONE],
            "cat /etc/pve/lxc/940.conf": [TEMPLATE],
            "pct clone": [BUSY, BUSY, ""],
            "pvesh get /nodes/localhost/tasks": [told("tasks.json"), told("tasks.json"), "[]"],
        }
    )
    said: list[str] = []
    replace(host, say=said.append).clone(940, CONTAINER, full=True, description="")
    assert [line.split()[1] for line in channel.changes()] == ["clone", "clone", "clone"]
    assert said == ["template 940: waits for vzclone of 940, at most 120 minutes"]


def test_a_copy_has_a_generous_limit(tmp_path: Path) -> None:
    gone: Answers = {f"cat /etc/pve/lxc/{ctid}.conf": [GONE] for ctid in (920, 941)}
    host, channel = pct({**gone, "pct": [""]})
    base = Container(920, "template", network=Network(mac="02:00:00:00:09:20"), root_gib=8)
    host.create(base, "local:vztmpl/x.tar.zst", Settings(base, ("builder",), MARK.line()))
    host.clone(920, CONTAINER, full=True, description="")
    assert [channel.limits[line] for line in channel.changes()] == [7200, 7200]


def test_a_crashed_clones_lock_is_taken_off_a_template_of_the_builder() -> None:
    host, channel = pct(
        {
            "cat /etc/pve/lxc/941.conf": [GONE],
            "cat /etc/pve/lxc/940.conf": [f"{TEMPLATE}lock: disk\n"],
            "pct clone": [BUSY, ""],
            "pct unlock 940": [""],
        }
    )
    host.clone(940, CONTAINER, full=True, description="")
    assert [line.split()[1] for line in channel.changes()] == ["clone", "unlock", "clone"]


def test_a_linked_clone_stays_on_the_templates_storage() -> None:
    host, channel = pct({"cat /etc/pve/lxc/941.conf": [GONE], "pct clone": [""]})
    host.clone(920, replace(CONTAINER, storage="bt"), full=False, description="")
    assert channel.changes() == ["pct clone 920 941 --hostname fp8 --description  --full 0"]


# configuration


def configured(settings: Settings, answers: Answers, capabilities: Capabilities = NEW) -> list[str]:
    taken = "\n".join(settings.raw) + "\nlxc.cgroup2.devices.allow: c 195:* rwm\n"
    entry = "lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file\n"
    defaults: Answers = {"pct config 941": [taken + entry], "pct set": [""], "pct resize": [""], "flock": [""]}
    host, channel = pct({**defaults, **answers}, capabilities=capabilities)
    host.configure(settings)
    return channel.changes()


def test_the_mac_is_kept_where_none_is_given() -> None:
    settings = replace(SETTINGS, container=replace(CONTAINER, network=Network()))
    assert "hwaddr=BC:24:11:19:98:04" in configured(settings, {})[0]


def test_a_root_disk_only_grows() -> None:
    assert any(line == "pct resize 941 rootfs 32G" for line in configured(SETTINGS, {}))
    small = replace(SETTINGS, container=replace(CONTAINER, root_gib=4))
    assert not any("resize" in line for line in configured(small, {}))


def test_a_file_system_that_did_not_grow_is_told_although_pct_says_0() -> None:
    said = "Failed to update the container's filesystem: command 'unshare ...' failed: exit code 1\n"
    with pytest.raises(BuilderError, match="Failed to update the container's filesystem"):
        configured(SETTINGS, {"pct resize": [said]})


def test_a_raw_line_that_proxmox_would_drop_is_told() -> None:
    with pytest.raises(BuilderError, match=r"does not take the raw line 'lxc\.bogus\.key: 1'"):
        configured(replace(SETTINGS, raw=("lxc.bogus.key: 1",)), {"pct config 941": ["hostname: fp8\n"]})


def test_an_old_proxmox_gets_devices_as_raw_lines() -> None:
    changes = configured(SETTINGS, {"stat -c %t /dev/nvidia0": ["c3\n"]}, OLD)
    assert "--dev0" not in changes[0]
    assert "lxc.cgroup2.devices.allow: c 195:* rwm" in changes[1]
    assert "lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind,optional,create=file" in changes[1]


@pytest.mark.parametrize("times", [1, 2])
def test_raw_lines_go_before_the_sections_and_once(tmp_path: Path, times: int) -> None:
    conf = tmp_path / "941.conf"
    conf.write_text(told("941.conf") + f"{MOUNT}\n")  # the last section has it already, which is not the container
    argv = [str(conf) if word == "/etc/pve/lxc/941.conf" else word for word in config.add_raw(941, [MOUNT])[4:]]
    for _ in range(times):
        subprocess.run(argv, check=True)
    head, _, rest = conf.read_text().partition("\n[pve:pending]\n")
    assert head.rstrip("\n") == told("941.conf").partition("\n\n[pve:pending]\n")[0] + f"\n{MOUNT}"
    assert rest == told("941.conf").partition("[pve:pending]\n")[2] + f"{MOUNT}\n"


@pytest.mark.parametrize("before", ["", "onboot: 0\n"])
def test_a_container_whose_card_is_away_can_be_kept_from_starting_at_boot(tmp_path: Path, before: str) -> None:
    away = failed("Device /dev/nvidia1 does not exist")
    host, channel = pct({"pct set 941 --onboot": [away], "flock": [""]})
    host.set_onboot(941, True)
    conf = tmp_path / "941.conf"
    conf.write_text(before + told("941.conf"))
    ran = config.set_key(941, "onboot", "1")
    assert channel.ran[-1] == " ".join(ran)
    subprocess.run([str(conf) if word == "/etc/pve/lxc/941.conf" else word for word in ran[4:]], check=True)
    old, new = config.parse(told("941.conf")), config.parse(conf.read_text())
    assert new == replace(old, keys={**old.keys, "onboot": "1"})
    assert conf.read_text().partition("[pve:pending]")[2] == told("941.conf").partition("[pve:pending]")[2]


def test_a_change_that_is_refused_for_another_reason_is_told() -> None:
    host, channel = pct({"pct set 941 --onboot": [failed("CT is locked (backup)")]})
    with pytest.raises(BuilderError, match="wait until its backup is over"):
        host.set_onboot(941, True)
    assert channel.changes() == ["pct set 941 --onboot 1"]


# start and stop


def test_a_device_that_is_there_after_all_is_tried_again() -> None:
    host, channel = pct(
        {"pct start 941": [failed("Device /dev/nvidia0 does not exist"), ""], "test -e /dev/nvidia0": [""]}
    )
    host.start(941)
    assert channel.changes() == ["pct start 941", "pct start 941"]


def test_a_device_that_is_not_there_is_told_with_the_way_out() -> None:
    host, _ = pct(
        {"pct start 941": [failed("Device /dev/nvidia-uvm does not exist")], "test -e /dev/nvidia-uvm": [failed("", 1)]}
    )
    with pytest.raises(BuilderError, match=r"container 941: `pct start`: Device /dev/nvidia-uvm .*nvidia-modprobe"):
        host.start(941)


def test_what_runs_is_not_started_and_what_is_stopped_not_stopped() -> None:
    host, _ = pct({"pct start": [failed("CT 941 already running")], "pct shutdown": [failed("CT 941 not running")]})
    host.start(941)
    host.stop(941)


# after a crash


@pytest.mark.parametrize("locked", ["create", "disk"])
def test_a_half_made_container_goes_once_nobody_works_on_it(locked: str) -> None:
    conf = f"hostname: CT941\nlock: {locked}\n"
    host, channel = pct(
        {
            "cat /etc/pve/lxc/941.conf": [conf],
            "pvesh get /nodes/localhost/tasks": [told("tasks.json").replace('"940"', '"941"'), "[]"],
            "pct unlock 941": [failed("no lock found trying to remove any lock")],
            "sh -ec": [""],
            "pct destroy 941": [""],
        }
    )
    host.recover(941, None)
    words = [line.split()[1] for line in channel.changes()]
    assert words == (["unlock", "-ec", "destroy"] if locked == "create" else ["unlock"])
    assert sum(line.startswith("pvesh get /nodes/localhost/tasks") for line in channel.ran) == 2


def test_a_clone_that_still_runs_is_waited_for_although_its_task_names_the_template() -> None:
    host, channel = pct(
        {
            "cat /etc/pve/lxc/941.conf": ["lock: create\n", "lock: create\n", "hostname: fp8\n"],
            "pvesh get /nodes/localhost/tasks": [told("tasks.json"), told("tasks.json"), "[]"],
        }
    )
    host.recover(941, None)
    assert channel.changes() == []


def test_a_whole_container_is_left_alone_and_its_template_unlocked() -> None:
    host, channel = pct({"cat /etc/pve/lxc/920.conf": ["lock: disk\n"], "pct unlock 920": [""]})
    host.recover(941, 920)
    assert channel.changes() == ["pct unlock 920"]


def test_a_backup_of_it_is_not_disturbed() -> None:
    host, channel = pct({"cat /etc/pve/lxc/941.conf": ["lock: backup\n"]})
    with pytest.raises(BuilderError, match=r"is locked \(backup\); wait until that is over"):
        host.recover(941, None)
    assert channel.changes() == []


# words

HINTED = {
    "pct clone 940 972": r"rollback",
    "pct clone 940 976": r"take another --ctid",
    "pct clone 940 941": r"`pct set 941 --delete mp0`",
    "pct clone 960 961": r"deploy with --full",
    "pct set 921 --memory": r"wait until its backup is over",
    "pct set 940 --dev1 /dev/nvidia0": r"nvidia-modprobe",
    "pct set 978": r"lists them",
    "pct create 970 local:vztmpl/base.tar.zst --rootfs nost:1": r"`pvesm status`",
    "pct create 970 local:vztmpl/base.tar.zst --rootfs local:0.1": r"larger RootGiB",
    "pct create 980 local:vztmpl/hiuid": r"cannot be unprivileged",
    "pct start 978": r"a folder that it mounts may be missing",
    "pct start 980": r"--debug 1",
    "pct destroy 979": r"--protection 0",
    "pct shutdown 980": r"not on this host",
}


@pytest.mark.parametrize("each", recorded("refused.txt"), ids=lambda each: shlex.join(each.argv))
def test_proxmox_own_words_reach_the_user_in_one_line(each: Recorded) -> None:
    text = str(explain.failure(each.done(), 941))
    assert text.startswith(f"container 941: `{each.argv[0]} {each.argv[1]}`: ")
    assert "400" not in text
    assert "[OPTIONS]" not in text
    for words, hint in HINTED.items():
        if " ".join(each.argv).startswith(words):
            assert hint.strip("`") in text


# opening


def opened(out: str, where: str = "pct") -> Pct:
    return open_pct(where, SimulatedChannel({"sh -c": [out]}))


def test_a_node_says_what_it_can() -> None:
    assert opened("0\n5.3.5\n").capabilities == Capabilities(True, True, False, "pve-container 5.3.5")
    assert not opened("0\n5.0.6\n").capabilities.device_entries


@pytest.mark.parametrize(
    ("out", "words"),
    [("0\n", "is no Proxmox VE node"), ("1000\n5.3.5\n", "not run as root"), ("0\n4.4.6\n", "is too old")],
)
def test_what_is_no_node_for_the_builder_is_told(out: str, words: str) -> None:
    with pytest.raises(BuilderError, match=words):
        opened(out)


def test_version_9_is_checked_against_its_own_schema() -> None:
    opened("0\n6.1.10\n").shell.check(["pct", "set", "921", "--entrypoint", "/sbin/init"])
    with pytest.raises(UsageError):
        opened("0\n5.3.5\n").shell.check(["pct", "set", "921", "--entrypoint", "/sbin/init"])


@pytest.mark.parametrize(
    "where", ["", "ssh", "ssh:", "ssh:-oProxyCommand=x", "ssh:a b", "ssh:root@pve:99999", "docker"]
)
def test_an_unknown_host_is_told_with_those_there_are(where: str) -> None:
    with pytest.raises(UsageError, match=r"give pct, .*ssh:\[USER@\]HOST\[:PORT\]"):
        open_host(where)


# files into a container


@pytest.mark.parametrize(
    ("line", "words"),
    [("600 root root", None), ("644 root root", "has mode, owner and group"), ("600 root vllm", "has mode")],
)
def test_files_take_effect_only_when_they_arrived_as_they_are(line: str, words: str | None) -> None:
    inside = "pct exec 941 --keep-env 0 --"
    host, channel = pct(
        {
            f"{inside} tar": [""],
            f"{inside} sh -ec for f; do sha": [f"{sha256(b'K=V').hexdigest()} *-\n{line}\n"],
            f"{inside} sh -ec for f; do mv": [""],
            f"{inside} rm": [""],
        }
    )
    file = File("/etc/vllm/env", b"K=V", 0o600, secret=True)
    if words is None:
        put(host, 941, [file])
    else:
        with pytest.raises(BuilderError, match=rf"container 941: /etc/vllm/env {words}"):
            put(host, 941, [file])
    assert channel.ran[-1].split()[6] == ("sh" if words is None else "rm")
    assert any(isinstance(fed, bytes) and b"K=V" in fed for fed in channel.fed)
    assert "K=V" not in "".join([*channel.ran, *host.shell.record])


def test_a_lost_line_is_no_reason_to_touch_an_upload(tmp_path: Path) -> None:
    run, channel = upload(tmp_path, None)

    def lost() -> Done:
        raise LostError("the line dropped")

    channel.answers["sh -ec"] = [lost]
    with pytest.raises(LostError):
        run()
    assert not any(line.startswith("rm ") for line in channel.ran)


def test_answers_that_are_no_json_are_told() -> None:
    with pytest.raises(BuilderError, match="pvesh get /cluster/resources: the answer is no JSON"):
        pct({"pvesh get /cluster/resources": ["oops"]})[0].guests()


def test_recorded_answers_are_json() -> None:
    assert all(json.loads(told(name)) for name in ("resources.json", "storage.json", "tasks.json"))
