"""What of a card a container gets: device nodes, and the driver's userspace as a mount."""

from __future__ import annotations

from collections.abc import Sequence

from builder.deploy.gpu.model import Gpus
from builder.deploy.model import Device, Folder
from builder.errors import BuilderError
from builder.stage.nvidia_host import MOUNT_POINT

SHARED_NODES = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools")
"""What every user of CUDA opens beside the cards."""

_ESCAPES = str.maketrans({"\\": "\\134", " ": "\\040", "\t": "\\011", "\n": "\\012"})
"""LXC reads mount entries with getmntent(3), which takes these four back."""


def nodes(indices: Sequence[int]) -> tuple[str, ...]:
    """The nodes that a container with these cards needs; none without a card."""
    return (*(f"/dev/nvidia{index}" for index in sorted(set(indices))), *SHARED_NODES) if indices else ()


def devices(indices: Sequence[int], gpus: Gpus | None = None) -> tuple[Device, ...]:
    """What a container gets of the cards `indices`, each node open to a service that is not root.

    Raises BuilderError for a card that `gpus`, where given, does not have.
    """
    if gpus is not None:
        known = {card.index for card in gpus.cards}
        for index in indices:
            if index not in known:
                has = f"it has {', '.join(map(str, sorted(known)))}" if known else "it has none"
                raise BuilderError(f"the host has no card {index}", hint=has)
    return tuple(map(Device, nodes(indices)))


def mounts(driver_folder: str | None, folders: Sequence[Folder]) -> tuple[str, ...]:
    """Raw lines for the driver's userspace, if there is a folder of it, and for folders such as the models.

    Read-only and optional: a container starts without them, and unlike mount points they block neither clone nor
    snapshot (lxc.container.conf(5), lxc.mount.entry). With what is mounted inside them, such as a dataset for each
    model: the kernel refuses an unprivileged container the outer folder alone. What is mounted inside is read-only only
    as far as the files' modes make it so.
    """
    driver = [Folder(driver_folder, MOUNT_POINT)] if driver_folder else []
    return tuple(_entry(folder.source, folder.target, "ro,rbind,optional,create=dir") for folder in (*driver, *folders))


def _entry(source: str, target: str, options: str) -> str:
    """`target` is relative to the container's root, as lxc.container.conf(5) wants it."""
    fields = (source.translate(_ESCAPES), target.lstrip("/").translate(_ESCAPES), "none", options)
    return f"lxc.mount.entry: {' '.join(fields)}"
