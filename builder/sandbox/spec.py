"""What a sandbox is asked to run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Bind:
    """A file or folder of the host shown at `target` (absolute) inside."""

    source: Path
    target: str
    writable: bool = False


@dataclass(frozen=True)
class Limits:
    """What the processes of one run may use together; 0 means no limit."""

    memory_mib: int = 0
    seconds: int = 0


@dataclass(frozen=True)
class Spec:
    """Run `argv` as root of a private world made of `layers` (lowest first) with `upper` on top.

    `upper` and `work` are folders on one file system; what the run changes lies in `upper` afterwards, in
    overlayfs's form (`user.overlay.*`, character device 0:0 for a whiteout). With `upper` None the root is read-only
    but for private /tmp, /run, /dev. With `layers` empty and `host_root` True the root is the host's own, read-only
    (for mmdebstrap), with `upper` unused.
    """

    name: str  # the stage, for messages
    argv: tuple[str, ...]
    layers: tuple[Path, ...] = ()
    upper: Path | None = None
    work: Path | None = None
    host_root: bool = False
    binds: tuple[Bind, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = "/"
    network: bool = False  # True only for `builder lock`
    interactive: bool = False  # `builder shell`: the caller's input and output, its terminal by way of one of its own
    limits: Limits = Limits()
