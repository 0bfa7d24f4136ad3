"""Kind `nvidia-host`: the driver's userspace is the host's, bound into the container at start.

A driver's userspace must be of the very version of the host's kernel module. So the host shows its own in a folder,
and a template made this way outlives every upgrade of the host.
"""

from __future__ import annotations

from collections.abc import Sequence

from builder.lock.model import Lock, Request
from builder.recipe.model import Recipe, Stage
from builder.stage import upper
from builder.stage.kind import Context, Inputs, Kind

MOUNT_POINT = "/usr/lib/nvidia-host"
"""Where the host's folder is bound, read-only. In it: libcuda.so.1 and its like with their links, libcuda.so among
them (Triton links with it), and the programs (nvidia-smi) in `bin`."""

SERVICE = "nvidia-host-driver.service"

_UNIT = f"""\
[Unit]
Description=Make the host's NVIDIA driver known to the dynamic linker
ConditionPathExists={MOUNT_POINT}/libcuda.so.1
Before=vllm.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/sbin/ldconfig -X

[Install]
WantedBy=multi-user.target
"""
"""-X: the links are the host's to make; the folder is read-only."""

_PROFILE = f"""\
case ":$PATH:" in
*:{MOUNT_POINT}/bin:*) ;;
*) PATH="$PATH:{MOUNT_POINT}/bin" ;;
esac
"""


def _requests(recipe: Recipe, stage: Stage) -> Sequence[Request]:
    return ()


def _inputs(recipe: Recipe, stage: Stage, lock: Lock) -> Inputs:
    return Inputs(params={})


def _build(context: Context) -> None:
    unit = f"/usr/lib/systemd/system/{SERVICE}"
    upper.folder(context, MOUNT_POINT)
    upper.write(context, "/etc/ld.so.conf.d/00-nvidia-host.conf", f"{MOUNT_POINT}\n")
    upper.write(context, "/etc/profile.d/nvidia-host.sh", _PROFILE)
    upper.write(context, unit, _UNIT)
    upper.link(context, f"/etc/systemd/system/multi-user.target.wants/{SERVICE}", unit)


KIND = Kind(
    name="nvidia-host",
    version=1,
    help="The driver's userspace comes from the host at start: a mount point, and what makes its content found.",
    keys=(),
    requests=_requests,
    inputs=_inputs,
    build=_build,
)
