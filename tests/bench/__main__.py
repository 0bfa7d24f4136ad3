"""The builder against the by-hand way (mmdebstrap, uv, GNU tar | zstd -T0), in one run on one machine.

    python -m tests.bench [--recipe smoke] [--json FILE] [--work FOLDER]

Needs root, and the recipe's inputs in the store (`builder fetch`). Both ways start from the same files on disk, with
nothing built and nothing in the page cache, and make the same parts: a Debian root, a venv with bytecode, a `.tar.zst`
of the same level. No tree is removed before the end: for minutes ext4 makes files slower where many were removed.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from builder.build import blobs, plan
from builder.commands.common import locked
from builder.console import human, print_table
from builder.lock.model import Lock
from builder.recipe.model import Recipe
from builder.stage import KINDS
from builder.store import Store, default_root
from builder.store.tools import tool, tool_blobs
from tests.bench.machine import machine

HOUSE = Path(__file__).parents[2]


@dataclass(frozen=True)
class Took:
    """One measured step."""

    seconds: float
    peak_kib: int = 0  # largest resident size of one process of it


def measure(argv: Sequence[str], **options: Any) -> Took:
    """Run `argv`, which must pass; wall time and the peak memory of its largest process."""
    os.sync()
    started = time.monotonic()
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, **options)
    _, status, usage = os.wait4(process.pid, 0)
    took = time.monotonic() - started
    if status:
        sys.exit(f"bench: {' '.join(map(str, argv))}: status {status}")
    return Took(took, usage.ru_maxrss)


def timed(work: Callable[[], None]) -> Took:
    os.sync()
    started = time.monotonic()
    work()
    return Took(time.monotonic() - started)


def forget_files() -> None:
    """Empty the page cache (Documentation/admin-guide/sysctl/vm.rst, drop_caches)."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def by_hand(recipe: Recipe, lock: Lock, store: Store, work: Path) -> dict[str, Took]:
    """A root made step by step, as a careful person would with the same tools."""
    repository, wheels, root = work / "repository", work / "wheels", work / "root"
    base = recipe.stages[0]
    for folder, locked_files in (
        (repository, [deb.blob for deb in lock.debs[base.lock_id]]),
        (wheels, [wheel.blob for wheel in lock.venvs.get(recipe.venvs[0].lock_id, ())]),
    ):
        folder.mkdir()
        for blob in locked_files:
            os.link(store.path(blob.sha256), folder / blob.filename)
    packages = subprocess.run(
        ["dpkg-scanpackages", "--multiversion", "."], cwd=repository, check=True, capture_output=True
    )
    (repository / "Packages").write_bytes(packages.stdout)
    release = f"Suite: {recipe.distribution.release}\nCodename: {recipe.distribution.release}\n"
    (repository / "Release").write_text(release)

    steps = {}
    include = ",".join(base.params["Packages"])
    steps["base"] = measure(
        [
            "mmdebstrap",
            "--quiet",
            "--variant=apt",
            "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
            f"--include={include}",
            recipe.distribution.release,
            str(root),
            f"deb [trusted=yes] copy://{repository} ./",
        ]
    )
    venv = recipe.venvs[0]
    requirements = HOUSE / "locks" / recipe.directory.name / f"wheels-{venv.name}.txt"
    shutil.copy(requirements, root / "requirements.txt")
    inside = root / "wheels"
    inside.mkdir()
    for wheel in wheels.iterdir():
        os.link(wheel, inside / wheel.name)
    shutil.copy(tool(store, "uv"), root / "uv")
    script = (
        f"{venv.python} -m venv --without-pip {venv.path} && UV_CACHE_DIR={venv.path}/.cache /uv pip install --quiet "
        f"--offline --no-index --find-links /wheels --require-hashes --no-deps --compile-bytecode "
        f"--python {venv.path}/bin/python -r /requirements.txt && rm -rf {venv.path}/.cache"
    )
    steps["wheels"] = measure(
        ["unshare", "--mount", "chroot", str(root), "sh", "-c", f"mount -t proc proc /proc && {script}"]
    )
    for name in ("uv", "requirements.txt"):
        (root / name).unlink()
    shutil.rmtree(inside)
    steps["files"] = timed(lambda: _copy_files(recipe, root))
    archive = f"tar -C {root} --numeric-owner -cf - . | zstd -q -{recipe.compression_level} -T0 -o {work}/hand.tar.zst"
    steps["pack"] = measure(["sh", "-c", f"{archive} && sync {work}/hand.tar.zst"])
    return steps


def _copy_files(recipe: Recipe, root: Path) -> None:
    for source in recipe.stages[-1].params.get("ExtraTrees", []):
        folder = recipe.directory / source.rpartition(":")[0]
        subprocess.run(["cp", "-a", "--no-preserve=ownership", f"{folder}/.", str(root)], check=True)


def with_builder(recipe: Recipe, lock: Lock, store: Store, work: Path) -> tuple[dict[str, Took], dict[str, Any]]:
    """The same through `builder build`, with a store that has the inputs and nothing else."""
    project, fresh = work / "project", work / "store"
    for name in (recipe.directory.name, "vllm-service"):
        shutil.copytree(HOUSE / "recipes" / name, project / "recipes" / name)
    shutil.copytree(HOUSE / "locks" / recipe.directory.name, project / "locks" / recipe.directory.name)
    for blob in (*blobs(plan(recipe, lock, KINDS)), *tool_blobs()):
        place = fresh / "blobs" / "sha256" / blob.sha256[:2] / blob.sha256
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            os.link(store.path(blob.sha256), place)
    path = project / "recipes" / recipe.directory.name
    argv = [sys.executable, "-c", "from builder.cli import main; main()", "build", str(path), "--json"]
    env = {**os.environ, "BUILDER_STORE": str(fresh)}

    steps = {}
    with (work / "result.json").open("wb") as result:
        steps["cold build and pack"] = measure_into(argv, result, env)
    told = json.loads((work / "result.json").read_bytes())
    steps["nothing changed"] = measure(argv, env=env)
    change = partial(_change_a_file, path / recipe.stages[-1].params["ExtraTrees"][-1].rpartition(":")[0])
    steps["one file changed"] = middle([_after(change, argv, env) for _ in range(3)])
    with file_system("btrfs", work) as shared:
        if shared:
            there = [*argv, "--output", str(shared)]
            measure(there, env=env)
            steps["one file changed, on btrfs"] = middle([_after(change, there, env) for _ in range(3)])
    _change_a_wheel(recipe, lock, Store(fresh), project / "locks" / recipe.directory.name)
    steps["one wheel changed"] = measure(argv, env=env)
    return steps, told


def middle(times: Sequence[Took]) -> Took:
    """That of the median time."""
    return sorted(times, key=lambda one: one.seconds)[len(times) // 2]


def _after(change: Callable[[], None], argv: Sequence[str], env: dict[str, str]) -> Took:
    change()
    return measure(argv, env=env)


def _change_a_file(folder: Path) -> None:
    changed = next(file for file in sorted(folder.rglob("*")) if file.is_file())
    changed.write_bytes(changed.read_bytes() + b"\n")


def _change_a_wheel(recipe: Recipe, lock: Lock, store: Store, locks: Path) -> None:
    """Put another build of the smallest wheel into the store, and its hash into the locks."""
    wheels = [wheel.blob for wheel in lock.venvs[recipe.venvs[0].lock_id] if wheel.blob.filename.endswith("-any.whl")]
    old = min(wheels, key=lambda blob: blob.size)
    data = io.BytesIO(store.path(old.sha256).read_bytes())
    with zipfile.ZipFile(data, "a") as archive:
        archive.comment = b"another build"
    size, new = len(data.getvalue()), hashlib.sha256(data.getvalue()).hexdigest()
    place = store.path(new)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(data.getvalue())
    for path in locks.iterdir():
        text = path.read_text().replace(f'{old.size}\nsha256 = "{old.sha256}"', f'{size}\nsha256 = "{new}"')
        path.write_text(text.replace(old.sha256, new))


@contextmanager
def file_system(kind: str, work: Path) -> Iterator[Path | None]:
    """A folder on a new file system; None where mkfs for it is missing."""
    if shutil.which(f"mkfs.{kind}") is None:
        yield None
        return
    image, place = work / f"{kind}.img", work / kind
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(16 << 30)
    subprocess.run([f"mkfs.{kind}", "-q", image], check=True)
    device = subprocess.check_output(["losetup", "--direct-io=on", "--find", "--show", image], text=True).strip()
    try:
        subprocess.run(["mount", device, place], check=True)
        try:
            yield place
        finally:
            subprocess.run(["umount", place], check=True)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)
        image.unlink()
        place.rmdir()


def unpack(template: Path, work: Path) -> Took:
    """Unpack a template as a host does (PVE::LXC::Create, restore_tar_archive): onto a new ext4."""
    with file_system("ext4", work) as root:
        forget_files()
        options = ["--zstd", "--numeric-owner", "--totals", "--sparse", "-C", root, "--anchored"]
        command = shlex.join(map(str, ["tar", "xpf", template, *options]))
        return measure(["sh", "-c", f"{command} 2>/dev/null && sync -f {root}"])


def unpack_in_turn(templates: Sequence[Path], work: Path) -> list[Took]:
    """The middle one of three times of each, after one that does not count: the first finds memory as no other does."""
    unpack(templates[0], work)
    rounds = [[unpack(template, work) for template in templates] for _ in range(3)]
    return [middle(took) for took in zip(*rounds, strict=True)]


def measure_into(argv: Sequence[str], output: Any, env: dict[str, str]) -> Took:
    os.sync()
    started = time.monotonic()
    process = subprocess.Popen(argv, stdout=output, env=env)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"bench: builder build: status {status}")
    return Took(time.monotonic() - started, usage.ru_maxrss)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    parser.add_argument("--recipe", default="smoke")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path)
    chosen = parser.parse_args()
    store = Store(default_root())
    recipe, lock = locked(HOUSE / "recipes" / chosen.recipe, None)
    place = chosen.work or store.root
    about = machine()
    with tempfile.TemporaryDirectory(dir=place, prefix="bench-") as folder:
        work = Path(folder)
        forget_files()
        hand = by_hand(recipe, lock, store, work)
        hand_size = (work / "hand.tar.zst").stat().st_size
        forget_files()
        ours, told = with_builder(recipe, lock, store, work)
        templates = work / "hand.tar.zst", Path(told["path"])
        hand_unpack, our_unpack = unpack_in_turn(templates, work)
    total = sum(step.seconds for step in hand.values())
    figures = {
        "recipe": chosen.recipe,
        "machine": about,
        "by_hand_s": {name: round(step.seconds, 2) for name, step in hand.items()},
        "builder_s": {name: round(step.seconds, 2) for name, step in ours.items()},
        "builder_stages_s": {stage["name"]: stage["seconds"] for stage in told["stages"]},
        "builder_pack_s": told["pack_seconds"],
        "cold_ratio": round(ours["cold build and pack"].seconds / total, 3),
        "pack_ratio": round(told["pack_seconds"] / hand["pack"].seconds, 3),
        "size": {"by_hand": hand_size, "builder": told["size"], "ratio": round(told["size"] / hand_size, 4)},
        "unpack_s": {"by_hand": round(hand_unpack.seconds, 2), "builder": round(our_unpack.seconds, 2)},
        "builder_peak_mib": round(max(step.peak_kib for step in ours.values()) / 1024),
    }
    if chosen.json:
        chosen.json.write_text(json.dumps(figures, indent=1) + "\n")
    rows = [
        (
            "cold: build and pack",
            f"{total:.1f} s",
            f"{ours['cold build and pack'].seconds:.1f} s",
            figures["cold_ratio"],
        ),
        ("pack", f"{hand['pack'].seconds:.1f} s", f"{told['pack_seconds']:.1f} s", figures["pack_ratio"]),
        ("nothing changed", "", f"{ours['nothing changed'].seconds:.2f} s", ""),
        *((name, "", f"{step.seconds:.1f} s", "") for name, step in ours.items() if name.startswith("one ")),
        ("unpack", f"{hand_unpack.seconds:.1f} s", f"{our_unpack.seconds:.1f} s", ""),
        ("size", human(hand_size), human(told["size"]), figures["size"]["ratio"]),
        ("peak memory", "", f"{figures['builder_peak_mib']} MiB", ""),
    ]
    print_table((chosen.recipe, "by hand", "builder", "ratio"), rows, right=("by hand", "builder", "ratio"))


if __name__ == "__main__":
    main()
