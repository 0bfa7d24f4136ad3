"""Servers that the builder did not make: where they answer, remembered on this machine. Nothing of them is changed.

For each there is `HOST/CTID.json` in `state_root() / "adopted"`, and beside it `CTID.key` where it wants an API key.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from builder.deploy import gpu
from builder.deploy.host.base import Host
from builder.deploy.inside import call, plain, texts
from builder.deploy.journal import folder_name, state_root
from builder.deploy.model import Guest, from_jsonable, jsonable
from builder.deploy.profile import secrets
from builder.errors import BuilderError, UsageError

PORT = 8000
NOT_OURS = "not the builder's"
_URL = re.compile(r"https?://(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9.-]*)(?::\d{1,5})?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*")


@dataclass(frozen=True)
class Adopted:
    """What is remembered of one."""

    ctid: int
    name: str  # the container's, when it was adopted
    base: str  # http://ADDRESS:PORT
    key: bool  # whether an API key was given


@dataclass(frozen=True)
class Server:
    """An HTTP API such as vLLM has, in a container that the builder did not make or anywhere else."""

    base: str
    key: str | None = field(default=None, repr=False)
    name: str = "foreign"
    ctid: int | None = None
    cards: tuple[int, ...] | None = None  # of the host, that it may use; None: not known

    @property
    def label(self) -> str:
        """As messages name it."""
        return self.base.partition("//")[2] if self.ctid is None else str(self.ctid)


def adopt(host: Host, ctid: int, *, port: int, address: str | None, key: str | None) -> tuple[Adopted, tuple[str, ...]]:
    """Ask the server in a container from the host and remember where it is; also the names of its models.

    Without `address` that in the container's configuration is taken. Raises UsageError for a container that is not
    there, the builder's own, stopped or without a fixed address, BuilderError when nothing answers as vLLM does.
    """
    where = f"container {ctid}"
    guest = host.guest(ctid)
    if guest is None:
        raise UsageError("is not there", where=where)
    if guest.mark is not None:
        raise UsageError("is the builder's own, there is nothing to adopt", where=where)
    if not guest.running:
        raise UsageError("is stopped", where=where, hint="start it first")
    address = address or address_of(guest)
    if address is None:
        raise UsageError("its configuration has no fixed address", where=where, hint="give --address")
    found = Adopted(ctid, plain(guest.name), base_of(address, port), key is not None)
    told = call(host, None, "serves", found.base, key=key)
    if told.get("ok") is not True:
        hint = "see that it listens on more than its own loopback; give --port, --address or --api-key-file"
        raise BuilderError(f"{found.base} does not serve: {plain(told.get('said'))}", where=where, hint=hint)
    _write(host, found, key)
    return found, texts(told, "models")


def forget(host: Host, ctid: int) -> None:
    """Forget a server and its key. Raises UsageError when it is not known."""
    if not _file(host, ctid).exists():
        raise UsageError("is not adopted", where=f"container {ctid}")
    _key_file(host, ctid).unlink(missing_ok=True)
    _file(host, ctid).unlink()


def adopted(host: Host, guests: Sequence[Guest]) -> tuple[Adopted, ...]:
    """All that are remembered of this host, but for ids that a container of the builder has by now.

    Raises BuilderError for a file that cannot be read.
    """
    ours = {guest.ctid for guest in guests if guest.mark is not None}
    paths = sorted(_folder(host).glob("*.json"), key=lambda path: path.name.zfill(20))
    return tuple(found for found in map(_read, paths) if found.ctid not in ours)


def find(host: Host, guests: Sequence[Guest], which: str) -> Adopted | None:
    """The one with this id or name; None when there is none."""
    return next((each for each in adopted(host, guests) if which in (str(each.ctid), each.name)), None)


def absent(found: Adopted, guest: Guest | None) -> str:
    """Why it cannot be asked: its container is stopped, gone or another; empty when it can."""
    if guest is None:
        return "there is no such container any more"
    if plain(guest.name) != found.name:
        return f"this container is {plain(guest.name)}, adopted was {found.name}"
    return "" if guest.running else "the container is stopped"


def server(host: Host, found: Adopted, guest: Guest | None) -> Server:
    """How to reach it. Raises UsageError when it cannot be asked, or its key is gone."""
    if why := absent(found, guest):
        raise UsageError(why, where=f"container {found.ctid}", hint=f"or `builder adopt {found.ctid} --forget`")
    key = key_of(_key_file(host, found.ctid)) if found.key else None
    return Server(found.base, key, found.name, found.ctid, cards_of(guest))


def server_at(url: str, key_file: Path | None) -> Server:
    """A server by its address, with the key in a file. Raises UsageError for what is no address, or no secret."""
    base = url.rstrip("/")
    if not _URL.fullmatch(base):
        raise UsageError(f"{url!a} is no server's address", hint="write http://ADDRESS:PORT")
    return Server(base, key_of(key_file) if key_file else None)


def key_of(path: Path) -> str | None:
    """The key in a file; see `secrets.read`."""
    return secrets.read(path, None, {}).api_key


def address_of(guest: Guest) -> str | None:
    """The fixed address of the first network card in Proxmox's configuration or LXC's; None when there is none."""
    config = guest.config or {}
    pairs = dict(part.partition("=")[::2] for part in config.get("net0", "").split(","))
    words = (pairs.get("ip") or config.get("lxc.net.0.ipv4.address", "")).split()
    address = words[0].partition("/")[0] if words else ""
    try:
        return str(ip_address(address))
    except ValueError:
        return None


def cards_of(guest: Guest | None) -> tuple[int, ...]:
    """The host's cards that its container may use, by the nodes that it has."""
    return tuple(sorted({promise.card for promise in gpu.promises([guest], {})})) if guest else ()


def base_of(address: str, port: int) -> str:
    """The URL of a server. Raises UsageError for what is neither an IP address nor a name."""
    try:
        ip = ip_address(address)
    except ValueError:
        if not _NAME.fullmatch(address):
            raise UsageError(f"{address!a} is no address", hint="give an IP address or a name") from None
        return f"http://{address}:{port}"
    return f"http://[{ip}]:{port}" if ip.version == 6 else f"http://{ip}:{port}"


def health(host: Host, found: Adopted, guest: Guest | None) -> tuple[str, str]:
    """State and words as `builder status` shows them. Raises BuilderError when the host cannot ask."""
    if why := absent(found, guest):
        return "not running", why
    told = call(host, None, "serves", found.base, key=server(host, found, guest).key)
    models = ", ".join(plain(name) for name in texts(told, "models"))
    return ("ok", f"{models} answers") if told.get("ok") is True else ("failed", plain(told.get("said")))


def _folder(host: Host) -> Path:
    return state_root() / "adopted" / folder_name(host.name)


def _file(host: Host, ctid: int) -> Path:
    return _folder(host) / f"{ctid}.json"


def _key_file(host: Host, ctid: int) -> Path:
    return _folder(host) / f"{ctid}.key"


def _read(path: Path) -> Adopted:
    try:
        found = from_jsonable(Adopted, json.loads(path.read_bytes()))
        if not isinstance(found.ctid, int) or not _URL.fullmatch(found.base):
            raise ValueError(found)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise BuilderError("cannot be read", where=path, hint="remove it, and adopt the container again") from error
    return found


def _write(host: Host, found: Adopted, key: str | None) -> None:
    path, key_file = _file(host, found.ctid), _key_file(host, found.ctid)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if key is None:
            key_file.unlink(missing_ok=True)
        else:
            secrets.keep_key(key_file, key)
        new = path.with_suffix(".new")
        new.write_text(json.dumps(jsonable(found), indent=2, sort_keys=True) + "\n", encoding="utf-8")
        os.replace(new, path)
    except OSError as error:
        raise BuilderError(f"cannot be written: {error.strerror}", where=path) from error
