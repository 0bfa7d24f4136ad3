"""docs/proxmox-calls.md against what a dry run prints for the five containers of the example, on a simulated node.

    CALLS=write .venv/bin/pytest tests/unit/deploy/test_calls.py

writes the page anew.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from builder.commands import deploy as command
from builder.deploy.deployments import TEMPLATE
from builder.deploy.gpu import host_unit_files
from builder.deploy.host import open_pct
from builder.deploy.model import Mark

from .simulated import SimulatedChannel, failed

DOCS = Path(__file__).parents[3] / "docs"
RECIPE = DOCS.parent / "recipes/vllm-blackwell"
NAME = "vllm-blackwell_0.10.2-1_amd64"
DIGEST = "0123456789abcdef" * 4
CARDS = """\
NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.76.05  Release Build
== card
Model: NVIDIA GeForce RTX 5060 Ti
Bus Location: 0000:01:00.0
Device Minor: 0
== card
Model: NVIDIA GeForce RTX 5060 Ti
Bus Location: 0000:02:00.0
Device Minor: 1
== nodes
{nodes}
== userspace
{userspace}
== memory
00000000:01:00.0, 16311, 4, 12.0, [N/A]
00000000:02:00.0, 16311, 4, 12.0, [N/A]
"""
NODES = "\n".join(f"/dev/nvidia{name}" for name in ("0", "1", "ctl", "-uvm", "-uvm-tools"))
STORAGES = [
    {"storage": "local", "type": "dir", "active": 1, "avail": 400 << 30, "content": "vztmpl,iso,backup"},
    {"storage": "local-zfs", "type": "zfspool", "active": 1, "avail": 800 << 30, "content": "images,rootdir"},
]
HEAD = """\
# What `builder deploy` calls on a Proxmox node

The five containers of [containers.example.toml](containers.example.toml), as `builder deploy --dry-run` prints them
for a node with two cards, Proxmox VE 8.4, templates on `local` and root disks on `local-zfs`. Written and compared by
`tests/unit/deploy/test_calls.py`. Over ssh the calls are the same. `RUN` and `TIME` stand for what differs from run to
run. `< FILE` is a file of the builder's machine on standard input, `< [...]` what is made for it: secrets go this way
only. What only looks (`pvesh get`, `pvesm list`, `cat`, `test`, `sha256sum`) is not shown.
"""
SECTIONS = (
    (921, (), "920 and 921: the first deploy", "The host's unit for the cards, the template 920, then its clone 921."),
    (922, ("--profile", "nvfp4"), "922", "Experiments: its profile is named, here `--profile nvfp4`."),
    (950, (), "950", "On card 0, beside 951."),
    (951, (), "951", "Embeddings, on card 0."),
)


def node(*, fresh: bool) -> SimulatedChannel:
    """A simulated node as it is before the first deploy, or with the template and the host's unit."""
    mark = Mark("r0", "builder-template", TEMPLATE, DIGEST, NAME)
    config = f"#{mark.line().replace(':', '%3A')}\ntemplate: 1\n"
    row = {"vmid": 920, "name": "builder-template", "type": "lxc", "node": "pve", "status": "stopped", "template": 1}
    gone = failed("cat: /etc/pve/lxc: No such file or directory", 1)
    units = "".join(f"{file.sha256}  {file.path}\n" for file in host_unit_files())
    script = host_unit_files()[0].path
    cards = CARDS.format(nodes="" if fresh else NODES, userspace="" if fresh else "libcuda.so.580.76.05")
    return SimulatedChannel(
        {
            "sh -c id -u;": ["0\n5.3.5\n"],
            "sh -c \nkept=": [cards],
            "cat /etc/pve/lxc/": [gone],
            **({} if fresh else {"cat /etc/pve/lxc/920.conf": [config]}),
            "cat /etc/pve/.members": ['{"nodename": "pve"}'],
            "cat /sys/class/net/vmbr0/mtu": ["1500\n"],
            "pvesh get /cluster/resources": ["[]" if fresh else json.dumps([row])],
            "pvesh get /nodes/localhost/storage": [json.dumps(STORAGES)],
            "pvesh get /nodes/localhost/lxc/920/feature": ['{"hasFeature":1}'],
            "pvesm list": ["Volid Format  Type  Size VMID\n"],
            "pvesm path": [f"/var/lib/vz/template/cache/{NAME}.tar.zst\n"],
            "test ": [""],
            f"sha256sum {script}": ["" if fresh else units],
            "sha256sum": [""],
            "systemctl is-enabled": [failed("disabled", 1) if fresh else ""],
        }
    )


def calls(folder: Path, monkeypatch: pytest.MonkeyPatch, ctid: int, *more: str) -> str:
    """What a dry run of one container prints."""
    channel = node(fresh=ctid == 921)
    monkeypatch.setattr(command, "open_host", lambda where, dry, say: open_pct("pct", channel, dry=dry))
    template = folder / f"{NAME}.tar.zst"
    argv = ["--ctid", str(ctid), "--dry-run", "--no-check", "--template", str(template), "--recipe", str(RECIPE)]
    argv += ["--containers", str(DOCS / "containers.example.toml"), *more]
    done = CliRunner().invoke(command.deploy, argv, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    text = done.stdout.replace(str(folder), "artifacts")
    text = re.sub(r"-[0-9a-f]{12}(\.tar\.zst)", r"-RUN\1", text)
    return re.sub(r'"made":"[^"]*"', '"made":"TIME"', re.sub(r'"run":"[^"]*"', '"run":"RUN"', text))


def page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    parts = [HEAD]
    for ctid, more, title, says in SECTIONS:
        parts.append(f"## {title}\n\n{says}\n\n```sh\n{calls(folder, monkeypatch, ctid, *more)}```\n")
    return "\n".join(parts)


def test_the_page_has_the_calls_that_a_dry_run_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUILDER_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("BUILDER_API_KEY", "simulated-key-that-nobody-sees")
    template = tmp_path / f"{NAME}.tar.zst"
    template.write_bytes(b"simulated template")
    names = {"name": "vllm-blackwell", "version": "0.10.2-1", "variant": "", "format": 1, "sha256": DIGEST}
    files = [{"path": "usr/bin/simulated", "size": 12 << 30}]
    manifest = {**names, "stages": [], "skipped": {}, "frames": [], "files": files}
    (tmp_path / f"{NAME}.manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "SHA256SUMS").write_text(f"{DIGEST}  {template.name}\n")
    made = page(tmp_path, monkeypatch)
    assert "simulated-key" not in made
    path = DOCS / "proxmox-calls.md"
    if os.environ.get("CALLS") == "write":
        path.write_text(made, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == made, "run: CALLS=write .venv/bin/pytest tests/unit/deploy/test_calls.py"
