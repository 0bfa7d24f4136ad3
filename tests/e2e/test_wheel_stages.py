"""What `wheels` and `cuda-wheels` leave in the template; wheels are made here, or NVIDIA's from PyPI."""

from __future__ import annotations

import base64
import hashlib
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from builder.errors import BuilderError, UsageError
from builder.lock.model import Lock, Wheel
from builder.recipe.model import Venv
from builder.store import Layer
from builder.tree import Entry, Index

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300), pytest.mark.usefixtures("no_leftovers")]

CUDA = "/usr/local/cuda-12.8"


def make_wheel(folder: Path, name: str, version: str, files: Mapping[str, bytes], scripts: str = "") -> Path:
    """A pure wheel of `files`, as the specification of binary distributions has it."""
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    members = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if scripts:
        members[f"{info}/entry_points.txt"] = f"[console_scripts]\n{scripts}\n".encode()
    record = [
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip('=')},{len(data)}"
        for path, data in members.items()
    ]
    members[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in members.items():
            about = zipfile.ZipInfo(member)
            about.external_attr = (0o100744 if "/bin/" in member else 0o100644) << 16
            archive.writestr(about, data)
    return path


def venv(name: str, path: str = "/opt/env") -> Venv:
    return Venv(name, path, "/usr/bin/python3.11", (), (), (), "2025-10-16T00:00:00Z", "https://pypi.org/simple")


def lock(bench: Any, **sets: list[Path]) -> None:
    """Lock these wheels as the venvs of these names; each venv lies in /opt/NAME."""
    bench.venvs = tuple(venv(name, f"/opt/{name}") for name in sets)
    wheels = {
        name: tuple(
            Wheel(path.name.split("-")[0].replace("_", "-"), path.name.split("-")[1], bench.blob(path), "")
            for path in paths
        )
        for name, paths in sets.items()
    }
    bench.lock = Lock("bench", "", venvs=wheels)


def small_set(folder: Path) -> list[Path]:
    many = {f"alpha/m{number}.py": f"NAMES = {{'a', 'b', 'c{number}'}}\n".encode() for number in range(40)}
    return [
        make_wheel(folder, "alpha", "1.0", {"alpha/__init__.py": b"import beta\nVALUE = beta.VALUE + 1\n", **many}),
        make_wheel(
            folder,
            "beta",
            "2.0",
            {"beta/__init__.py": b"VALUE = 41\ndef main():\n    print(VALUE)\n", "beta/python2.py": b"print 'old'\n"},
            scripts="beta = beta:main",
        ),
    ]


def test_stages_share_one_venv_each_with_its_part_of_the_lock(bench: Any, tmp_path: Path) -> None:
    lock(bench, env=small_set(tmp_path))
    first, second = bench.build(
        ("wheels", {"Venv": "env", "Except": ["alpha"]}), ("wheels", {"Venv": "env", "Only": ["al*"]})
    )
    code = "import alpha, alpha.m3; print(alpha.VALUE, alpha.m3.__cached__, alpha.__file__)"
    assert bench.run((first, second), "/opt/env/bin/python", "-c", code).split() == [
        "42",
        "/opt/env/lib/python3.11/site-packages/alpha/__pycache__/m3.cpython-311.pyc",
        "/opt/env/lib/python3.11/site-packages/alpha/__init__.py",
    ]
    assert bench.run((first,), "/opt/env/bin/beta") == "41\n"
    alone = {entry.path for entry in second.layer.index.entries} - {entry.path for entry in first.layer.index.entries}
    assert all("/alpha" in path or "/alpha-1.0.dist-info" in path for path in alone)
    assert not any("beta" in entry.path for entry in second.layer.index.entries), "they do not see one another"


def test_bytecode_is_checked_by_hash_and_nothing_else_stays(bench: Any, tmp_path: Path) -> None:
    lock(bench, env=small_set(tmp_path))
    (built,) = bench.build(("wheels", {"Venv": "env"}))
    entries = {entry.path: entry for entry in built.layer.index.entries}
    site = "opt/env/lib/python3.11/site-packages"
    compiled = (built.layer.tree / site / "beta/__pycache__/__init__.cpython-311.pyc").read_bytes()
    assert int.from_bytes(compiled[4:8], "little") == 0b11, "PEP 552: by hash, and checked"
    assert str(bench.store.root).encode() not in compiled
    assert f"{site}/beta/__pycache__/python2.cpython-311.pyc" not in entries
    top = {path for path in entries if path.count("/") <= 2}
    assert top == {
        "",
        "opt",
        "opt/env",
        *(f"opt/env/{name}" for name in ("bin", "include", "lib", "lib64", "pyvenv.cfg")),
    }
    assert not [
        path for path in entries if path.endswith(("INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json"))
    ]
    assert all(entry.type != "hardlink" for entry in entries.values())


def test_another_store_and_one_cpu_give_the_same_bytes(new_bench: Callable[[str], Any], tmp_path: Path) -> None:
    wheels = small_set(tmp_path)

    def members(name: str, cpus: set[int]) -> Index:
        bench = new_bench(name)
        lock(bench, env=wheels)
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cpus)
        try:
            (built,) = bench.build(("wheels", {"Venv": "env"}))
        finally:
            os.sched_setaffinity(0, before)
        index: Index = built.layer.index
        return index

    every = os.sched_getaffinity(0)
    one, other = members("store", every), members("another-store-with-a-longer-name", {min(every)})
    assert one.entries == other.entries
    assert one.digest == other.digest


def one_stage(bench: Any, *wheels: Path) -> Layer:
    """The layer of all `wheels` in one stage."""
    lock(bench, env=list(wheels))
    (built,) = bench.build(("wheels", {"Venv": "env"}))
    layer: Layer = built.layer
    return layer


def bytecode(layer: Layer, module: str) -> Entry:
    path = f"opt/env/lib/python3.11/site-packages/{module.replace('.', '/__pycache__/')}.cpython-311.pyc"
    return next(entry for entry in layer.index.entries if entry.path == path)


def damage(layer: Layer, module: str) -> str:
    """Change the last byte of bytecode on the disk: the sha256 of what is there now."""
    place = layer.tree / bytecode(layer, module).path
    place.write_bytes(place.read_bytes()[:-1] + b"!")
    return hashlib.sha256(place.read_bytes()).hexdigest()


def test_bytecode_of_modules_that_stay_is_taken_from_the_layer_before(bench: Any, tmp_path: Path) -> None:
    alpha, beta = small_set(tmp_path)
    layer = one_stage(bench, alpha, beta)
    mark = damage(layer, "alpha.m3")  # and let its index say that it was so when it was made
    entry = bytecode(layer, "alpha.m3")
    marked = Index.of(
        (each._replace(sha256=mark) if each is entry else each for each in layer.index.entries), layer.index.stats
    )
    marked.save(layer.tree.parent / "index")
    meta = layer.tree.parent / "meta.json"
    meta.write_text(meta.read_text().replace(layer.digest, marked.digest))
    newer = one_stage(bench, alpha, make_wheel(tmp_path, "beta", "3.0", {"beta/__init__.py": b"VALUE = 42\n"}))
    assert bytecode(newer, "alpha.m3").sha256 == mark
    assert bytecode(newer, "beta.__init__").sha256 != bytecode(layer, "beta.__init__").sha256
    other = make_wheel(tmp_path, "alpha", "2.0", {"alpha/m3.py": b"NAMES = 1\n"})
    assert bytecode(one_stage(bench, other, beta), "alpha.m3").sha256 != mark, "its source is another"


def own_bytecode(folder: Path, version: str, code: bytes | None) -> Path:
    """A wheel of a module and one that is no Python, which brings `code` as bytecode of both."""
    brought = {f"own/__pycache__/{name}.cpython-311.pyc": code for name in ("m", "bad")} if code else {}
    return make_wheel(folder, "own", version, {"own/m.py": b"A = 1\n", "own/bad.py": b"print 'x'\n", **brought})


def hook(folder: Path, version: str, codec: str) -> Path:
    """A wheel that has every interpreter of the venv read sources in the encoding "house" with `codec`."""
    code = f"import codecs\ncodecs.register(lambda name: codecs.lookup('{codec}') if name == 'house' else None)\n"
    return make_wheel(folder, "hook", version, {"hook.pth": b"import hook\n", "hook.py": code.encode()})


def test_a_layer_comes_out_alike_with_and_without_one_before(new_bench: Callable[[str], Any], tmp_path: Path) -> None:
    alpha, beta = small_set(tmp_path)
    uses = make_wheel(tmp_path, "uses", "1", {"uses/m.py": b"# coding: house\nA = '\xe9'\n"})
    newer = make_wheel(tmp_path, "beta", "3.0", {"beta/__init__.py": b"VALUE = 42\n"})
    hooks = [hook(tmp_path, "1", "latin-1"), hook(tmp_path, "2", "cp1251")]
    own = [own_bytecode(tmp_path, version, code) for version, code in (("1", b"1"), ("2", b"2"), ("3", None))]
    bench, made = new_bench("store"), []
    for number, wheels in enumerate(
        [
            (alpha, beta, uses, hooks[0], own[0]),
            (alpha, newer, uses, hooks[0], own[0]),
            (alpha, newer, uses, hooks[0], own[1]),
            (alpha, newer, uses, hooks[0], own[2]),
            (alpha, newer, uses, hooks[0], own[1]),
            (alpha, newer, uses, hooks[1], own[2]),
            (alpha, newer, uses, own[2]),
        ]
    ):
        if number == 1:
            damage(made[-1], "alpha.m3")
        layer = one_stage(bench, *wheels)
        assert layer.index.entries == one_stage(new_bench(f"fresh-{number}"), *wheels).index.entries, number
        made.append(layer)
    assert bytecode(made[3], "uses.m").sha256 != bytecode(made[5], "uses.m").sha256, "the codec shows in it"


def test_two_wheels_with_one_file_of_different_bytes_are_refused(bench: Any, tmp_path: Path) -> None:
    one = make_wheel(tmp_path, "one", "1", {"shared/__init__.py": b"", "shared/data.py": b"A = 1\n"})
    two = make_wheel(tmp_path, "two", "1", {"shared/__init__.py": b"", "shared/data.py": b"A = 2\n"})
    lock(bench, env=[one, two])
    with pytest.raises(BuilderError, match=r"shared/data.py comes with one and, with other bytes, with two"):
        bench.build(("wheels", {"Venv": "env"}))


def test_two_stages_with_one_file_of_different_bytes_are_refused(bench: Any, tmp_path: Path) -> None:
    one = make_wheel(tmp_path, "one", "1", {"shared/__init__.py": b"", "shared/data.py": b"A = 1\n"})
    two = make_wheel(tmp_path, "two", "1", {"shared/__init__.py": b"", "shared/data.py": b"A = 2\n"})
    lock(bench, env=[one, two])
    with pytest.raises(
        BuilderError, match=r"/site-packages/shared/data.py comes with stage wheels-0 too, and is not the same"
    ):
        bench.build(("wheels", {"Venv": "env", "Only": ["one"]}), ("wheels", {"Venv": "env", "Only": ["two"]}))


def test_a_file_that_is_not_the_locked_one_is_refused(bench: Any, tmp_path: Path) -> None:
    lock(bench, env=[make_wheel(tmp_path, "gamma", "1.0", {"gamma.py": b""})])
    wheel = bench.lock.venvs["env"][0]
    bench.lock = Lock("bench", "", venvs={"env": (Wheel("gamma", "1.1", wheel.blob, ""),)})
    with pytest.raises(BuilderError, match="gamma"):
        bench.build(("wheels", {"Venv": "env"}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"Only": ["gama"]}, 'no wheel of [[Venv]] env is called "gama"'),
        ({"Only": ["gamma"], "Except": ["g*"]}, "takes no wheel of [[Venv]] env"),
        ({"Only": ["delta"]}, "delta 3 has no wheel, only delta-3.tar.gz, and is not built here; leave it out"),
    ],
)
def test_wrong_selections_are_refused_before_anything_runs(
    bench: Any, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    (tmp_path / "delta-3.tar.gz").write_bytes(b"sdist")
    lock(bench, env=[make_wheel(tmp_path, "gamma", "1.0", {"gamma.py": b""})])
    sdist = Wheel("delta", "3", bench.blob(tmp_path / "delta-3.tar.gz"), "")
    bench.lock = Lock("bench", "", venvs={"env": (*bench.lock.venvs["env"], sdist)})
    with pytest.raises((BuilderError, UsageError)) as failure:
        bench.build(("wheels", {"Venv": "env", **settings}))
    assert message in str(failure.value)


def cuda_set(folder: Path, *, header: bytes = b"#define R 1\n") -> tuple[list[Path], list[Path]]:
    runtime = {
        "nvidia/__init__.py": b"",
        "nvidia/cuda_runtime/__init__.py": b"",
        "nvidia/cuda_runtime/include/__init__.py": b"",
        "nvidia/cuda_runtime/include/cuda_runtime.h": b'#include "crt/host_defines.h"\n',
        "nvidia/cuda_runtime/include/shared.h": b"#define R 1\n",
        "nvidia/cuda_runtime/lib/__init__.py": b"",
        "nvidia/cuda_runtime/lib/libz.so.1": Path("/lib/x86_64-linux-gnu/libz.so.1").read_bytes(),
    }
    compiler = {
        "nvidia/cuda_nvcc/bin/ptxas": b"#!/bin/sh\necho ptxas\n",
        "nvidia/cuda_nvcc/include/crt/host_defines.h": b"#define HOST 1\n",
        "nvidia/cuda_nvcc/include/shared.h": header,
        "nvidia/cuda_nvcc/nvvm/libdevice/libdevice.10.bc": b"BC",
        "nvidia_cuda_nvcc_cu12-12.8.93.dist-info/License.txt": b"terms\n",
    }
    return (
        [
            make_wheel(folder, "nvidia-cuda-runtime-cu12", "12.8.90", runtime),
            make_wheel(folder, "other", "1", {"other.py": b""}),
        ],
        [make_wheel(folder, "nvidia-cuda-nvcc-cu12", "12.8.93", compiler)],
    )


def test_a_toolkit_of_links_and_files(bench: Any, tmp_path: Path) -> None:
    held, extra = cuda_set(tmp_path)
    lock(bench, env=held, cuda=extra)
    settings = {"Venv": "env", "Extra": "cuda", "Target": CUDA}
    built = bench.build(("cuda-wheels", settings), ("wheels", {"Venv": "env", "Except": ["nvidia-*"]}))

    def inside(command: str) -> list[str]:
        return bench.run(built, "sh", "-c", command).splitlines()

    site = "/opt/env/lib/python3.11/site-packages/nvidia/cuda_runtime"
    link = f"../../../../../..{site}"
    assert inside(f"cd {CUDA}; readlink include lib64 include/cuda_runtime.h lib64/libz.so.1 lib64/libz.so") == [
        "targets/x86_64-linux/include",
        "targets/x86_64-linux/lib",
        f"{link}/include/cuda_runtime.h",
        f"{link}/lib/libz.so.1",
        "libz.so.1",
    ]
    source = "#include <cuda_runtime.h>\\n#include <shared.h>\\nint x = HOST + R;"
    assert inside(f"printf '{source}' | gcc -I/usr/local/cuda/include -c -o /tmp/x.o -x c - && echo ok") == ["ok"]
    assert inside("ldconfig -p | grep cuda.*so.1 | sed 's/.*=> //'") == [f"{CUDA}/lib64/libz.so.1"]
    profile = ". /etc/profile; . /etc/profile; echo $CUDA_HOME; echo $PATH | tr : '\\n' | grep -c cuda; command -v ls"
    assert inside(profile) == [CUDA, "1", "/usr/bin/ls"]
    assert inside("ls /opt; find /usr/local/cuda/ -name '__init__*'; cat /usr/local/cuda/share/doc/*/*") == [
        "env",
        "terms",
    ]
    assert '"version": "12.8.90"' in "".join(inside("cat /usr/local/cuda/version.json"))
    assert inside("/opt/env/bin/python -c 'import other' && ls /var/cache/ldconfig") == []
    assert inside("stat -L -c %a /usr/local/cuda/bin/ptxas /usr/local/cuda/include/cuda_runtime.h") == ["755", "644"]


def test_two_wheels_with_different_headers_are_refused(bench: Any, tmp_path: Path) -> None:
    held, extra = cuda_set(tmp_path, header=b"#define R 2\n")
    lock(bench, env=held[:1], cuda=extra)
    with pytest.raises(BuilderError, match=r"include/shared.h differs between cuda_runtime and cuda_nvcc"):
        bench.build(("cuda-wheels", {"Venv": "env", "Extra": "cuda", "Target": CUDA}))


def test_a_target_that_lies_about_its_release_is_refused(bench: Any, tmp_path: Path) -> None:
    held, _ = cuda_set(tmp_path)
    lock(bench, env=held)
    with pytest.raises(UsageError, match=r"Target is /usr/local/cuda-12.9, and nvidia-cuda-runtime-cu12 is 12.8.90"):
        bench.build(("cuda-wheels", {"Venv": "env", "Target": "/usr/local/cuda-12.9"}))
