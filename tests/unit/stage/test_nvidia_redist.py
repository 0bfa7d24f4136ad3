"""A toolkit from redistributable archives: NVIDIA's layout, and components that must agree."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from builder.errors import BuilderError, UsageError
from builder.lock.model import Blob, Lock, UrlRequest
from builder.recipe.model import Distribution, Recipe, Stage
from builder.stage import upper
from builder.stage.kind import Context, Inputs
from builder.stage.nvidia_redist import KIND

TARGET = "/usr/local/cuda-12.8"
PLATFORM = "targets/x86_64-linux"

NVCC = {
    "LICENSE": "nvcc's terms",
    "bin/nvcc": "#!nvcc",
    "bin/crt/link.stub": "stub",
    "include/crt/host_config.h": "host",
    "lib/libnvptxcompiler_static.a": "a",
    "nvvm/bin/cicc": "#!cicc",
    "nvvm/lib64/libnvvm.so.4": "so",
    "nvvm/lib64/libnvvm.so": ("libnvvm.so.4",),
}
CUDART = {
    "LICENSE": "cudart's terms",
    "include/cuda_runtime.h": "runtime",
    "lib/libcudart.so.12.8.90": "so",
    "lib/libcudart.so.12": ("libcudart.so.12.8.90",),
    "lib/libcudart.so": ("libcudart.so.12",),
    "lib/stubs/libcuda.so": "stub",
    "pkg-config/cudart-12.8.pc": "pc",
}


def archive(name: str, members: Mapping[str, str | tuple[str]]) -> bytes:
    """An archive as NVIDIA publishes it: everything in one folder named after it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz", preset=0) as tar:
        for path, content in members.items():
            info = tarfile.TarInfo(f"{name}-linux-x86_64-12.8.90-archive/{path}")
            info.mtime = 1_740_000_000
            if isinstance(content, tuple):
                info.type, info.linkname = tarfile.SYMTYPE, content[0]
                tar.addfile(info)
            else:
                info.size, info.mode = len(content), 0o755 if content.startswith("#!") else 0o644
                tar.addfile(info, io.BytesIO(content.encode()))
    return buffer.getvalue()


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Path]:
    """Builds the stage from components and returns the layer."""

    def run_stage(**components: Mapping[str, Any]) -> Path:
        for folder in ("blobs", "scratch", "upper"):
            (tmp_path / folder).mkdir()
        for name, members in components.items():
            (tmp_path / "blobs" / name).write_bytes(archive(name, members))
        params = {
            "Release": "12.8.1",
            "Target": TARGET,
            "components": {name: [f"The {name}", "12.8.90"] for name in components},
        }
        KIND.build(
            Context(
                recipe=recipe(),
                stage=stage(),
                inputs=Inputs(params, tuple(Blob("", 0, name, ()) for name in components)),
                upper=tmp_path / "upper",
                scratch=tmp_path / "scratch",
                blob=lambda blob: tmp_path / "blobs" / blob.filename,
                tool=lambda name: tmp_path / name,
                run=lambda argv, **options: None,
                lower=lambda path: None,
                epoch=1,
            )
        )
        return tmp_path / "upper"

    return run_stage


def recipe() -> Recipe:
    distribution = Distribution("debian", "bookworm", "amd64", "http://mirror", "http://security", ("main",))
    return Recipe(Path("/r"), "r", "1", "", (), 1, 3, distribution, None, (), (), ())


def stage(release: str = "12.8.1", components: tuple[str, ...] = ("cuda_nvcc", "cuda_cudart")) -> Stage:
    params = {"Release": release, "Components": list(components), "Target": TARGET}
    return Stage("cuda", KIND.name, params, None, "", 1, 1)


def tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_symlink() or path.is_file())


def test_components_merge_into_the_layout_of_nvidias_installer(build: Callable[..., Path]) -> None:
    assert tree(build(cuda_cudart=CUDART, cuda_nvcc=NVCC) / TARGET[1:]) == [
        "bin/crt/link.stub",
        "bin/nvcc",
        "include",
        "lib64",
        "nvvm/bin/cicc",
        "nvvm/lib64/libnvvm.so",
        "nvvm/lib64/libnvvm.so.4",
        "pkg-config/cudart-12.8.pc",
        "share/doc/cuda_cudart/LICENSE",
        "share/doc/cuda_nvcc/LICENSE",
        f"{PLATFORM}/include/crt/host_config.h",
        f"{PLATFORM}/include/cuda_runtime.h",
        f"{PLATFORM}/lib/libcudart.so",
        f"{PLATFORM}/lib/libcudart.so.12",
        f"{PLATFORM}/lib/libcudart.so.12.8.90",
        f"{PLATFORM}/lib/libnvptxcompiler_static.a",
        f"{PLATFORM}/lib/stubs/libcuda.so",
        "version.json",
    ]


def test_usual_names_lead_to_the_files(build: Callable[..., Path]) -> None:
    layer = build(cuda_cudart=CUDART, cuda_nvcc=NVCC)
    for path in ("bin/nvcc", "include/cuda_runtime.h", "lib64/libcudart.so", "lib64/stubs/libcuda.so"):
        assert (layer / "usr/local/cuda" / path).is_file()
    assert (layer / TARGET[1:] / "bin/nvcc").stat().st_mode & 0o777 == 0o755


def test_profilers_find_cupti_where_the_installer_puts_it(build: Callable[..., Path]) -> None:
    names = ("lib/libcupti.so.12", "include/cupti.h", "samples/callback/Makefile", "doc/index.html")
    layer = build(cuda_cupti=dict.fromkeys(names, "x"))
    for path in ("lib64/libcupti.so.12", "include/cupti.h", "samples/callback/Makefile", "doc/index.html"):
        assert (layer / "usr/local/cuda/extras/CUPTI" / path).is_file()
    assert not (layer / "usr/local/cuda/samples").exists()


def test_the_environment_is_found_by_linker_and_shells(build: Callable[..., Path]) -> None:
    layer = build(cuda_cudart=CUDART)
    assert (layer / "etc/ld.so.conf.d/cuda-12-8.conf").read_text() == f"{TARGET}/lib64\n"
    script = f". {layer}/etc/profile.d/cuda.sh; " * 2 + "echo $CUDA_HOME $PATH"
    said = subprocess.run(["sh", "-euc", script], env={"PATH": "/usr/bin:/bin"}, capture_output=True, check=True)
    assert said.stdout.decode() == f"{TARGET} {TARGET}/bin:/usr/bin:/bin\n"


def test_no_file_is_put_behind_a_link_of_the_root(tmp_path: Path) -> None:
    context = Context(
        recipe(),
        stage(),
        Inputs({}),
        tmp_path,
        tmp_path,
        lambda b: tmp_path,
        lambda n: tmp_path,
        print,
        lambda p: None,
        1,
    )
    with pytest.raises(BuilderError, match="/lib/x lies behind a link; say /usr/lib/x"):
        upper.write(context, "/lib/x/y", "")


def test_version_json_says_what_is_in_it(build: Callable[..., Path]) -> None:
    versions = json.loads((build(cuda_cudart=CUDART) / TARGET[1:] / "version.json").read_text())
    assert versions == {
        "cuda": {"name": "CUDA SDK", "version": "12.8.1"},
        "cuda_cudart": {"name": "The cuda_cudart", "version": "12.8.90"},
    }


def test_the_same_file_from_two_components_is_one_file(build: Callable[..., Path]) -> None:
    assert (build(a={"include/x.h": "1"}, b={"include/x.h": "1"}) / TARGET[1:] / "include/x.h").read_text() == "1"


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ({"include/x.h": "1"}, {"include/x.h": "2"}, "include/x.h differs between a and b"),
        ({"bin/x": "#!1"}, {"bin/x": ("y",)}, "bin/x differs between a and b"),
        ({"lib/x": ("y",)}, {"lib/x": ("z",)}, "lib/x differs between a and b"),
        ({"lib/x": "1"}, {"lib64/x": "2"}, "lib/x differs between a and b"),
        ({"bin/x": "1"}, {"bin/x/y": "1"}, "bin/x is a folder in b and a file in another"),
        ({"bin/x/y": "1"}, {"bin/x": "1"}, "bin/x"),
        ({"bin/x": ("../nvvm",), "nvvm/y": ""}, {"bin/x/y": "1"}, "bin/x is a folder in b and a file in another"),
    ],
)
def test_components_that_disagree_are_an_error(build: Callable[..., Path], one: Any, other: Any, said: str) -> None:
    with pytest.raises(BuilderError, match=said):
        build(a=one, b=other)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"lib/x": ("../nvvm/y",)}, "lib/x links out of lib, which is moved"),
        ({"lib64": ("lib",)}, "lib64 is a link where a folder is expected"),
        ({"lib/x": ("/etc/passwd",)}, "outside the folder"),
        ({"lib/x": ("../../../etc",)}, "lib/x.*leaves the folder"),
        ({"../../x": "1"}, "leaves the folder"),
    ],
)
def test_what_leaves_its_place_is_refused(build: Callable[..., Path], members: Any, said: str) -> None:
    with pytest.raises(BuilderError, match=said):
        build(cuda_nvcc=members)


def lock(*names: str) -> Lock:
    requests = {request.id: request for request in KIND.requests(recipe(), stage(components=names))}
    return Lock("r", "", urls={key: Blob(r.sha256, r.size, key, (r.url,)) for key, r in requests.items()})


def test_a_known_release_asks_for_the_published_files() -> None:
    (request,) = KIND.requests(recipe(), stage(components=("cuda_nvcc",)))
    assert isinstance(request, UrlRequest)
    assert request.url == (
        "https://developer.download.nvidia.com/compute/cuda/redist/"
        "cuda_nvcc/linux-x86_64/cuda_nvcc-linux-x86_64-12.8.93-archive.tar.xz"
    )
    assert request.sha256 == "9961b3484b6b71314063709a4f9529654f96782ad39e72bf1e00f070db8210d3"
    assert request.size == 79_015_464


def test_the_order_of_components_in_the_recipe_means_nothing() -> None:
    locked = lock("cuda_nvcc", "cuda_cudart")
    one = KIND.inputs(recipe(), stage(components=("cuda_nvcc", "cuda_cudart")), locked)
    assert one == KIND.inputs(recipe(), stage(components=("cuda_cudart", "cuda_nvcc", "cuda_nvcc")), locked)
    assert list(one.params["components"]) == ["cuda_cudart", "cuda_nvcc"]
    assert [blob.filename for blob in one.blobs] == ["cuda-12.8.1-cuda_cudart", "cuda-12.8.1-cuda_nvcc"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (stage(release="12.9.9"), "CUDA 12.9.9 is not known; known: 12.8.1"),
        (stage(components=("cuda_nvc",)), "no component cuda_nvc; the nearest are cuda_nvcc"),
    ],
)
def test_what_is_not_published_is_named_with_what_is(wrong: Stage, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        KIND.requests(recipe(), wrong)


def test_a_lock_that_lacks_a_component_is_refused() -> None:
    with pytest.raises(BuilderError, match=r"cuda-12\.8\.1-cuda_nvcc is not in the lock"):
        KIND.inputs(recipe(), stage(), lock("cuda_cudart"))


@pytest.mark.parametrize("target", ["/usr/local/cuda", "/usr/local", "/lib/cuda", "/opt/../etc", "cuda", "/opt/a/b"])
def test_a_target_outside_its_places_is_refused(target: str) -> None:
    (key,) = (key for key in KIND.keys if key.name == "Target")
    assert key.check
    assert key.check(target)
    assert key.check(TARGET) is None
