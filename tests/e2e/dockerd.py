"""A private Docker engine without network: its own socket, data and process."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def private_dockerd() -> Iterator[str]:
    """The $DOCKER_HOST of an engine that runs as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="dockerd-", dir="/var/tmp") as name:
        folder = Path(name)
        socket = folder / "docker.sock"
        argv = ["dockerd", "--iptables=false", "--bridge=none", "--ip-masq=false", "--host", f"unix://{socket}"]
        argv += [f"--data-root={folder}/data", f"--exec-root={folder}/exec", f"--pidfile={folder}/pid"]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 60
            while not socket.exists():
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.1)
            yield f"unix://{socket}"
        finally:
            process.terminate()
            process.wait()
            subprocess.run(
                ["umount", "--lazy", folder / "exec" / "netns" / "default"], check=False, capture_output=True
            )
