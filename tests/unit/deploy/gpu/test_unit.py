"""How the host's unit comes onto a host and goes; that its script works is for tests/e2e/test_gpu_host.py."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from builder.deploy.gpu import UNIT, host_unit_files, install, installed, uninstall
from builder.deploy.shell import Shell
from builder.errors import BuilderError

from .hosts import SimulatedChannel

SCRIPT, SERVICE = host_unit_files()
SUMS = "\n".join(f"{file.sha256}  {file.path}" for file in host_unit_files())


def machine(
    *, there: bool = True, systemd: bool = True, enabled: bool = True, script: tuple[int, str] = (0, "")
) -> Shell:
    def answer(argv: Sequence[str]) -> tuple[int, str]:
        if argv[0] == "sha256sum" and "--check" not in argv:
            lines = [line for line in SUMS.splitlines() if line.split()[1] in argv]
            return (0, "\n".join(lines)) if there else (1, "No such file or directory")
        if argv[0] == "test":
            return (0 if systemd else 1), ""
        if argv[:2] == ("systemctl", "is-enabled"):
            return (0 if enabled else 1), ""
        return script if argv[0] == SCRIPT.path else (0, "")

    return Shell(SimulatedChannel(answer))


def test_the_script_runs_before_containers_start() -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(SERVICE.content.decode())
    assert unit["Service"]["ExecStart"] == SCRIPT.path
    assert {"pve-guests.service", "lxc.service"} <= set(unit["Unit"]["Before"].split())
    assert unit["Install"]["WantedBy"] == "multi-user.target"


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_the_script_has_nothing_for_shellcheck_to_say(tmp_path: Path) -> None:
    (tmp_path / "script").write_bytes(SCRIPT.content)
    done = subprocess.run(["shellcheck", str(tmp_path / "script")], capture_output=True, text=True)
    assert done.stdout == ""


def test_what_is_there_already_is_not_written_again_but_run() -> None:
    shell = machine()
    assert installed(shell)
    install(shell)
    assert shell.record == [SCRIPT.path, "systemctl daemon-reload", f"systemctl enable --now {UNIT}"]


def test_a_bare_host_gets_both_files_verified_before_they_have_their_names() -> None:
    shell = machine(there=False)
    assert not installed(shell)
    install(shell)
    first = [line.split(" < ")[0] for line in shell.record[:3]]
    assert first[1:] == ["sha256sum --check", f"mv {SCRIPT.path}.new {SCRIPT.path}"]
    assert f"{SCRIPT.path}.new 0755" in first[0]
    assert len(shell.record) == 9


def test_a_host_without_systemd_runs_the_script_alone() -> None:
    shell = machine(systemd=False)
    assert installed(shell)
    install(shell)
    assert shell.record == [SCRIPT.path]


def test_files_without_the_unit_enabled_are_not_installed() -> None:
    assert not installed(machine(enabled=False))


def test_when_the_script_fails_its_words_are_the_error_and_nothing_is_enabled() -> None:
    shell = machine(script=(1, "builder-nvidia: module nvidia-uvm cannot be loaded"))
    with pytest.raises(BuilderError, match="NVIDIA driver: builder-nvidia: module nvidia-uvm cannot be loaded"):
        install(shell)
    assert not any("systemctl" in line for line in shell.record)


def test_uninstall_takes_files_unit_and_folder() -> None:
    shell = machine()
    uninstall(shell)
    assert shell.record[0] == f"systemctl disable --now {UNIT}"
    assert shell.record[1] == f"rm -f {SCRIPT.path} {SERVICE.path}"
    assert "rm -rf /var/lib/builder/nvidia" in shell.record[3]
