"""A place for deploys in tests, all its own: a project with a template, a bridge, LXC folder and state."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conftest import HOUSE, User
from container import Bridge, new_bridge, open_folder, with_subids
from project import STORE

SIMULATED = Path(__file__).parent / "simulated"


@dataclass(frozen=True)
class Site:
    """`builder deploy --host lxc:...` in a project folder."""

    folder: Path  # the project
    lxc: Path  # LXC's folder
    state: Path  # the builder's journals and keys
    bridge: Bridge
    user: User

    @property
    def host(self) -> str:
        return f"lxc:{self.lxc}"

    @property
    def env(self) -> dict[str, str]:
        return {**self.user.env, "BUILDER_STATE": str(self.state), "BUILDER_STORE": str(STORE)}

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        program = [self.user.python, "-c", "from builder.cli import main; main()", *arguments]
        argv = [*with_subids(self.folder.parent / "subids"), *program]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            argv, cwd=self.folder, env=self.env, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True
        )

    def builder(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command line in the project to its end."""
        with self.popen(*arguments) as process:
            out, err = process.communicate(timeout=600)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def on_host(self, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command with ``--host`` of this site."""
        return self.builder(command, *arguments, "--host", self.host)

    def passes(self, command: str, *arguments: str) -> str:
        """What a command that must pass prints."""
        done = self.on_host(command, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def json(self, command: str, *arguments: str) -> Any:
        return json.loads(self.passes(command, *arguments, "--json"))

    def containers(self) -> list[str]:
        """The ids that have a folder at LXC."""
        return sorted(path.name for path in self.lxc.iterdir() if path.name.isdigit())

    def running(self) -> list[str]:
        argv = ["lxc-ls", "-P", str(self.lxc), "--running", "-1"]
        return sorted(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split())

    def inside(self, ctid: int, *argv: str) -> subprocess.CompletedProcess[str]:
        attach = ["lxc-attach", "-P", str(self.lxc), "-n", str(ctid), "--clear-env", "--", *argv]
        return subprocess.run(attach, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)

    def journal(self, ctid: int) -> Path:
        (folder,) = [path for path in (self.state / "deploy").glob("*") if (path / str(ctid)).exists()]
        return folder / str(ctid) / "journal.jsonl"

    def killed_in(self, step: str, ctid: int, *arguments: str, number: int = signal.SIGKILL, wait: float = 0.15) -> str:
        """Start a deploy of `ctid` and send it a signal shortly after it began `step`; what it said."""
        before = self.events(ctid)
        process = self.popen("deploy", "--host", self.host, "--ctid", str(ctid), *arguments)
        deadline = time.monotonic() + 60
        begun = f'"name": "{step}"'
        while time.monotonic() < deadline and process.poll() is None:
            if (events := self.events(ctid)) != before and begun in events:
                break
            time.sleep(0.01)
        time.sleep(wait)
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
        assert begun in self.events(ctid), err
        return out + err

    def events(self, ctid: int) -> str:
        """The journal of a container as it is now; empty where there is none."""
        try:
            return self.journal(ctid).read_text()
        except (OSError, ValueError):
            return ""

    def clear(self) -> None:
        """Take every container and template away, whatever state it is in."""
        for name in self.containers():
            subprocess.run(["lxc-stop", "-P", str(self.lxc), "-n", name, "-k"], capture_output=True)
        for path in sorted(self.lxc.iterdir(), reverse=True):
            for mount in _mounts_below(path):
                subprocess.run(["umount", "--lazy", mount], check=True)
            subprocess.run(["rm", "-rf", "--one-file-system", str(path)], check=True)
        shutil.rmtree(self.state, ignore_errors=True)


def deploy(here: Site, ctid: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """How a deploy of this container ends."""
    return here.on_host("deploy", "--ctid", str(ctid), *arguments)


def models(here: Site, last: int, key: str = "") -> int:
    """The HTTP status of a request from the host to the server in the container."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(f"http://{here.bridge.network}.{last}:8000/v1/models", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def _mounts_below(path: Path) -> list[str]:
    found = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return sorted((point for point in found if point.startswith(f"{path}/") or point == str(path)), reverse=True)


def entries(bridge: Bridge, rows: Sequence[tuple[int, str, str, int]]) -> str:
    """A containers.toml: id, name, profile and last number of the address of each."""
    text = 'TemplateIds = ["920", "923-924"]\nSpareIds = ["931-932"]\n'
    for ctid, name, profile, last in rows:
        text += f"""
[[Container]]
Ctid = {ctid}
Name = "{name}"
Profile = "{profile}"
Bridge = "{bridge.name}"
Ip = "{bridge.network}.{last}/24"
Gateway = "{bridge.host}"
MemoryMiB = 6144
Cores = 2
RootGiB = 12
"""
    return text


def new_project(folder: Path, recipes: Path, containers: str) -> Path:
    """A project in `folder` with the recipes and locks of another, and this containers.toml."""
    project = folder / "project"
    for part in ("recipes", "locks"):
        shutil.copytree(recipes / part, project / part, symlinks=True, dirs_exist_ok=True)
    shutil.copytree(HOUSE / "recipes/vllm-service", project / "recipes/vllm-service", dirs_exist_ok=True)
    (project / "containers.toml").write_text(containers)
    return project


@contextmanager
def site(user: User, recipes: Path, rows: Sequence[tuple[int, str, str, int]]) -> Iterator[Site]:
    """A site with the recipes and locks in `recipes` (a project's folder), and containers as `entries` has them."""
    with new_bridge() as bridge, open_folder() as folder:
        project = new_project(folder, recipes, entries(bridge, rows))
        lxc, state = folder / "lxc", folder / "state"
        lxc.mkdir(mode=0o755)
        made = Site(project, lxc, state, bridge, user)
        try:
            yield made
        finally:
            made.clear()
            assert os.listdir(lxc) == []
