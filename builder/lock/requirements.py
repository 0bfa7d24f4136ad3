"""`wheels-VENV.txt`: one environment's wheels in pip-tools' format, for `pip install --require-hashes -r`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from builder.errors import BuilderError
from builder.lock.model import Wheel


def render(wheels: Sequence[Wheel]) -> str:
    """`wheels` as pip-tools writes them, with one hash each: the lock admits one byte string a package."""
    return "".join(f"{wheel.name}=={wheel.version} \\\n    --hash=sha256:{wheel.blob.sha256}\n" for wheel in wheels)


def check(path: Path, wheels: Sequence[Wheel], hint: str) -> None:
    """Raise BuilderError naming the first line of the file at `path` that is not what `render(wheels)` says."""
    try:
        found = path.read_bytes()
    except OSError as error:
        raise BuilderError(error.strerror or str(error), where=path, hint=hint) from error
    lines = found.splitlines(keepends=True), render(wheels).encode().splitlines(keepends=True)
    for number, (here, wanted) in enumerate(zip_longest(*lines), 1):
        if here != wanted:
            what = f"{_shown(here)}, where lock.toml has {_shown(wanted)}"
            raise BuilderError(what, where=f"{path}:{number}", hint=hint)


def _shown(line: bytes | None) -> str:
    return "nothing" if line is None else repr(line.decode(errors="replace").strip())
