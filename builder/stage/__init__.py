"""The registry of stage kinds. A new kind is one module with a `KIND`, listed here."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from builder.stage import (
    cuda_wheels,
    debian,
    files,
    nvidia_host,
    nvidia_redist,
    nvidia_runfile,
    packages,
    source,
    wheels,
)
from builder.stage.kind import Kind

_MODULES: tuple[ModuleType, ...] = (
    cuda_wheels,
    debian,
    files,
    nvidia_host,
    nvidia_redist,
    nvidia_runfile,
    packages,
    source,
    wheels,
)

KINDS: Mapping[str, Kind] = {module.KIND.name: module.KIND for module in _MODULES}
"""Every kind of stage by its name, as recipes write it."""
