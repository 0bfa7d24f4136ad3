"""`pct`: a container's life. Order of checks, words and statuses are those of the recorded PVE 8.4.

`files` is imported where it is needed: that takes longer than most commands do.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from . import pvesm, running, tasks
from .options import parse, tags
from .state import (
    Config,
    RefusedError,
    changing,
    check_lock,
    create,
    digest,
    load,
    not_simulated,
    path_of,
    save,
    unlock,
)

_MOUNTS = Path("/var/lib/lxc")
_TAR = (
    *("tar", "xpf", "-", "--zstd", "--totals", "--one-file-system", "-p", "--sparse", "--numeric-owner", "--acls"),
    *("--xattrs", "--xattrs-include=user.*", "--xattrs-include=security.capability"),
    *("--warning=no-file-ignored", "--warning=no-xattr-write"),
)
_RSYNC = ("rsync", "-v", "-X", "-A", "--numeric-ids", "-aH", "--whole-file", "--sparse", "--one-file-system")
_COLD = re.compile(r"dev\d+|features")


def main(argv: Sequence[str]) -> int:
    command, arguments, options, rest = parse(argv)
    ctid = int(arguments[0])
    match command:
        case "create":
            return _create(ctid, arguments[1], options)
        case "set":
            return _set(ctid, options)
        case "template":
            return _template(ctid)
        case "clone":
            return _clone(ctid, int(arguments[1]), options)
        case "resize":
            return _resize(ctid, arguments[1], arguments[2])
        case "start":
            return tasks.work("vzstart", ctid, lambda: _start(ctid))
        case "stop":
            return running.stop(ctid, "-k")
        case "shutdown":
            kill = () if options.get("forceStop") == "1" else ("--nokill",)
            return running.stop(ctid, "--timeout", options.get("timeout", "60"), *kill)
        case "destroy":
            return _destroy(ctid, options)
        case "unlock":
            return _unlock(ctid)
        case "status":
            load(ctid)
            print(f"status: {'running' if running.runs(ctid) else 'stopped'}")
        case "config":
            print(_shown(load(ctid)), end="")
        case "exec":
            return running.execute(ctid, rest, options.get("keep-env") != "0")
        case "push":
            return running.push(ctid, Path(arguments[1]), arguments[2], options)
    return 0


def _start(ctid: int) -> None:
    from . import files

    files.start(ctid)


def _create(ctid: int, archive: str, options: dict[str, str]) -> int:
    storage, _, size = options.pop("rootfs").partition(":")
    if path_of(ctid).exists():
        create(ctid)
    pvesm.check(storage)
    if not size.isdecimal() or int(size) < 1:
        raise not_simulated(f"a root disk of {size} GiB")
    made = Config({"arch": "amd64", "hostname": f"CT{ctid}", "memory": "512", "swap": "512", "ostype": "debian"})
    _change(made, options)
    if made.keys.get("unprivileged") == "0":
        del made.keys["unprivileged"]
    running.check_devices(made, 2)
    running.check_bridge(made, 2)
    create(ctid)
    return tasks.work("vzcreate", ctid, lambda: _unpack(ctid, archive, size, made))


def _unpack(ctid: int, archive: str, size: str, made: Config) -> None:
    from . import files

    volume = ""
    try:
        volume = pvesm.allocate(ctid, running.owner(made))
        print(f"Formatting '{pvesm.path_of(volume)}', fmt=raw size={int(size) << 30} preallocation=off", flush=True)
        file = Path(archive) if archive.startswith("/") else pvesm.path_of(archive)
        if not file.is_file():
            raise RefusedError(f"volume '{archive}' does not exist")
        print(f"extracting archive '{file}'", flush=True)
        with _mounted(ctid, volume) as root:
            rest = ("-C", str(root), "--skip-old-files", "--anchored", "--exclude", "./dev/*")
            tasks.command((*files.as_root_of(made), *_TAR, *rest), stdin=file)
            print("Detected container architecture: amd64", flush=True)
            files.in_files(made, root, files.NEW)
            _ssh_host_keys(root, running.owner(made))
        made.keys["rootfs"] = f"{volume},size={size}G"
        with changing(ctid, lock=False) as config:
            config.keys, config.description = made.keys, made.description
    except (RefusedError, tasks.InterruptedTaskError, OSError) as error:
        if volume:
            pvesm.remove(volume)
        path_of(ctid).unlink()
        raise RefusedError(f"unable to create CT {ctid} - {error}") from error


def _ssh_host_keys(root: Path, owner: int) -> None:
    for kind in ("rsa", "ecdsa", "ed25519") if (root / "etc/ssh").is_dir() else ():
        print(f"Creating SSH host key 'ssh_host_{kind}_key' - this may take some time ...", flush=True)
        key = root / f"etc/ssh/ssh_host_{kind}_key"
        subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", key], check=True)
        for path in (key, key.with_suffix(".pub")):
            os.chown(path, owner, owner)


@contextmanager
def _mounted(ctid: int, volume: str) -> Iterator[Path]:
    """The volume where Proxmox mounts it while it works on it; still there after a SIGKILL."""
    root = _MOUNTS / str(ctid) / "rootfs"
    root.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "--bind", pvesm.path_of(volume), root], check=True)
    try:
        yield root
    finally:
        subprocess.run(["umount", root], check=True)


def _set(ctid: int, options: dict[str, str]) -> int:
    with changing(ctid, lock=False) as config:
        if options.pop("digest", digest(ctid)) != digest(ctid):
            raise RefusedError("detected modified configuration - file changed by other user? Try again.")
        check_lock(config)
        if "unprivileged" in options:
            raise RefusedError("unable to modify read-only option: 'unprivileged'")
        for key in filter(None, re.split(r"[,;\s]+", options.pop("delete", ""))):
            if config.keys.pop(key, None) is None:
                print(f"cannot delete '{key}' - not set in current configuration!")
        hot = dict(options)
        if running.runs(ctid):
            if any(re.fullmatch(r"(?:net|mp)\d+", key) for key in options):
                raise not_simulated("hotplug of networks and mount points")
            config.pending |= {key: hot.pop(key) for key in options if _COLD.fullmatch(key)}
        _change(config, hot)
        running.check_devices(replace(config, keys={**config.keys, **config.pending}), 2)
        running.check_bridge(config, 2)
    return 0


def _change(config: Config, options: Mapping[str, str]) -> None:
    for key, value in options.items():
        if key == "description":
            config.description = value
        elif key == "tags":
            config.keys[key] = ";".join(tags(value))
        elif key.startswith("net"):
            config.keys[key] = _network(value)
        else:
            config.keys[key] = value


def _network(value: str) -> str:
    """As Proxmox stores it: with a new MAC where it has none, name and bridge first, the rest in order."""
    pairs = dict(part.split("=", 1) for part in value.split(","))
    pairs.setdefault("hwaddr", ":".join(["BC", "24", "11", *(f"{random.randrange(256):02X}" for _ in range(3))]))
    pairs.setdefault("type", "veth")
    order = sorted(pairs, key=lambda key: (key != "name", key != "bridge", key))
    return ",".join(f"{key}={pairs[key]}" for key in order)


def _template(ctid: int) -> int:
    with changing(ctid) as config:
        if config.template:
            raise RefusedError("you can't convert a template to a template")
        if running.runs(ctid):
            raise RefusedError("you can't convert a CT to template if the CT is running")
        volume, _, rest = config.keys["rootfs"].partition(",")
        config.keys["rootfs"] = f"{pvesm.to_base(volume)},{rest}"
        config.keys["template"] = "1"
    return 0


def _clone(source: int, ctid: int, options: Mapping[str, str]) -> int:
    """The source stays locked for the whole copy: who comes second is refused at once."""
    with changing(source) as found:
        found.keys["lock"] = "disk"
    try:
        create(ctid)
    except RefusedError:
        unlock(source)
        raise
    try:
        volume = _check_clone(source, found, options)
        keys = {key: value for key, value in found.keys.items() if key not in ("lock", "template", "rootfs")}
        keys["net0"] = _network(re.sub(r",hwaddr=[^,]*", "", keys["net0"]))
        keys["hostname"] = options.get("hostname", keys["hostname"])
        description = options.get("description", found.description)
        save(ctid, Config({**keys, "lock": "create"}, description, list(found.raw)))
    except RefusedError:
        unlock(source)
        path_of(ctid).unlink()
        raise
    return tasks.work("vzclone", source, lambda: _copy(source, volume, ctid))


def _check_clone(source: int, config: Config, options: Mapping[str, str]) -> str:
    full = options.get("full", str(int(not config.template))) == "1"
    pvesm.check(options.get("storage", pvesm.NAME))
    for key in config.keys:
        if re.fullmatch(r"mp\d+", key):
            raise RefusedError(f"unable to clone mountpoint '{key}' (type bind)", 2)
    volume = config.keys["rootfs"].partition(",")[0]
    if not full:
        raise RefusedError(f"Linked clone feature for '{volume}' is not available", 2)
    if running.runs(source):
        raise RefusedError("Cannot do full clones on a running container without snapshots", 2)
    return volume


def _copy(source: int, volume: str, ctid: int) -> None:
    from . import files

    made = ""
    try:
        try:
            print(f"create full clone of mountpoint rootfs ({volume})", flush=True)
            config = load(ctid)
            made = pvesm.allocate(ctid, running.owner(config))
            tasks.command((*_RSYNC, f"{pvesm.path_of(volume)}/", f"{pvesm.path_of(made)}/"), every=200)
            size = load(source).keys["rootfs"].partition(",")[2]
            with changing(ctid, lock=False) as config:
                config.keys["rootfs"] = f"{made},{size}"
            files.in_files(config, pvesm.path_of(made), files.CLONED)
        finally:
            unlock(source)
        unlock(ctid)
    except (RefusedError, tasks.InterruptedTaskError, OSError) as error:
        if made:
            pvesm.remove(made)
        path_of(ctid).unlink()
        raise RefusedError(f"clone failed: {error}") from error


def _resize(ctid: int, disk: str, size: str) -> int:
    if disk != "rootfs" or not re.fullmatch(r"\d+G", size):
        raise not_simulated(f"resize of {disk} to {size}")
    with changing(ctid) as config:
        volume, _, now = config.keys["rootfs"].partition(",size=")
        if int(size[:-1]) <= int(now[:-1]):
            raise RefusedError("unable to shrink disk size")
        config.keys["rootfs"] = f"{volume},size={size}"
    print("Image resized.")
    return 0


def _destroy(ctid: int, options: Mapping[str, str]) -> int:
    config = load(ctid)
    if config.keys.get("protection") == "1":
        raise RefusedError(f"can't remove CT {ctid} - protection mode enabled")
    check_lock(config)
    if running.runs(ctid):
        if options.get("force") != "1":
            raise RefusedError(f"unable to destroy CT {ctid} - container is running")
        print(f"forced to stop CT {ctid} before destroying!", flush=True)
        running.stop(ctid, "-k")
    return tasks.work("vzdestroy", ctid, lambda: _remove(ctid, config, options))


def _remove(ctid: int, config: Config, options: Mapping[str, str]) -> None:
    volumes = [config.keys["rootfs"].partition(",")[0]] if "rootfs" in config.keys else []
    if options.get("destroy-unreferenced-disks") == "1":
        volumes = pvesm.volumes(str(ctid))
    for volume in volumes:
        pvesm.remove(volume)
    if options.get("purge") == "1":
        print(f"purging CT {ctid} from related configurations..", flush=True)
    path_of(ctid).unlink()
    folder = _MOUNTS / str(ctid)
    if folder.exists() and subprocess.run(["mountpoint", "-q", folder / "rootfs"]).returncode != 0:
        shutil.rmtree(folder)


def _unlock(ctid: int) -> int:
    if "lock" not in load(ctid).keys:
        raise RefusedError("no lock found trying to remove any lock")
    unlock(ctid)
    return 0


def _shown(config: Config) -> str:
    keys = dict(config.keys)
    if config.description:
        keys["description"] = re.sub(r"[%\n]", lambda found: f"%{ord(found[0]):02X}", config.description) + "%0A"
    lines = [*(f"{key}: {value}" for key, value in sorted({**keys, **config.pending}.items())), *config.raw]
    return "".join(f"{line}\n" for line in lines)
