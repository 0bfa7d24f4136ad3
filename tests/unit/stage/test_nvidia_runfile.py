"""The driver's package: read as NVIDIA writes it, trusted in nothing."""

from __future__ import annotations

import io
import lzma
import re
import stat
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from builder.errors import BuilderError, UsageError
from builder.lock.model import Blob, Lock, UrlRequest
from builder.recipe.model import Distribution, Recipe, Stage
from builder.stage import runfile
from builder.stage.kind import Context, Inputs
from builder.stage.nvidia_runfile import KIND

VERSION = "580.76.05"
NAME = f"NVIDIA-Linux-x86_64-{VERSION}.run"
LIB = "usr/lib/x86_64-linux-gnu"
PACKAGED = 1_750_000_000  # when the files were packaged
ABOUT = (
    "NVIDIA Accelerated Graphics Driver for Linux-x86_64",
    VERSION,
    " ",
    "nvidia nvidia-uvm ",
    " ",
    " ",
    "k/",
    "k/p/",
)
LISTED = (
    "kernel/nvidia/nv.c 0644 KERNEL_MODULE_SRC INHERIT_PATH_DEPTH:1 MODULE:resman",
    f"libnvidia-glcore.so.{VERSION} 0755 OPENGL_LIB NATIVE MODULE:opengl",
    f"libvdpau_nvidia.so.{VERSION} 0755 VDPAU_LIB NATIVE vdpau/ MODULE:vdpau",
    "nvidia-resume.service 0000 SYSTEMD_UNIT_SYMLINK systemd-resume.service.wants/ ../nvidia-resume.service MODULE:p",
    "nvidia-settings 0755 UTILITY_BINARY MODULE:xutils",
    "LICENSE 0444 DOCUMENTATION NVIDIA_GLX-1.0/ MODULE:installer",
    "supported-gpus/LICENSE 0444 DOCUMENTATION NVIDIA_GLX-1.0/supported-gpus/ MODULE:installer",
    "nvidia-installer 0755 INSTALLER_BINARY MODULE:installer",
    "nvidia-modprobe 04755 NVIDIA_MODPROBE /usr/bin/ MODULE:installer",
    "nvidia-smi 0755 UTILITY_BINARY MODULE:nvml",
    "nvidia-smi.1.gz 0444 MANPAGE man1/ MODULE:nvml",
    f"libnvidia-ml.so.{VERSION} 0755 CUDA_LIB NATIVE / MODULE:nvml",
    f"libnvidia-ml.so.1 0000 CUDA_SYMLINK NATIVE / libnvidia-ml.so.{VERSION} MODULE:nvml",
    "libnvidia-ml.so 0000 CUDA_SYMLINK NATIVE / libnvidia-ml.so.1 MODULE:nvml",
    f"32/libcuda.so.{VERSION} 0755 CUDA_LIB COMPAT32 / MODULE:gpgpu",
    f"libcuda.so.{VERSION} 0755 CUDA_LIB NATIVE / MODULE:gpgpu",
    f"libcuda.so.1 0000 CUDA_SYMLINK NATIVE / libcuda.so.{VERSION} MODULE:gpgpu",
    "libcuda.so 0000 CUDA_SYMLINK NATIVE / libcuda.so.1 MODULE:gpgpu",
    f"libcuda.so.1 0000 CUDA_SYMLINK COMPAT32 / libcuda.so.{VERSION} MODULE:gpgpu",
    f"libnvidia-opencl.so.{VERSION} 0755 OPENCL_LIB NATIVE / MODULE:gpgpu",
    f"libnvidia-opencl.so.1 0000 OPENCL_LIB_SYMLINK NATIVE / libnvidia-opencl.so.{VERSION} MODULE:gpgpu",
    "nvidia.icd 0444 CUDA_ICD MODULE:gpgpu",
    "libnvidia-nvvm70.so.4 0755 CUDA_LIB NATIVE / MODULE:gpgpucomp",
    f"libnvidia-ptxjitcompiler.so.{VERSION} 0755 CUDA_LIB NATIVE / MODULE:gpgpucomp",
    f"libnvidia-ptxjitcompiler.so.1 0000 CUDA_SYMLINK NATIVE / libnvidia-ptxjitcompiler.so.{VERSION} MODULE:gpgpucomp",
)


def manifest(*, listed: Sequence[str] = LISTED, about: Sequence[str] = ABOUT) -> str:
    return "\n".join((*about, *listed)) + "\n"


def files_of(text: str) -> dict[str, bytes]:
    names = [line.split()[0] for line in text.split("\n")[8:] if line and " 0000 " not in line]
    return {name: f"bytes of {name}\n".encode() for name in names if ".." not in name and name[0] != "/"}


def tar(files: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"./{name}" if name[0] not in "/." else name)
            info.size, info.mode, info.mtime = len(content), 0o755, PACKAGED
            archive.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            archive.addfile(info)
    return buffer.getvalue()


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


def package(payload: bytes, *, decompressor: bytes = b"\x7fELF\n\n\0binary\n") -> bytes:
    """A shell header in NVIDIA's form, the decompressor that recent ones embed, and the payload."""
    body = ['label="NVIDIA driver"', "targetdir=NVIDIA-Linux", "# text", "skip_lines=7", "exit 0"]
    before = ["#! /bin/sh", "CRCsum=0000000000", "MD5=" + "0" * 32]
    lines = len(before) + 3 + len(body)
    skip = lines + decompressor.count(b"\n") + 1
    header = [*before, f"skip={skip}", f"skip_decompress={lines + 1}", "size_decompress=3", *body]
    return "\n".join(header).encode() + b"\n" + decompressor + payload


def driver(**changes: Any) -> bytes:
    text = manifest(**changes)
    return package(zstd(tar({**files_of(text), ".manifest": text.encode()})))


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Path]:
    """Builds the stage from the bytes of a package and returns the layer."""

    def run_stage(content: bytes, *, opencl: bool = False) -> Path:
        (tmp_path / "blob").write_bytes(content)
        upper, scratch = tmp_path / "upper", tmp_path / "scratch"
        upper.mkdir()
        scratch.mkdir()
        ran = []
        KIND.build(
            Context(
                recipe=recipe(),
                stage=stage(),
                inputs=Inputs({"Version": VERSION, "OpenCL": opencl}, (Blob("", 0, NAME, ()),)),
                upper=upper,
                scratch=scratch,
                blob=lambda blob: tmp_path / "blob",
                tool=lambda name: tmp_path / name,
                run=lambda argv, **options: ran.append(argv[0]),
                lower=lambda path: None,
                epoch=1,
            )
        )
        assert ran == ["ldconfig"]
        return upper

    return run_stage


def recipe(*stages: Stage) -> Recipe:
    distribution = Distribution("debian", "bookworm", "amd64", "http://mirror", "http://security", ("main",))
    return Recipe(Path("/r"), "r", "1", "", (), 1, 3, distribution, None, (), (), stages)


def stage(version: str = VERSION, *, opencl: bool = False) -> Stage:
    return Stage("driver", KIND.name, {"Version": version, "OpenCL": opencl}, None, "", 1, 1)


def tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_symlink() or path.is_file())


def test_takes_what_computing_needs_and_nothing_else(build: Callable[..., Path]) -> None:
    assert tree(build(driver())) == [
        "usr/bin/nvidia-modprobe",
        "usr/bin/nvidia-smi",
        f"{LIB}/libcuda.so",
        f"{LIB}/libcuda.so.1",
        f"{LIB}/libcuda.so.{VERSION}",
        f"{LIB}/libnvidia-ml.so",
        f"{LIB}/libnvidia-ml.so.1",
        f"{LIB}/libnvidia-ml.so.{VERSION}",
        f"{LIB}/libnvidia-nvvm70.so.4",
        f"{LIB}/libnvidia-ptxjitcompiler.so.1",
        f"{LIB}/libnvidia-ptxjitcompiler.so.{VERSION}",
        "usr/share/doc/nvidia-driver/LICENSE",
    ]


def test_files_come_unmodified_and_links_lead_to_them(build: Callable[..., Path]) -> None:
    layer = build(driver())
    library = layer / LIB / "libcuda.so"
    assert [str(library.readlink()), str((layer / LIB / "libcuda.so.1").readlink())] == [
        "libcuda.so.1",
        f"libcuda.so.{VERSION}",
    ]
    assert library.read_bytes() == f"bytes of libcuda.so.{VERSION}\n".encode()
    assert library.stat().st_mtime == PACKAGED


def test_the_licence_is_the_drivers_and_not_that_of_a_folder_in_the_package(build: Callable[..., Path]) -> None:
    assert (build(driver()) / "usr/share/doc/nvidia-driver/LICENSE").read_text() == "bytes of LICENSE\n"


def test_modes_are_the_manifests_but_never_setuid(build: Callable[..., Path]) -> None:
    layer = build(driver())
    modes = {name: stat.S_IMODE((layer / name).stat().st_mode) for name in tree(layer) if "so" not in name}
    assert modes == {
        "usr/bin/nvidia-modprobe": 0o755,
        "usr/bin/nvidia-smi": 0o755,
        "usr/share/doc/nvidia-driver/LICENSE": 0o444,
    }


def test_opencl_comes_when_asked_for(build: Callable[..., Path]) -> None:
    layer = build(driver(), opencl=True)
    assert (layer / "etc/OpenCL/vendors/nvidia.icd").is_file()
    assert (layer / LIB / "libnvidia-opencl.so.1").exists()


@pytest.mark.parametrize("compress", [bytes, zstd, lzma.compress], ids=["plain", "zstd", "xz"])
@pytest.mark.parametrize("decompressor", [b"", b"\n" * 5, b"\0\n" * (3 << 20)], ids=["none", "lines", "6 MiB"])
def test_finds_the_tar_behind_any_header(
    build: Callable[..., Path], compress: Callable[[bytes], bytes], decompressor: bytes
) -> None:
    text = manifest()
    payload = compress(tar({**files_of(text), ".manifest": text.encode()}))
    assert (build(package(payload, decompressor=decompressor)) / "usr/bin/nvidia-smi").is_file()


def test_nothing_of_the_package_is_left_beside_the_layer(build: Callable[..., Path], tmp_path: Path) -> None:
    build(driver())
    assert not list(tmp_path.rglob(NAME))


GOOD = {**files_of(manifest()), ".manifest": manifest().encode()}
HOSTILE = [
    (package(zstd(tar({**GOOD, "../../etc/cron.d/x": b"x"}))), "leaves the folder"),
    (package(zstd(tar({**GOOD, "/etc/cron.d/x": b"x"}))), "absolute"),
    (package(zstd(tar(GOOD, {"d": "../../../../etc"}))), "link leaves"),
    (package(zstd(tar(GOOD, {"d": "/etc/passwd"}))), "outside"),
    (driver()[:-20], "not a sound archive|ends early"),
    (package(b"no tar at all"), "not a sound archive"),
    (package(zstd(tar({"x": b""}))), r"\.manifest: is not there"),
    (package(zstd(tar({"x": b""}, {".manifest": "x"}))), r"\.manifest: is not there"),
    (driver(listed=(*LISTED, "../../bin/nvidia-smi 0755 UTILITY_BINARY MODULE:x")), "line 34: path .* leaves"),
    (driver(listed=(*LISTED, "/bin/nvidia-smi 0755 UTILITY_BINARY MODULE:x")), "line 34: path .* leaves"),
    (driver(listed=(*LISTED, "libcuda.so.9 0000 CUDA_SYMLINK NATIVE / ../../../etc/shadow")), "is not installed"),
    (driver(listed=(*LISTED, "libcuda.so.9 0000 CUDA_SYMLINK NATIVE / /etc/shadow MODULE:x")), "not installed"),
    (driver(listed=(*LISTED, "libcuda.so.9 0000 CUDA_SYMLINK NATIVE / gone.so MODULE:x")), "'gone.so', which is not"),
    (driver(listed=(*LISTED, "libcuda.so.9 0000 CUDA_SYMLINK")), "a link without a target"),
    (driver(listed=(*LISTED, "libcuda.so.9 rwx CUDA_LIB NATIVE /")), "line 34 is not NAME MODE TYPE"),
    (driver(listed=(*LISTED, "libcuda.so.9")), "line 34 is not NAME MODE TYPE"),
    (driver(listed=(*LISTED, "./libcuda.so 0000 CUDA_SYMLINK NATIVE / x.so")), "line 34: libcuda.so is listed twice"),
    (driver(listed=[line for line in LISTED if "nvidia-smi 0" not in line]), "lists no nvidia-smi"),
    (driver(listed=[line for line in LISTED if "LICENSE" not in line]), "lists no LICENSE"),
    (driver(about=(*ABOUT[:1], "570.1", *ABOUT[2:])), "is of driver '570.1', not 580.76.05"),
    (driver(about=ABOUT[:3], listed=()), "too few"),
    (package(zstd(tar({**{k: v for k, v in GOOD.items() if k != "nvidia-smi"}}))), "no plain file 'nvidia-smi'"),
    (
        package(zstd(tar({k: v for k, v in GOOD.items() if k != "nvidia-smi"}, {"nvidia-smi": "LICENSE"}))),
        "no plain file",
    ),
    (b"", "no NVIDIA driver package"),
    (b"#! /bin/sh\nexit 0\n", "no NVIDIA driver package"),
    (b"\x7fELF\nskip=2\n", "no NVIDIA driver package"),
    (b"#! /bin/sh\nskip=0\n", "no NVIDIA driver package"),
    (b"#! /bin/sh\nskip=100\n", "ends before line 100"),
]


@pytest.mark.parametrize(("content", "said"), HOSTILE)
def test_a_damaged_or_hostile_package_is_refused_by_name(
    build: Callable[..., Path], tmp_path: Path, content: bytes, said: str
) -> None:
    with pytest.raises(BuilderError, match=said) as caught:
        build(content)
    assert NAME in str(caught.value)
    assert not (tmp_path / "etc").exists()


@given(st.text(alphabet="libcuda.so/ .0755 CUDA_LIBSYMLINK\n\r\t\x00\x0b\u2028NATIVE", max_size=300))
def test_any_manifest_gives_items_inside_the_package_or_one_error(tmp_path_factory: Any, text: str) -> None:
    folder = tmp_path_factory.mktemp("m")
    (folder / ".manifest").write_text(manifest(listed=(text,)))
    try:
        items = runfile.manifest(folder, VERSION, name=NAME)
    except BuilderError:
        return
    for item in items:
        assert not item.path.startswith("/")
        assert ".." not in item.path.split("/")
        assert item.path not in ("", ".")


def test_a_known_version_asks_for_the_published_file() -> None:
    (request,) = KIND.requests(recipe(), stage())
    assert isinstance(request, UrlRequest)
    assert request.url == f"https://us.download.nvidia.com/XFree86/Linux-x86_64/{VERSION}/{NAME}"
    assert request.sha256 == "219be636b60931b021b2e8c1e0eff887363c731f8a940caa87bcc054d05d97fd"
    assert request.size == 393_683_997


@pytest.mark.parametrize(("version", "others"), [("580.76.06", False), ("580", False), ("", True), ("58", True)])
def test_an_unknown_version_is_told_with_the_known_ones_of_its_branch(version: str, others: bool) -> None:
    with pytest.raises(UsageError) as caught:
        KIND.requests(recipe(), stage(version))
    said = str(caught.value)
    assert f"stage driver: no published sha256 of driver '{version}' is known; known are " in said
    assert "580.65.06, 580.76.05, 580.82.07" in said
    assert ("570.86.16" in said) is others
    assert said.endswith("docs/nvidia.md says how to add one")


def locked(sha256: str = "219be636b60931b021b2e8c1e0eff887363c731f8a940caa87bcc054d05d97fd") -> Lock:
    return Lock("r", "", urls={f"nvidia-driver-{VERSION}": Blob(sha256, 1, NAME, ())})


def test_all_that_matters_is_an_input() -> None:
    given = KIND.inputs(recipe(), stage(opencl=True), locked())
    assert given.params == {"Version": VERSION, "OpenCL": True}
    assert [blob.filename for blob in given.blobs] == [NAME]


@pytest.mark.parametrize(
    ("lock", "said"),
    [(Lock("r", ""), "is not in the lock; run `builder lock`"), (locked("a" * 64), "has another sha256 in the lock")],
)
def test_a_lock_without_the_published_file_is_refused(lock: Lock, said: str) -> None:
    with pytest.raises(BuilderError, match=re.escape(said)):
        KIND.inputs(recipe(), stage(), lock)
