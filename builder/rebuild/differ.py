"""Two templates of one recipe that should be the same: where they part, and how."""

from __future__ import annotations

import difflib
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

import zstandard

from builder import pack
from builder.pack import Difference
from builder.store.files import sha256_of

_SHOWN = 5
"""Files whose difference is shown."""
_LINES = 40
"""Lines of a difference that are shown."""
_TEXT = 1 << 20
_SECONDS = 300
_WINDOW = 1 << 27


def sha256(template: Path) -> str:
    """The sha256 of the template's bytes. Raises OSError."""
    return sha256_of(template)


def explain(one: Path, other: Path) -> tuple[str, tuple[str, ...], str]:
    """The first stage whose layers differ ("pack" when none does), the files that differ, and their difference.

    diffoscope shows it where it is installed. Raises BuilderError when a manifest is missing or unsound.
    """
    rows = pack.compare(pack.parts(one), pack.parts(other))
    stages = [row.name for row in rows if row.kind == "stage"]
    files = [row for row in rows if row.kind == "file"]
    shown = [line for row in files[:_SHOWN] for line in _told(row)]
    changed = [row.name for row in files if _content(row)][:_SHOWN]
    with tempfile.TemporaryDirectory(prefix="builder-differ-") as name:
        sides = [Path(name, side) for side in ("a", "b")]
        for side, template in zip(sides, (one, other), strict=True):
            side.mkdir()
            _take(template, changed, side)
        for number, path in enumerate(changed):
            shown += _difference(sides[0] / str(number), sides[1] / str(number), path)
    return stages[0] if stages else "pack", tuple(row.name for row in files), "\n".join(shown)


def _content(row: Difference) -> bool:
    return None not in (row.old, row.new) and row.old.get("sha256") != row.new.get("sha256")


def _told(row: Difference) -> list[str]:
    """What the manifests say differently of a file."""
    if row.old is None or row.new is None:
        return [f"{row.name!a}: only in the {'rebuilt template' if row.old is None else 'first template'}"]
    names = sorted(name for name in row.old.keys() | row.new.keys() if row.old.get(name) != row.new.get(name))
    return [f"{row.name!a}: {name} {row.old.get(name)!a}, rebuilt {row.new.get(name)!a}" for name in names]


def _take(template: Path, paths: Sequence[str], folder: Path) -> None:
    """Write the bytes of `paths` from the template into `folder`, named by their numbers."""
    wanted = {f"./{path}": str(number) for number, path in enumerate(paths)}
    with template.open("rb") as file:
        stream = zstandard.ZstdDecompressor(max_window_size=_WINDOW).stream_reader(file, read_across_frames=True)
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                if not wanted:
                    return
                name = wanted.pop(member.name, None)
                if name is not None and (data := tar.extractfile(member)) is not None:
                    with (folder / name).open("wb") as out:
                        shutil.copyfileobj(data, out)


def _difference(one: Path, other: Path, name: str) -> list[str]:
    if not (one.is_file() and other.is_file()):
        return []
    if shutil.which("diffoscope"):
        argv = ["diffoscope", "--no-progress", "--text-color=never", "--text=-", str(one), str(other)]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False)
            if done.returncode == 1:
                return _cut(done.stdout.splitlines())
        except subprocess.TimeoutExpired:
            return [f"{name!a}: diffoscope was not done in {_SECONDS} seconds"]
    return _cut(_plain(one.read_bytes(), other.read_bytes(), name))


def _plain(one: bytes, other: bytes, name: str) -> Collection[str]:
    """The difference of two texts as a unified diff, of two other files as the place of the first byte."""
    try:
        if max(len(one), len(other)) <= _TEXT:
            old, new = one.decode().splitlines(), other.decode().splitlines()
            return list(difflib.unified_diff(old, new, "first", "rebuilt", lineterm=""))
    except UnicodeDecodeError:
        pass
    place = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return [f"{name!a}: differs from byte {place:,} on ({len(one):,} and {len(other):,} bytes)"]


def _cut(lines: Collection[str]) -> list[str]:
    shown = [ascii(line)[1:-1] if not line.isprintable() else line for line in lines]
    return shown if len(shown) <= _LINES else [*shown[:_LINES], f"... and {len(shown) - _LINES} more lines"]
