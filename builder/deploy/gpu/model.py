"""Cards, drivers and promises."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """One card. `index` is the driver's minor number: /dev/nvidiaINDEX, not the PCI or CUDA order."""

    index: int
    name: str
    bus: str  # PCI address
    memory_mib: int  # 0 where it could not be read
    used_mib: int = 0
    capability: str = ""  # "12.0"; empty where it could not be read
    mig: bool = False  # cut into instances


@dataclass(frozen=True)
class Driver:
    """The kernel's NVIDIA driver."""

    version: str  # "580.76.05"
    open: bool  # the open kernel modules, which Blackwell needs
    userspace: str | None = None  # folder with exactly this version's libraries, None when there is none


@dataclass(frozen=True)
class Gpus:
    """What a host has of NVIDIA."""

    driver: Driver | None  # None: no module is loaded
    cards: tuple[Card, ...]
    nodes: tuple[str, ...]  # device nodes that exist: /dev/nvidia0, /dev/nvidiactl, /dev/nvidia-uvm ...


@dataclass(frozen=True)
class Promise:
    """A share of a card's memory that a container may take whenever it runs."""

    card: int
    ctid: int
    name: str
    share: float  # 0 to 1
    running: bool
    source: str  # where the share is from: "its mark", "phoenix_lxc_configs.json", "nvidia-smi"
