"""The host's unit: a script that loads the modules, makes the nodes and keeps the driver's userspace, at every boot.

Not a hookscript: Proxmox checks a container's `dev[n]` entries before it calls the hookscript (docs/gpu-host.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from importlib import resources

from builder.deploy.gpu.look import DRIVER_FOLDER
from builder.deploy.shell import Shell
from builder.errors import BuilderError

UNIT = "builder-nvidia.service"
_SYSTEMD = ("test", "-d", "/run/systemd/system")
_WRITE = 'mkdir -p "${0%/*}" && cat > "$0" && chmod "$1" "$0"'
_FOLDER = DRIVER_FOLDER.rpartition("/")[0]
_PARENT = _FOLDER.rpartition("/")[0]
_FORGET = f"rm -rf {_FOLDER}; [ ! -d {_PARENT} ] || rmdir --ignore-fail-on-non-empty {_PARENT}"


@dataclass(frozen=True)
class HostFile:
    """A file that is written onto the host."""

    path: str
    content: bytes
    mode: str

    @property
    def sha256(self) -> str:
        """Hexadecimal."""
        return sha256(self.content).hexdigest()


def host_unit_files() -> tuple[HostFile, HostFile]:
    """The script and the unit that runs it before any container starts."""
    data = resources.files("builder").joinpath("data/host")
    return (
        HostFile("/usr/local/sbin/builder-nvidia", data.joinpath("builder-nvidia").read_bytes(), "0755"),
        HostFile(f"/etc/systemd/system/{UNIT}", data.joinpath(UNIT).read_bytes(), "0644"),
    )


def installed(shell: Shell) -> bool:
    """Whether both files are there as this version writes them, and the unit is enabled where systemd runs."""
    files = host_unit_files()
    told = shell.ask("sha256sum", *(file.path for file in files)).text.splitlines()
    if told != [f"{file.sha256}  {file.path}" for file in files]:
        return False
    return shell.ask(*_SYSTEMD).status != 0 or shell.ask("systemctl", "is-enabled", "-q", UNIT).status == 0


def present(shell: Shell) -> bool:
    """Whether anybody installed the script, in whatever version."""
    return shell.ask("test", "-e", host_unit_files()[0].path).status == 0


def install(shell: Shell) -> None:
    """Write what is not there yet, run the script, and enable the unit where systemd runs.

    Does no harm where all is done already: deploys call it to have nodes and userspace as they should be. Raises
    BuilderError with the script's own words, for instance when nvidia-uvm cannot be loaded; then nothing is enabled.
    """
    files = host_unit_files()
    for file in files:
        if shell.ask("sha256sum", file.path).text.split()[:1] != [file.sha256]:
            _write(shell, file)
    script = files[0].path
    done = shell.do(script, timeout=300)
    if done.status != 0:
        said = " ".join((done.err or done.out).decode(errors="replace").split())
        raise BuilderError(said or f"exit {done.status}", where="the host's NVIDIA driver", hint=f"then run {script}")
    if shell.ask(*_SYSTEMD).status == 0:
        shell.do("systemctl", "daemon-reload").check()
        shell.do("systemctl", "enable", "--now", UNIT, timeout=300).check()


def uninstall(shell: Shell) -> None:
    """Take all of it away but the device nodes, which live until the next boot, and the loaded modules.

    Containers that mount the folder find it empty from now on: only for when none is left that wants it.
    """
    if shell.ask(*_SYSTEMD).status == 0 and shell.ask("systemctl", "cat", UNIT).status == 0:
        shell.do("systemctl", "disable", "--now", UNIT).check()
    shell.do("rm", "-f", *(file.path for file in host_unit_files())).check()
    if shell.ask(*_SYSTEMD).status == 0:
        shell.do("systemctl", "daemon-reload").check()
    shell.do("sh", "-c", _FORGET).check()


def _write(shell: Shell, file: HostFile) -> None:
    name, new = file.path.rpartition("/")[2], f"{file.path}.new"
    shell.do("sh", "-c", _WRITE, new, file.mode, stdin=file.content, note=f"the builder's {name}").check()
    shell.do("sha256sum", "--check", stdin=f"{file.sha256}  {new}\n".encode(), note=f"sha256 of {name}").check()
    shell.do("mv", new, file.path).check()
