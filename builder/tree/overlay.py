"""How overlayfs marks a layer's members.

Source: Linux, Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories".
."""

from __future__ import annotations

import os
import stat

ATTRIBUTES = ("user.overlay.", "trusted.overlay.")
"""Prefixes of overlayfs's own extended attributes: the first with the mount option userxattr, the second without."""


def is_whiteout(status: os.stat_result) -> bool:
    """Whether a member hides the lower layers' member of its name."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder hides all that lower layers have in it. Raises OSError."""
    names = os.listxattr(folder, follow_symlinks=False)
    return any(
        name in names and os.getxattr(folder, name, follow_symlinks=False) == b"y"
        for name in (prefix + "opaque" for prefix in ATTRIBUTES)
    )
