"""From layers to a template: one tar in zstd frames, with its manifest, bill of materials and checksums beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.pack import bill, content, manifest, publish, rights, sbom
from builder.pack.compare import KINDS as DIFFERENCE_KINDS
from builder.pack.compare import Difference, compare
from builder.pack.content import Layer
from builder.pack.earlier import Earlier, Stat, opened
from builder.pack.info import Info, StageInfo
from builder.pack.make import Work, make
from builder.pack.manifest import FORM
from builder.pack.rights import May, Part, read_on, strictest
from builder.pack.segment import FORMAT, cut
from builder.pack.verify import Checked, verify
from builder.pack.write import Written
from builder.progress import Progress, Silent
from builder.recipe.model import Target

__all__ = [
    "DIFFERENCE_KINDS",
    "FORM",
    "FORMAT",
    "SUFFIX",
    "Checked",
    "Difference",
    "Earlier",
    "Info",
    "Layer",
    "May",
    "Packed",
    "Part",
    "StageInfo",
    "Stat",
    "compare",
    "file_name",
    "listed",
    "newest",
    "pack",
    "parts",
    "read_manifest",
    "read_on",
    "read_rights",
    "read_target",
    "read_venvs",
    "strictest",
    "verify",
]

SUFFIX = ".tar.zst"


@dataclass(frozen=True)
class Packed:
    """A template that is in place."""

    path: Path
    sha256: str
    size: int  # bytes of the file
    tar_size: int  # bytes that it unpacks to
    files: int  # members
    frames: int
    reused: int  # frames taken from an earlier template
    left: Earlier  # for the next one


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
    earlier: Earlier | None = None,
    progress: Progress | None = None,
) -> Packed:
    """Make the template `NAME_VERSION_ARCHITECTURE.tar.zst` of `layers` (lowest first) in the folder `dest`.

    Beside it: `.manifest.json`, `.cdx.json` (CycloneDX 1.6) and a line in `SHA256SUMS`. The bytes depend on the
    merged tree, `level` (zstd's) and the locked compressor alone, not on `jobs` (threads; None: one a CPU) or
    `earlier`: a template from which frames that are still the same are taken over, so that unchanged files are not
    read. When it is the one that is replaced, it is changed where it lies if nobody else has it open. Of one that was
    written to since nothing is taken.
    Raises BuilderError when a layer's file is not what its index says, the disk is full or `dest` cannot be written;
    then `dest` is as it was, or without the template when the disk failed just while that was changed.
    """
    progress = progress or Silent()
    template = file_name(name, version, architecture)
    with publish.workplace(dest) as scratch, ExitStack() as stack:
        members = content.gather(layers)
        segments = tuple(cut(members, level))

        beside = stack.enter_context(ThreadPoolExecutor(1))  # what can be told before the template is made
        files = beside.submit(manifest.files, members)
        draft = beside.submit(sbom.draft, info, members, name=name, version=version, epoch=epoch)

        def tell(written: Written) -> Mapping[str, str]:
            """Describe the template in `scratch`; the sha256 of all that is to be placed."""
            told = manifest.render(
                info,
                files.result(),
                written,
                name=name,
                version=version,
                architecture=architecture,
                level=level,
                epoch=epoch,
            )
            listed = sbom.finish(draft.result(), written.sha256)
            _, told_path, bill_path = parts(scratch / template)
            return {
                template: written.sha256,
                told_path.name: publish.write_text(told_path, told),
                bill_path.name: publish.write_text(bill_path, listed),
            }

        work = Work(segments, level, jobs or os.cpu_count() or 1, scratch, dest, template, tell)
        written, stat = make(work, stack.enter_context(opened(earlier)), progress)
        path = dest / template
        stat = stat._replace(changed=path.stat().st_ctime_ns)  # by the move to its place
        left = Earlier(path, stat, written.sha256, written.states, written.records)
    return Packed(
        path, written.sha256, written.size, written.tar_size, len(members), len(segments), written.reused, left
    )


def file_name(name: str, version: str, architecture: str) -> str:
    """What a template's file is called; Proxmox takes the name as it is."""
    return f"{name}_{version}_{architecture}{SUFFIX}"


def parts(template: Path) -> tuple[Path, Path, Path]:
    """What is made for a template beside `SHA256SUMS`: itself, its manifest, its bill of materials."""
    return template, _manifest_of(template), template.with_name(f"{template.name.removesuffix(SUFFIX)}.cdx.json")


def listed(template: Path) -> str | None:
    """The sha256 that `SHA256SUMS` beside `template` has for it. Raises OSError."""
    return publish.read_sums(template.parent).get(template.name)


def read_manifest(template: Path) -> Mapping[str, Any]:
    """The manifest beside `template`. Raises BuilderError when it is missing or is none."""
    return manifest.read(_manifest_of(template))


def read_rights(template: Path) -> tuple[Part, ...]:
    """The parts of `template` and what may be passed on, from the manifest and the bill of materials beside it.

    Raises BuilderError when one of the two is missing or damaged.
    """
    _, told, listed = parts(template)
    try:
        return tuple(rights.of_template(manifest.read(told), bill.read(listed)))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise bill.unsound(listed) from error


def read_target(template: Path, told: Mapping[str, Any]) -> Target | None:
    """The card that `template`, whose manifest is `told`, is for; None when none is told. Raises BuilderError."""
    return manifest.target(told, _manifest_of(template))


def read_venvs(template: Path, told: Mapping[str, Any]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Where each environment of `template` lies, with its requirements; manifests before form 2 tell of none.

    Raises BuilderError when the manifest `told` is damaged.
    """
    return manifest.venvs(told, _manifest_of(template))


def newest(dest: Path, name: str, architecture: str) -> Path | None:
    """The template `name` that was made last in the folder `dest`, whatever its version; None when there is none."""
    found = [path for path in dest.glob(f"{name}_*_{architecture}{SUFFIX}") if _manifest_of(path).exists()]
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)


def _manifest_of(template: Path) -> Path:
    return template.with_name(template.name.removesuffix(SUFFIX) + ".manifest.json")
