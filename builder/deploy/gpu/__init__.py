"""NVIDIA cards of a host: what is there, who may use it, what is promised to whom."""

from builder.check.budget import LIMIT
from builder.deploy.gpu.budget import choose, neighbours, promises, start_order
from builder.deploy.gpu.devices import devices, mounts
from builder.deploy.gpu.look import DRIVER_FOLDER, look
from builder.deploy.gpu.model import Card, Driver, Gpus, Promise
from builder.deploy.gpu.preflight import Need, complete, need, preflight
from builder.deploy.gpu.unit import UNIT, host_unit_files, install, installed, present, uninstall

__all__ = [
    "DRIVER_FOLDER",
    "LIMIT",
    "UNIT",
    "Card",
    "Driver",
    "Gpus",
    "Need",
    "Promise",
    "choose",
    "complete",
    "devices",
    "host_unit_files",
    "install",
    "installed",
    "look",
    "mounts",
    "need",
    "neighbours",
    "preflight",
    "present",
    "promises",
    "start_order",
    "uninstall",
]
