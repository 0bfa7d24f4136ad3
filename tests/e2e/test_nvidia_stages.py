"""NVIDIA's kinds of stage in the real sandbox over a tiny root: what the linker finds; equal bytes for everybody."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from standins import driver, library, tar

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120), pytest.mark.usefixtures("no_leftovers")]

VERSION = "580.76.05"
REAL = os.environ.get("DRIVER_PACKAGE", "")
"""A package as NVIDIA publishes it, NVIDIA-Linux-x86_64-VERSION.run, for who has one."""
LIB = "/usr/lib/x86_64-linux-gnu"

PROGRAM = """
import json, os, sys, time
from pathlib import Path
from builder import sandbox, tree
from builder.lock.model import Blob
from builder.recipe.model import Distribution, Recipe, Stage
from builder.sandbox import Bind, Spec
from builder.sandbox.userns import become_root
from builder.stage import KINDS
from builder.stage.kind import Context, Inputs
become_root()
given = json.loads(sys.argv[1])
os.umask(given["umask"])
here = Path(given["home"])
base, upper, work, scratch = (here / name for name in ("base", "upper", "work", "scratch"))
for folder in (upper, work, scratch):
    folder.mkdir(mode=0o755)
upper.chmod(0o755)

def run(argv, *, binds=(), layers=(base,), on=upper, log=None):
    sandbox.run(Spec(name="test", argv=tuple(argv), layers=layers, upper=on, work=work, binds=tuple(binds)), log=log)

stage = Stage("stage", given["kind"], {}, None, "", 0, 0)
recipe = Recipe(here, "r", "1", "", (), 1, 3, Distribution("debian", "bookworm", "amd64", "", "", ()), None, (), (), ())
blobs = tuple(Blob(name, 0, name, ()) for name in given["blobs"])
before = time.time_ns() - 10**9
KINDS[given["kind"]].build(
    Context(
        recipe, stage, Inputs(given["params"], blobs), upper, scratch, lambda blob: here / blob.filename,
        lambda name: here / name, run, lambda path: tree.resolve([base, upper], path), 1,
    )
)
tree.normalise(upper, 1760572800, [(before, time.time_ns() + 10**9)])
index = tree.scan(upper)
log = here / "log"
later = here / "later"
later.mkdir()
at_start = [Bind(here / "driver", target) for target in given["driver"]]
script = given["then"]
for argv in script:
    run(argv, binds=at_start, layers=(base, upper), on=later, log=log)
print(json.dumps({
    "digest": index.digest,
    "files": {each.path: f"{each.type} {each.mode:o} {each.uid}:{each.gid} {each.mtime}" for each in index.entries},
    "sha256": {each.path: each.sha256 for each in index.entries if each.type == "file"},
    "said": log.read_text() if script else "",
}))
"""


CUDART = {
    "LICENSE": b"terms",
    "include/cuda_runtime.h": b"h",
    "lib/libcudart.so.12.8.90": library("libcudart.so.12"),
    "lib/libcudart.so.12": "libcudart.so.12.8.90",
    "lib/libcudart.so": "libcudart.so.12",
}
NVCC = {"LICENSE": b"terms", "bin/nvcc": b"#!nvcc", "nvvm/lib64/libnvvm.so.4": library("libnvvm.so.4")}


def world(user: Any) -> Path:
    """A new folder of the user with a root in it that holds ldconfig and nothing else."""
    home = Path(tempfile.mkdtemp(prefix="nvidia-", dir=user.home))
    folders = (
        "usr/sbin",
        "usr/lib/x86_64-linux-gnu",
        "usr/local",
        "etc/ld.so.conf.d",
        "proc",
        "sys",
        "dev",
        "run",
        "tmp",
    )
    for folder in folders:
        (home / "base" / folder).mkdir(parents=True)
    shutil.copy("/sbin/ldconfig", home / "base/usr/sbin/ldconfig")
    for name in ("sbin", "lib"):
        (home / "base" / name).symlink_to(f"usr/{name}")
    (home / "base/etc/ld.so.conf").write_text("include /etc/ld.so.conf.d/*.conf\n")
    (home / "base/etc/ld.so.conf.d/x86_64-linux-gnu.conf").write_text(f"{LIB}\n")
    (home / "driver").mkdir()
    return home


def build(user: Any, kind: str, params: Mapping[str, Any], blobs: Mapping[str, bytes], **more: Any) -> Any:
    """Build one stage as `user` and run commands over it as a container would; what came of both."""
    home = world(user)
    for name, content in blobs.items():
        (home / name).write_bytes(content)
    for name, member in more.pop("host", {}).items():
        if isinstance(member, str):
            (home / "driver" / name).symlink_to(member)
        else:
            (home / "driver" / name).write_bytes(member)
    subprocess.run(["chown", "-R", f"{user.uid}:{user.gid}", home], check=True)
    given = {"home": str(home), "kind": kind, "params": params, "blobs": list(blobs), "umask": 0o77}
    given |= {"driver": [], "then": [["ldconfig", "-p"]], **more}
    done = user.run([user.python, "-c", PROGRAM, json.dumps(given)])
    shutil.rmtree(home)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def listed(said: str) -> dict[str, str]:
    """What `ldconfig -p` says: library to file."""
    return dict(re.findall(r"^\t(\S+) \(.*\) => (\S+)$", said, re.MULTILINE))


def build_driver(user: Any, **more: Any) -> Any:
    params = {"Version": VERSION, "OpenCL": False}
    return build(user, "nvidia-runfile", params, {f"NVIDIA-Linux-x86_64-{VERSION}.run": driver(VERSION)}, **more)


def build_toolkit(user: Any, **more: Any) -> Any:
    archives = {"cuda_cudart": tar("cudart", CUDART, "xz"), "cuda_nvcc": tar("nvcc", NVCC, "xz")}
    params = {
        "Release": "12.8.1",
        "Target": "/usr/local/cuda-12.8",
        "components": {name: [name, "12.8.90"] for name in archives},
    }
    return build(user, "nvidia-redist", params, archives, **more)


def test_the_linker_finds_the_driver_of_a_runfile(user: Any) -> None:
    built = build_driver(user)
    assert listed(built["said"]) == {
        f"{name}{end}": f"{LIB}/{name}{end}"
        for name in ("libcuda", "libnvidia-ml", "libnvidia-ptxjitcompiler")
        for end in (".so", ".so.1")
    }


def test_the_linker_finds_a_toolkit(user: Any) -> None:
    lib64 = "/usr/local/cuda-12.8/lib64"
    found = listed(build_toolkit(user)["said"])
    assert found == {name: f"{lib64}/{name}" for name in ("libcudart.so", "libcudart.so.12")}


def test_a_hosts_driver_is_found_once_the_container_has_started(user: Any) -> None:
    mount = "/usr/lib/nvidia-host"
    file = f"libcuda.so.{VERSION}"
    host = {file: library("libcuda.so.1"), "libcuda.so.1": file, "libcuda.so": "libcuda.so.1"}
    then = [["/sbin/ldconfig", "-X"], ["ldconfig", "-p"]]
    found = listed(build(user, "nvidia-host", {}, {}, host=host, driver=[mount], then=then)["said"])
    assert found == {name: f"{mount}/{name}" for name in ("libcuda.so", "libcuda.so.1")}


@pytest.mark.parametrize("of", [build_driver, build_toolkit], ids=["nvidia-runfile", "nvidia-redist"])
def test_root_and_an_ordinary_user_make_the_same_layer_at_any_time_and_umask(
    root_user: Any, ordinary_user: Any, of: Any
) -> None:
    first = of(root_user, then=[])
    time.sleep(1.1)
    second = of(ordinary_user, then=[], umask=0o2)
    assert first["files"] == second["files"]
    assert first["digest"] == second["digest"]


def test_the_layer_keeps_nothing_of_the_machine(user: Any) -> None:
    files = build_driver(user)["files"]
    assert "var/cache/ldconfig/aux-cache" not in files
    assert files["etc/ld.so.cache"] == "file 644 0:0 1760572800"
    assert files[f"usr/lib/x86_64-linux-gnu/libcuda.so.{VERSION}"] == "file 755 0:0 1750000000"


@pytest.mark.full
@pytest.mark.skipif(not REAL, reason="DRIVER_PACKAGE names no NVIDIA-Linux-x86_64-VERSION.run")
def test_a_real_package_gives_the_very_files_that_its_own_script_unpacks(user: Any, tmp_path: Path) -> None:
    package = Path(REAL).resolve()
    version = package.stem.removeprefix("NVIDIA-Linux-x86_64-")
    own = tmp_path / "own"
    unpack = ["unshare", "--net", "sh", str(package), "--extract-only", "--target", str(own)]
    subprocess.run(unpack, check=True, capture_output=True)
    params = {"Version": version, "OpenCL": True}
    built = build(user, "nvidia-runfile", params, {package.name: package.read_bytes()})
    found = listed(built["said"])
    for name in ("libcuda.so", "libcuda.so.1", "libnvidia-ml.so.1", "libnvidia-nvvm.so.4"):
        assert found[name] == f"{LIB}/{name}"
    placed = {path: sha256 for path, sha256 in built["sha256"].items() if path != "etc/ld.so.cache"}
    assert {f"{LIB[1:]}/libcuda.so.{version}", "usr/bin/nvidia-smi", "etc/OpenCL/vendors/nvidia.icd"} <= placed.keys()
    assert placed == {path: hashlib.sha256((own / Path(path).name).read_bytes()).hexdigest() for path in placed}
