"""What is done with a container's files, and its start: LXC's configuration is the project's own for plain LXC."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

from builder.deploy.host import lxc_config, lxc_scripts
from builder.deploy.model import Container, Network

from . import pvesm
from .running import FIRST_ID, IDS, LXC, check_bridge, check_devices, lxc, owner, runs
from .state import Config, RefusedError, changing, check_lock, pairs

NEW, CLONED = lxc_scripts.FIRST, lxc_scripts.CLONED
"""Scripts for `in_files`: what Proxmox changes in what it unpacked, and in what it copied."""


def as_root_of(config: Config) -> list[str]:
    """What runs a command with the ids of the container's root."""
    ids = ["-m", f"u:0:{FIRST_ID}:{IDS}", "-m", f"g:0:{FIRST_ID}:{IDS}"]
    return ["lxc-usernsexec", *ids, "--"] if owner(config) else []


def in_files(config: Config, root: Path, script: str, *words: str) -> None:
    """Run a script with a stopped container's files as root folder. Raises RefusedError with what it says."""
    argv = [*as_root_of(config), "chroot", str(root), "/bin/sh", "-euc", f"umask 022\n{script}", "sh", *words]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=None, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise RefusedError(done.stderr.strip())


def start(ctid: int) -> None:
    with changing(ctid, 255, lock=False) as config:
        if runs(ctid):
            raise RefusedError(f"CT {ctid} already running")
        check_lock(config)
        if config.template:
            raise RefusedError("you can't start a CT if it's a template")
        config.keys, config.pending = {**config.keys, **config.pending}, {}
        check_devices(config, 255)
        check_bridge(config, 255)
    folder, root = LXC / str(ctid), pvesm.path_of(config.keys["rootfs"].partition(",")[0])
    folder.mkdir(exist_ok=True)
    machine = lxc_config.machine(subprocess.check_output(["sh", "-euc", lxc_config.MACHINE], text=True))
    container = _container(ctid, config)
    text = lxc_config.render(container, machine, raw=[*_nodes(folder, config), *_binds(config), *config.raw])
    (folder / "config").write_text(f"{text}lxc.rootfs.path = dir:{root}\n")
    words = [word for pair in lxc_config.identity(container, machine).items() for word in pair]
    in_files(config, root, lxc_scripts.WRITE, *words)
    done = lxc("start", ctid, "-o", str(folder / "log"), "-l", "ERROR")
    if done.returncode != 0:
        raise RefusedError(f"{done.stderr}startup for container '{ctid}' failed")


def _container(ctid: int, config: Config) -> Container:
    keys, net = config.keys, pairs(config.keys["net0"])
    network = Network(
        name=net["name"],
        bridge=net["bridge"],
        ip=net.get("ip", "manual"),
        gateway=net.get("gw"),
        mac=net["hwaddr"],
        nameservers=tuple(keys.get("nameserver", "").split()),
    )
    return Container(
        ctid=ctid,
        name=keys.get("hostname", f"CT{ctid}"),
        network=network,
        memory_mib=int(keys.get("memory", 512)),
        cores=int(keys.get("cores", os.cpu_count() or 1)),
        root_gib=1,
        unprivileged=keys.get("unprivileged") == "1",
        nesting=pairs(keys.get("features", "")).get("nesting") == "1",
    )


def _nodes(folder: Path, config: Config) -> Iterator[str]:
    """The container's own node for each `dev[n]`, with the host's numbers of this moment, as a line that binds it."""
    shutil.rmtree(folder / "dev", ignore_errors=True)
    for device in config.devices():
        path = device["path"]
        own, found = folder / path[1:], os.stat(path)
        own.parent.mkdir(parents=True, exist_ok=True)
        os.mknod(own, stat.S_IFMT(found.st_mode), found.st_rdev)
        os.chown(own, *(owner(config) + int(device.get(kind, 0)) for kind in ("uid", "gid")))
        own.chmod(int(device.get("mode", "0660"), 8))
        yield f"lxc.mount.entry: {own} {path[1:]} none bind,create=file"


def _binds(config: Config) -> Iterator[str]:
    for key, value in sorted(config.keys.items()):
        if key.startswith("mp"):
            mount = pairs(value, "volume")
            read = "ro,bind" if mount.get("ro") == "1" else "bind"
            yield f"lxc.mount.entry: {mount['volume']} {mount['mp'].lstrip('/')} none {read},create=dir"
