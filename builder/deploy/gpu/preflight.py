"""What about a host's NVIDIA driver and cards keeps a container from using them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from builder.check.rules import table
from builder.deploy.gpu.devices import nodes
from builder.deploy.gpu.model import Card, Gpus

_RUNTIME = re.compile(r"nvidia_cuda_runtime(?:_cu\d+)?-(\d+\.\d+)\.[0-9.]+\.dist-info/METADATA$")
_OWN = re.compile(r"^usr/lib/x86_64-linux-gnu/libcuda\.so\.(\d+(?:\.\d+)+)$")
_MEND = "run `builder-nvidia` on the host, which `builder deploy` installs"


@dataclass(frozen=True)
class Need:
    """What a template asks of the host's driver."""

    oldest: str | None = None  # version; None: not known
    because: str = ""  # "CUDA 12.8"
    exact: str | None = None  # the version of the userspace in the template, which must be the host's

    @property
    def userspace(self) -> bool:
        """Whether the host must bring the driver's userspace."""
        return self.exact is None


def need(manifest: Mapping[str, Any]) -> Need:
    """What the template with this manifest needs, from the paths of its files: CUDA's runtime wheels, and a driver's
    userspace of its own.

    The driver that came with a CUDA release is the first that compiles its PTX; CUDA's minor-version compatibility with
    older ones holds for machine code only.
    """
    cuda, exact = set[str](), None
    for entry in manifest["files"]:
        if found := _RUNTIME.search(entry["path"]):
            cuda.add(found[1])
        elif found := _OWN.match(entry["path"]):
            exact = found[1]
    drivers = {row["Version"]: row["Driver"] for row in table("cuda-drivers.toml")["Cuda"]}
    newest = max((release for release in cuda if release in drivers), key=_number, default=None)
    return Need(exact=exact) if newest is None else Need(drivers[newest], f"CUDA {newest}", exact)


def preflight(
    gpus: Gpus,
    need: Need | str | None,
    capability: str,
    *,
    cards: Sequence[int] | None = None,
    unit_follows: bool = False,
) -> tuple[str, ...]:
    """What is wrong, each with the way out; empty when all is well.

    `need` is the template's, or the oldest driver version alone. `capability` is the compute capability that the
    template is for, empty when any will do. `cards` are those that will be used, all when None. With `unit_follows` the
    host's unit runs before a container starts: then what it mends is no problem.
    """
    wants = need if isinstance(need, Need) else Need(need or None)
    if gpus.driver is None:
        return () if unit_follows and gpus.cards else ("no NVIDIA kernel module is loaded: install the driver",)
    used = [card for card in gpus.cards if cards is None or card.index in cards]
    problems = [*_driver_problems(gpus, wants)]
    for card in used:
        problems += _card_problems(card, gpus.driver.open, capability)
    if not used:
        problems.append("the driver knows no card: `dmesg` on the host says why")
    if not unit_follows:
        problems += _unit_problems(gpus, wants, [card.index for card in used])
    return tuple(problems)


def complete(gpus: Gpus) -> bool:
    """Whether the host has the nodes for its cards and keeps the running driver's userspace."""
    return gpus.driver is not None and not list(_unit_problems(gpus, Need(), [card.index for card in gpus.cards]))


def _driver_problems(gpus: Gpus, wants: Need) -> Iterator[str]:
    assert gpus.driver is not None
    version = gpus.driver.version
    if wants.oldest is not None and _number(version) < _number(wants.oldest):
        why = f" ({wants.because})" if wants.because else ""
        yield f"the host's driver is {version}, and the template needs {wants.oldest} or later{why}: upgrade the host"
    if wants.exact is not None and wants.exact != version:
        yield (
            f"the host's driver is {version}, and the template carries the userspace of {wants.exact}: take a template "
            "that uses the host's, or build one for this version"
        )


def _card_problems(card: Card, is_open: bool, capability: str) -> Iterator[str]:
    named = f"card {card.index} ({card.name})"
    if not is_open and card.capability and _number(card.capability) >= (10,):
        yield f"{named} needs the open kernel modules, and the closed ones are loaded: install the open variant"
    if capability and card.capability and card.capability != capability:
        yield f"{named} has compute capability {card.capability}, and the template is for {capability}"
    if card.mig:
        yield f"{named} is cut into MIG instances, which are not passed on: `nvidia-smi -i {card.bus} -mig 0`"


def _unit_problems(gpus: Gpus, wants: Need, cards: Sequence[int]) -> Iterator[str]:
    if missing := [node for node in nodes(cards) if node not in gpus.nodes]:
        yield f"the host has no {', '.join(missing)}: {_MEND}"
    if wants.userspace and gpus.driver is not None and gpus.driver.userspace is None:
        yield (
            f"the host keeps no userspace of its running driver {gpus.driver.version}: {_MEND}; after an upgrade "
            "of the driver reboot first"
        )


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
