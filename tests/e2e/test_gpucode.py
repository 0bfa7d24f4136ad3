"""The reader of fat binaries against NVIDIA's cuobjdump, on real libraries."""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import HOUSE, Measure, User
from project import STORE, Project

from builder.gpucode import Kind, Library, scan
from builder.lock import read as read_lock
from builder.lock.model import Blob
from builder.pack import read_manifest
from builder.progress import Silent
from builder.store import Store, fetch
from builder.tree import extract

pytestmark = pytest.mark.e2e

CUOBJDUMP = Blob(
    sha256="38780fee50863252a0b8926357faa91615ca1c8346490563f33a06100cd73f58",
    size=290354,
    filename="nvidia_cuda_cuobjdump-13.5.37-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
    urls=(
        "https://files.pythonhosted.org/packages/07/70/2cea1817edfd186883b357cffa78dd47757ba33e4eef3bd0141a4f4b4109/"
        "nvidia_cuda_cuobjdump-13.5.37-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
    ),
)
SMALL = ("torchaudio", "nvidia-cufile-cu12")
"""The smallest wheels of the lock with GPU code, 5 MB together."""

TRITONS = "opt/vllm/lib/python3.11/site-packages/triton/backends/nvidia/bin/cuobjdump"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with cuobjdump and the small wheels, taken from the machine's own store as far as that has them."""
    store = Store(tmp_path_factory.mktemp("gpucode-store"))
    wanted = [CUOBJDUMP, *small_wheels()]
    for blob in wanted:
        if (mine := Store(STORE).path(blob.sha256)).exists():
            store.add(mine, blob.sha256)
    fetch(store, wanted, progress=Silent())
    return store


def small_wheels() -> list[Blob]:
    venvs = read_lock(HOUSE / "locks" / "vllm-blackwell").venvs
    return [wheel.blob for wheel in venvs["vllm"] if wheel.name in SMALL]


@pytest.fixture(scope="module")
def cuobjdump(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cuobjdump")
    extract(store.path(CUOBJDUMP.sha256), folder)
    tool = folder / "nvidia/cu13/bin/cuobjdump"
    tool.chmod(0o755)
    return tool


def listed(tool: Path, library: Path) -> Counter[str]:
    """What cuobjdump lists of a library, by our names: it calls PTX for compute_90 "ptx code" of "arch = sm_90"."""
    said = subprocess.run([tool, library], check=True, capture_output=True, text=True, env={}).stdout
    found: Counter[str] = Counter()
    kind = ""
    for line in said.splitlines():
        if line.startswith("Fatbin "):
            kind = {"elf": "sm", "ptx": "compute"}[line.split()[1]]
        elif line.startswith("arch = sm_"):
            found[f"{kind}_{line.removeprefix('arch = sm_')}"] += 1
    return found


def counted(library: Library) -> Counter[str]:
    """What our reader counts, without relocatable device code, which cuobjdump leaves out."""
    return Counter(
        entry.name for unit in library.containers if unit.section != "__nv_relfatbin" for entry in unit.entries
    )


def without_family(counts: Counter[str]) -> Counter[str]:
    """cuobjdump 12.8 does not know the suffix "f"."""
    found: Counter[str] = Counter()
    for name, count in counts.items():
        found[name.removesuffix("f")] += count
    return found


def test_small_libraries_as_cuobjdump_lists_them(store: Store, cuobjdump: Path, tmp_path: Path) -> None:
    total: Counter[str] = Counter()
    for blob in small_wheels():
        extract(store.path(blob.sha256), tmp_path / blob.sha256)
        for library in scan(tmp_path / blob.sha256, store.scratch):
            assert not library.problem
            assert counted(library) == listed(cuobjdump, tmp_path / blob.sha256 / library.path), library.path
            total += counted(library)
    assert total["sm_120"] == 6
    assert total["compute_80"] == 1


def test_wheels_read_without_unpacking(store: Store, tmp_path: Path) -> None:
    for blob in small_wheels():
        extract(store.path(blob.sha256), tmp_path / blob.sha256)
        assert scan(store.path(blob.sha256), store.scratch) == scan(tmp_path / blob.sha256, store.scratch)


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_every_library_of_the_real_template(root_user: User, cuobjdump: Path, measure: Measure) -> None:
    here = Project(HOUSE, User(**{**vars(root_user), "env": {**root_user.env, "BUILDER_STORE": str(STORE)}}))
    template = Path(here.json("template", "recipes/vllm-blackwell")["path"])
    keys = [stage["key"] for stage in read_manifest(template)["stages"]]
    trees = [STORE / "layers" / "root" / key / "tree" for key in keys]
    store = Store(STORE)

    Path("/proc/sys/vm/drop_caches").write_text("3")
    started = time.monotonic()
    found = [(tree, library) for tree in trees for library in scan(tree, store.scratch)]
    cold = time.monotonic() - started
    started = time.monotonic()
    again = [(tree, library) for tree in trees for library in scan(tree, store.scratch)]
    warm = time.monotonic() - started
    assert again == found
    assert not [library for _, library in found if library.problem]

    tritons = next(tree / TRITONS for tree in trees if (tree / TRITONS).exists())
    relocatable = 0
    for tree, library in found:
        ours = counted(library)
        assert ours == listed(cuobjdump, tree / library.path), library.path
        assert without_family(ours) == listed(tritons, tree / library.path), library.path
        relocatable += sum(len(unit.entries) for unit in library.containers) - ours.total()
    assert relocatable  # NCCL's

    started = time.monotonic()
    packed = scan(template, store.scratch)
    from_template = time.monotonic() - started
    assert packed == tuple(sorted((library for _, library in found), key=lambda library: library.path))
    assert cold < 10
    entries = [entry for _, library in found for unit in library.containers for entry in unit.entries]
    measure(
        "GPU code, as cuobjdump 13.5 and Triton's 12.8 list it",
        {
            "libraries": len(found),
            "entries": len(entries),
            "of them PTX": sum(entry.kind is Kind.PTX for entry in entries),
            "of them relocatable, which cuobjdump does not list": relocatable,
            "seconds cold": round(cold, 2),
            "seconds warm": round(warm, 2),
            "seconds from the packed template": round(from_template, 2),
        },
    )
