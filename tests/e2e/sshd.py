"""A private sshd on the loopback with throwaway keys, and the `ssh` that reaches it."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from builder.deploy.channel import Ssh


@dataclass(frozen=True)
class Sshd:
    """A running sshd: its process, its port, and how `ssh` finds it."""

    pid: int
    port: int
    program: tuple[str, ...]  # ssh with its configuration

    def channel(self) -> Ssh:
        """A channel of its own, with a connection of its own."""
        return Ssh("127.0.0.1", user="root", port=self.port, program=self.program)

    def sessions(self) -> tuple[int, ...]:
        """The processes that serve open connections, direct children of the listening one."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        return tuple(map(int, children.split()))


@contextmanager
def private_sshd(folder: Path, within: Sequence[str] = ()) -> Iterator[Sshd]:
    """An sshd that lets root in with a key made for it in `folder`, as long as the block lasts.

    `within` is a command that becomes the one behind it, such as `unshare` with a mount namespace.
    """
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", folder / name], check=True)
    (folder / "authorized_keys").write_text((folder / "user.pub").read_text())
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    settings = {
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "authorized_keys",
        "PidFile": "none",
        "StrictModes": "no",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "PermitRootLogin": "prohibit-password",
    }
    (folder / "sshd_config").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    (folder / "ssh_config").write_text(
        f"IdentityFile {folder}/user\nIdentitiesOnly yes\nUserKnownHostsFile {folder}/known_hosts\n"
    )
    argv = [*within, "/usr/sbin/sshd", "-D", "-e", "-f", folder / "sshd_config", "-o", "ListenAddress=127.0.0.1", "-p"]
    process, port = _listening(argv, folder / "log")
    key_type, key, _ = (folder / "host.pub").read_text().split()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {key_type} {key}\n")
    try:
        yield Sshd(process.pid, port, ("ssh", "-F", os.fspath(folder / "ssh_config")))
    finally:
        process.terminate()
        process.wait()


def _listening(argv: Sequence[str | Path], log: Path) -> tuple[subprocess.Popen[bytes], int]:
    """An sshd that listens, and its port: one that was free a moment before, or another where it is no more."""
    for _ in range(10):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        with log.open("wb") as file:
            process = subprocess.Popen([*argv, str(port)], stderr=file, stdin=subprocess.DEVNULL)
        while process.poll() is None:
            if b"Server listening on" in log.read_bytes():
                return process, port
            time.sleep(0.02)
    raise RuntimeError(log.read_text())
