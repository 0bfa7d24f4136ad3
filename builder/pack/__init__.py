"""From layers to a template: one tar in zstd frames, with its manifest, bill of materials and checksums beside it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from builder.pack.content import Layer, content
from builder.pack.info import Info, StageInfo
from builder.pack.manifest import manifest
from builder.pack.publish import publish, workplace, write_text
from builder.pack.sbom import sbom
from builder.pack.segment import segments
from builder.pack.write import DamagedFrameError, Earlier, write
from builder.progress import Progress, Silent

__all__ = ["Info", "Layer", "Packed", "StageInfo", "newest", "pack"]


@dataclass(frozen=True)
class Packed:
    """A template that is in place."""

    path: Path
    sha256: str
    size: int  # bytes of the file
    tar_size: int  # bytes that it unpacks to
    files: int  # members
    frames: int
    reused: int  # frames copied from an earlier template


def pack(
    layers: Sequence[Layer],
    dest: Path,
    *,
    name: str,
    version: str,
    architecture: str,
    level: int,
    epoch: int,
    info: Info,
    jobs: int | None = None,
    previous: Path | None = None,
    progress: Progress | None = None,
) -> Packed:
    """Make the template `NAME_VERSION_ARCHITECTURE.tar.zst` of `layers` (lowest first) in the folder `dest`.

    Beside it: `.manifest.json`, `.cdx.json` (CycloneDX 1.6) and a line in `SHA256SUMS`. The bytes depend on the
    merged tree, `level` (zstd's) and the locked compressor alone, not on `jobs` (threads; None: one a CPU) or
    `previous`: a template whose manifest lies beside it, from which frames that are still the same are copied
    after their hash was checked, so that unchanged files are not read.
    Raises BuilderError when a layer's file is not what its index says, the disk is full or `dest` cannot be written;
    then `dest` is as it was.
    """
    progress = progress or Silent()
    jobs = jobs or os.cpu_count() or 1
    stem = f"{name}_{version}_{architecture}"
    template = f"{stem}.tar.zst"
    members = content(layers)
    cut = tuple(segments(members, level))
    with workplace(dest) as scratch:
        earlier = None if previous is None else Earlier.load(previous, _manifest_of(previous))
        place = scratch / template
        try:
            written = write(place, cut, level, jobs, earlier, progress)
        except DamagedFrameError:
            progress.say(f"{previous} is damaged: not used, packing everything again")
            place.unlink()
            written = write(place, cut, level, jobs, None, progress)
        told = manifest(
            info, members, written, name=name, version=version, architecture=architecture, level=level, epoch=epoch
        )
        bill = sbom(info, members, name=name, version=version, sha256=written.sha256, epoch=epoch)
        sums = {
            template: written.sha256,
            f"{stem}.manifest.json": write_text(scratch / f"{stem}.manifest.json", told),
            f"{stem}.cdx.json": write_text(scratch / f"{stem}.cdx.json", bill),
        }
        publish(scratch, dest, template, sums)
    return Packed(
        dest / template, written.sha256, written.size, written.tar_size, len(members), len(cut), written.reused
    )


def newest(dest: Path, name: str, architecture: str) -> Path | None:
    """The template `name` that was made last in the folder `dest`, whatever its version; None when there is none."""
    found = [path for path in dest.glob(f"{name}_*_{architecture}.tar.zst") if _manifest_of(path).exists()]
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)


def _manifest_of(template: Path) -> Path:
    return template.with_name(template.name.removesuffix(".tar.zst") + ".manifest.json")
