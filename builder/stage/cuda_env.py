"""What makes a CUDA toolkit of the template found: by the linker, by shells, and under its usual name."""

from __future__ import annotations

import os
import re
from typing import Any

from builder.recipe.keys import Key, Type
from builder.stage import upper
from builder.stage.kind import Context

_TARGET = re.compile(r"/(usr/local|opt)/[A-Za-z0-9][A-Za-z0-9._-]*")
_LINK = "/usr/local/cuda"


def _check_target(value: Any) -> str | None:
    if not _TARGET.fullmatch(value) or value == _LINK:
        return f'must be a folder of /usr/local or /opt other than {_LINK}, such as "/usr/local/cuda-12.8"'
    return None


TARGET = Key(
    "Target",
    Type.TEXT,
    "The folder of the template that holds the toolkit.",
    default="/usr/local/cuda-12.8",
    check=_check_target,
)
"""The `Target` of every kind of stage that makes a toolkit."""


def write_cuda_environment(context: Context, target: str) -> None:
    """Make the toolkit at `target` (with `bin` and `lib64`) the template's own.

    Its libraries go into the linker's cache, its programs onto the PATH of shells (profile.d is read by every login;
    /etc/environment expands nothing, and no unit reads either), and /usr/local/cuda links to it. Call it once per
    stage, when everything else is in place. Raises BuilderError.
    """
    name = target.rsplit("/", 1)[1]
    upper.write(context, f"/etc/ld.so.conf.d/{name.replace('.', '-')}.conf", f"{target}/lib64\n")
    upper.write(context, "/etc/profile.d/cuda.sh", _profile(target))
    upper.link(context, _LINK, os.path.relpath(target, os.path.dirname(_LINK)))
    update_linker_cache(context)


def update_linker_cache(context: Context) -> None:
    """Bring /etc/ld.so.cache up to date in the layer: the same bytes for the same files.

    Every soname link is made from what the stage installs, so ldconfig makes none (-X). Its auxiliary cache holds
    inodes and times: not read (-i), and not kept. Raises BuilderError.
    """
    context.run(("ldconfig", "-X", "-i"))
    (context.upper / "var/cache/ldconfig/aux-cache").unlink(missing_ok=True)


def _profile(target: str) -> str:
    return f"""\
export CUDA_HOME={target}
case ":$PATH:" in
*":$CUDA_HOME/bin:"*) ;;
*) PATH="$CUDA_HOME/bin:$PATH" ;;
esac
"""
