"""The host's unit for NVIDIA cards: its real script, in a mount namespace where /proc, /sys and /dev are made up."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from builder.deploy import gpu
from builder.deploy.shell import Done, Shell
from builder.errors import BuilderError

pytestmark = pytest.mark.e2e

OLD, NEW = "580.76.05", "590.44.01"
LIBRARIES = {
    "libcuda": "libcuda.so.1",
    "libnvidia-ml": "libnvidia-ml.so.1",
    "libnvidia-nvvm": "libnvidia-nvvm.so.4",
    "libnvidia-ptxjitcompiler": "libnvidia-ptxjitcompiler.so.1",
}
MOUNTS = {
    "driver": "/proc/driver",
    "devices": "/proc/devices",
    "pci": "/sys/bus/pci/devices",
    "dev": "/dev",
    "local": "/usr/local",
    "lib": "/var/lib",
    "units": "/etc/systemd/system",
    "run": "/run",
}
MODPROBE = """\
#!/bin/sh
# Stands for modprobe: what the kernel would show in /proc once the module is loaded.
case $1 in
nvidia) number=195; cp -r /usr/local/simulated-nvidia /proc/driver/nvidia ;;
nvidia-uvm) number=511
    [ -e /usr/local/simulated-uvm ] || { echo "modprobe: FATAL: Module nvidia-uvm not found." >&2; exit 1; } ;;
esac
rest=$(tail -n +2 /proc/devices)
printf 'Character devices:\\n%s %s\\n%s\\n' $number "$1" "$rest" > /proc/devices
"""
SMI = """\
#!/bin/sh
# Stands for nvidia-smi of driver {version}
echo "00000000:01:00.0, 16311, 4, 12.0, [N/A]"
echo "00000000:02:00.0, 16311, 5000, 12.0, [N/A]"
"""


@dataclass
class SimulatedNvidiaHost:
    """A channel to this machine as it would be with two cards; everything under `tree` outlives a command."""

    tree: Path
    name: str = "a simulated host"

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | Path | None = None,
        timeout: float | None = None,
        output: Callable[[bytes], None] | None = None,
    ) -> Done:
        binds = "".join(f'mount --bind "$0/{source}" {target}\n' for source, target in MOUNTS.items())
        path = "/usr/local/simulated-bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
        inside = ["unshare", "--mount", "--propagation", "private", "sh", "-euc", f'{binds} exec "$@"', str(self.tree)]
        env = {"PATH": path, "LC_ALL": "C", "HOME": "/root"}
        assert not isinstance(stdin, Path)
        done = subprocess.run([*inside, *argv], input=stdin or b"", capture_output=True, timeout=timeout, env=env)
        return Done(tuple(argv), done.returncode, done.stdout, done.stderr)

    def install_libraries(self, version: str) -> None:
        """As a package does: those of the other version go."""
        folder = self.tree / "local/nvidia/lib64"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, soname in LIBRARIES.items():
            library = folder / f"{name}.so.{version}"
            source = f'const char version[] = "{version}";'
            link = [f"-Wl,-soname,{soname}", "-x", "c", "-", "-o", str(library)]
            subprocess.run(["gcc", "-shared", "-nostdlib", *link], input=source.encode(), check=True)
        smi = self.tree / "local/simulated-bin/nvidia-smi"
        smi.write_text(SMI.format(version=version))
        smi.chmod(0o755)

    def boot(self, version: str) -> None:
        """As after a reboot into this version of the module, before anything has used it."""
        for source in ("driver", "dev", "run"):
            shutil.rmtree(self.tree / source, ignore_errors=True)
            (self.tree / source).mkdir()
        os.mknod(self.tree / "dev/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        (self.tree / "devices").write_text("Character devices:\n  1 mem\n\nBlock devices:\n  8 sd\n")
        module = self.tree / "local/simulated-nvidia"
        shutil.rmtree(module, ignore_errors=True)
        for minor in (0, 1):
            card = module / f"gpus/0000:0{minor + 1}:00.0"
            card.mkdir(parents=True)
            bus = f"Bus Location: \t 0000:0{minor + 1}:00.0\nDevice Minor: \t {minor}\n"
            (card / "information").write_text(f"Model: \t\t NVIDIA GeForce RTX 5060 Ti\n{bus}")
        release = f"{version}  Release Build  (root@pve)  Mon Aug  4 12:00:00 UTC 2025"
        (module / "version").write_text(f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {release}\n")

    def snapshot(self) -> list[tuple[str, int, int, int]]:
        """Everything that the script could change."""
        paths = sorted(path for top in ("dev", "lib") for path in (self.tree / top).rglob("*"))
        states = [(str(path), path.lstat()) for path in paths]
        return [(path, state.st_ino, state.st_mtime_ns, state.st_mode) for path, state in states]

    @property
    def kept(self) -> Path:
        return self.tree / "lib/builder/nvidia"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[SimulatedNvidiaHost]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    for name in ("pci/0000:01:00.0", "local/simulated-bin", "lib", "units"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "pci/0000:01:00.0/vendor").write_text("0x10de\n")
    (tmp_path / "pci/0000:01:00.0/class").write_text("0x030000\n")
    (tmp_path / "local/simulated-bin/modprobe").write_text(MODPROBE)
    (tmp_path / "local/simulated-bin/modprobe").chmod(0o755)
    (tmp_path / "local/simulated-uvm").touch()
    host = SimulatedNvidiaHost(tmp_path)
    host.boot(OLD)
    host.install_libraries(OLD)
    return host


def script(host: SimulatedNvidiaHost) -> str:
    """What the installed script says, when it succeeds."""
    done = host.run(["builder-nvidia"])
    assert done.status == 0, done.err
    return (done.out + done.err).decode()


def test_a_bare_host_gets_modules_nodes_and_the_userspace_of_the_running_driver(host: SimulatedNvidiaHost) -> None:
    shell = Shell(host)
    assert not gpu.installed(shell)
    gpu.install(shell)
    assert gpu.installed(shell)
    found = gpu.look(shell)
    assert found.driver == gpu.Driver(OLD, True, gpu.DRIVER_FOLDER)
    assert [card.index for card in found.cards] == [0, 1]
    assert {(card.memory_mib, card.capability) for card in found.cards} == {(16311, "12.0")}
    assert found.nodes == ("/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia0", "/dev/nvidia1", "/dev/nvidiactl")
    assert gpu.preflight(found, "570.26", "12.0") == ()
    modes = {path.name: path.stat() for path in (host.tree / "dev").glob("nvidia*")}
    assert {stat.S_IMODE(state.st_mode) for state in modes.values()} == {0o666}
    assert modes["nvidiactl"].st_rdev == os.makedev(195, 255)
    assert modes["nvidia-uvm-tools"].st_rdev == os.makedev(511, 1)
    folder = host.kept / os.readlink(host.kept / "current")
    links = {path.name: os.readlink(path) for path in folder.iterdir() if path.is_symlink()}
    assert links["libcuda.so"] == "libcuda.so.1"
    assert links["libcuda.so.1"] == f"libcuda.so.{OLD}"
    assert links["libnvidia-nvvm.so.4"] == f"libnvidia-nvvm.so.{OLD}"
    assert os.access(folder / "bin/nvidia-smi", os.X_OK)


def test_the_second_run_changes_nothing_and_says_nothing(host: SimulatedNvidiaHost) -> None:
    gpu.install(Shell(host))
    before = host.snapshot()
    assert script(host) == ""
    assert host.snapshot() == before


def test_after_an_upgrade_without_a_reboot_the_running_drivers_userspace_stays(host: SimulatedNvidiaHost) -> None:
    gpu.install(Shell(host))
    before = host.snapshot()
    host.install_libraries(NEW)
    assert f"those kept for {OLD} stay until a reboot" in script(host)
    assert host.snapshot() == before
    assert gpu.preflight(gpu.look(Shell(host)), None, "") == ()


def test_after_a_reboot_into_another_driver_the_same_path_has_its_userspace(
    host: SimulatedNvidiaHost,
) -> None:
    gpu.install(Shell(host))
    host.install_libraries(NEW)
    host.boot(NEW)
    said = script(host)
    assert f"keeps driver {NEW}" in said
    assert "dropped" in said
    assert (host.kept / f"current/libcuda.so.{NEW}").exists()
    assert [path.name for path in host.kept.glob("*-*")] == [os.readlink(host.kept / "current")]


def test_what_a_container_still_has_mounted_is_not_dropped(host: SimulatedNvidiaHost) -> None:
    gpu.install(Shell(host))
    old = host.kept / os.readlink(host.kept / "current")
    (host.tree / "mounted").mkdir()
    host.install_libraries(NEW)
    host.boot(NEW)
    mount = f"mount --bind {old} {host.tree / 'mounted'} && echo && exec sleep 60"
    with subprocess.Popen(["unshare", "--mount", "sh", "-c", mount], stdout=subprocess.PIPE) as container:
        assert container.stdout is not None
        container.stdout.readline()
        assert "dropped" not in script(host)
        container.kill()
    assert old.exists()
    assert "dropped" in script(host)
    assert not old.exists()


def test_a_node_with_a_stale_number_or_mode_is_made_anew(host: SimulatedNvidiaHost) -> None:
    gpu.install(Shell(host))
    uvm, card = host.tree / "dev/nvidia-uvm", host.tree / "dev/nvidia1"
    uvm.unlink()
    os.mknod(uvm, 0o666 | stat.S_IFCHR, os.makedev(510, 0))
    card.unlink()
    card.touch()  # what a container's mount entry leaves where a node was missing
    assert script(host) == "builder-nvidia: made /dev/nvidia1\nbuilder-nvidia: made /dev/nvidia-uvm\n"
    assert uvm.stat().st_rdev == os.makedev(511, 0)
    assert card.is_char_device()


def test_without_a_card_there_is_nothing_to_do(host: SimulatedNvidiaHost) -> None:
    shutil.rmtree(host.tree / "pci/0000:01:00.0")
    gpu.install(Shell(host))
    assert script(host) == "builder-nvidia: no NVIDIA card here\n"
    assert [path.name for path in (host.tree / "dev").iterdir()] == ["null"]
    assert gpu.look(Shell(host)).driver is None


def test_without_nvidia_uvm_install_fails_with_the_reason(host: SimulatedNvidiaHost) -> None:
    (host.tree / "local/simulated-uvm").unlink()
    with pytest.raises(BuilderError, match=r"module nvidia-uvm cannot be loaded .* Module nvidia-uvm not found"):
        gpu.install(Shell(host))


def test_without_the_drivers_libraries_the_nodes_are_made_and_it_is_said(host: SimulatedNvidiaHost) -> None:
    shutil.rmtree(host.tree / "local/nvidia")
    gpu.install(Shell(host))
    assert "no libcuda.so.580.76.05 here" in script(host)
    assert "the host keeps no userspace" in gpu.preflight(gpu.look(Shell(host)), None, "")[0]


def test_uninstall_leaves_nothing_but_the_nodes(host: SimulatedNvidiaHost) -> None:
    shell = Shell(host)
    before = [path for path in host.tree.rglob("*") if "dev/" not in str(path)]
    gpu.install(shell)
    gpu.uninstall(shell)
    gpu.uninstall(shell)
    after = {path for path in host.tree.rglob("*") if "dev/" not in str(path)}
    left = {str(path.relative_to(host.tree)) for path in after.difference(before)}
    assert {name for name in left if not name.startswith("driver/")} == {"local/sbin"}


def test_a_dry_run_only_records(host: SimulatedNvidiaHost) -> None:
    shell = Shell(host, dry=True)
    gpu.install(shell)
    each = ["sh", "sha256sum", "mv"]
    assert [line.split()[0] for line in shell.record] == [*each, *each, "/usr/local/sbin/builder-nvidia"]
    assert not (host.tree / "local/sbin").exists()
