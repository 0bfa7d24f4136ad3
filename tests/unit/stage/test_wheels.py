"""Which wheels a stage takes, what its key holds, and the check that runs in the template."""

from __future__ import annotations

import hashlib
import sys
from importlib.metadata import PathDistribution
from pathlib import Path
from typing import Any

import pytest

from builder.errors import BuilderError, UsageError
from builder.lock.model import Blob, Lock, Wheel
from builder.recipe.model import Distribution, Recipe, Stage, Venv
from builder.recipe.tables import default
from builder.stage import KINDS, installed, taken
from builder.stage.kind import Inputs


def wheel(name: str, version: str = "1.0", suffix: str = "-py3-none-any.whl") -> Wheel:
    blob = Blob(sha256=f"{name}-{version}", size=1, filename=f"{name.replace('-', '_')}-{version}{suffix}", urls=())
    return Wheel(name, version, blob, "")


WHEELS = (wheel("nvidia-nccl-cu12"), wheel("nvidia-cuda-runtime-cu12", "12.8.90"), wheel("vllm"), wheel("torch"))


def inputs(kind: str, params: dict[str, Any], *, path: str = "/opt/vllm", wheels: tuple[Wheel, ...] = WHEELS) -> Inputs:
    venvs = tuple(
        Venv(name, where, "/usr/bin/python3.11", (), (), (), "2025-10-16T00:00:00Z", "https://pypi.org/simple")
        for name, where in (("vllm", path), ("cuda", ""))
    )
    stage = Stage("s", kind, {key.name: default(key) for key in KINDS[kind].keys} | params, None, "", 1, 1)
    distribution = Distribution("debian", "bookworm", "amd64", "", "", ())
    recipe = Recipe(Path("/r"), "r", "1", "", (), 1, 3, distribution, None, venvs, (), (stage,))
    lock = Lock("r", "", venvs={"vllm": wheels, "cuda": (wheel("nvidia-cuda-nvcc-cu12", "12.8.93"),)})
    return KINDS[kind].inputs(recipe, stage, lock)


@pytest.mark.parametrize(
    ("only", "excluded", "names"),
    [
        ([], [], ["nvidia-cuda-runtime-cu12", "nvidia-nccl-cu12", "torch", "vllm"]),
        (["vllm"], [], ["vllm"]),
        ([], ["vllm", "nvidia-*"], ["torch"]),
        (["nvidia-*"], ["*nccl*"], ["nvidia-cuda-runtime-cu12"]),
    ],
)
def test_patterns_choose_from_the_lock(only: list[str], excluded: list[str], names: list[str]) -> None:
    found = inputs("wheels", {"Venv": "vllm", "Only": only, "Except": excluded})
    assert [name for name, _ in found.params["wheels"]] == names
    tool, *blobs = found.blobs
    assert tool.filename.startswith("uv-")
    assert [blob.filename.split("-")[0].replace("_", "-") for blob in blobs] == names


def test_a_pattern_that_matches_nothing_is_a_mistake() -> None:
    with pytest.raises(UsageError) as failure:
        inputs("wheels", {"Venv": "vllm", "Except": ["Torch"]})
    assert str(failure.value) == 'stage s: no wheel of [[Venv]] vllm is called "Torch"; did you mean "torch"?'


def test_a_source_distribution_is_refused_with_the_way_out() -> None:
    sdist = wheel("flashinfer-python", "0.3.0", ".tar.gz")
    with pytest.raises(BuilderError, match=r"flashinfer-python 0.3.0 has no wheel, only .*in a `source` stage"):
        inputs("wheels", {"Venv": "vllm"}, wheels=(*WHEELS, sdist))
    found = inputs("wheels", {"Venv": "vllm", "Except": ["flashinfer-*"]}, wheels=(*WHEELS, sdist))
    assert len(found.params["wheels"]) == 4


def test_a_venv_that_has_no_place_or_is_not_locked_is_refused() -> None:
    with pytest.raises(UsageError, match=r"\[\[Venv\]\] vllm has no Path"):
        inputs("wheels", {"Venv": "vllm"}, path="")
    with pytest.raises(UsageError, match=r"\[\[Venv\]\] cuda has no Path"):
        inputs("wheels", {"Venv": "cuda"})


def test_a_toolkit_depends_on_both_sets() -> None:
    found = inputs("cuda-wheels", {"Venv": "vllm", "Extra": "cuda"})
    assert found.params["release"] == "12.8.90"
    assert found.params["extra"] == [["nvidia-cuda-nvcc-cu12", "12.8.93"]]
    assert [blob.filename.split("-")[0] for blob in found.blobs] == [
        "uv",
        "nvidia_cuda_runtime_cu12",
        "nvidia_nccl_cu12",
        "nvidia_cuda_nvcc_cu12",
    ]


def test_a_toolkit_without_runtime_has_no_release() -> None:
    with pytest.raises(UsageError, match="takes no nvidia-cuda-runtime wheel"):
        inputs("cuda-wheels", {"Venv": "vllm", "Only": ["nvidia-nccl-*"]})


def distribution(folder: Path, name: str, files: dict[str, str]) -> PathDistribution:
    info = folder / f"{name}-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (info / "RECORD").write_text("".join(f"{path},{value},1\n" for path, value in files.items()))
    return PathDistribution(info)


def test_the_same_file_twice_is_fine_only_with_the_same_bytes(tmp_path: Path) -> None:
    one = distribution(tmp_path, "one", {"p/__init__.py": "sha256=a", "p/x.py": "sha256=b", "one-1/RECORD": ""})
    two = distribution(tmp_path, "two", {"p/__init__.py": "sha256=a"})
    three = distribution(tmp_path, "three", {"p/x.py": "sha256=c"})
    assert installed.conflict([one, two]) is None
    assert installed.conflict([three, two, one]) == "p/x.py comes with one and, with other bytes, with three"


def test_what_is_missing_or_of_another_version_is_named(tmp_path: Path) -> None:
    found: dict[str, Any] = {"one": distribution(tmp_path, "one", {})}
    assert installed.difference([("one", "1")], found) is None
    assert installed.difference([("one", "2")], found) == "one: 2 is locked and 1 is installed"
    assert installed.difference([("two", "2")], found) == "two: 2 is locked and nothing is installed"


def test_only_modules_are_compiled_and_bad_ones_are_passed_over(tmp_path: Path) -> None:
    files = {"m.py": "sha256=a", "bad.py": "sha256=b", "../../bin/s.py": "sha256=c", "data.txt": "sha256=d"}
    (tmp_path / "m.py").write_text("X = 1\n")
    (tmp_path / "bad.py").write_text("print 'x'\n")
    paths = installed.sources([distribution(tmp_path, "one", files)])
    assert paths == [str(tmp_path / "bad.py"), str(tmp_path / "m.py")]
    installed.compile_all(paths)
    assert [path.name for path in (tmp_path / "__pycache__").iterdir()] == [f"m.{sys.implementation.cache_tag}.pyc"]


CACHED = f"__pycache__/m.{sys.implementation.cache_tag}.pyc"


def take(folder: Path, code: bytes = b"code") -> str | None:
    """Take the bytecode `code` of the module m from the tree `earlier`, in which that was b"code"."""
    (folder / "m.py").write_text("X = 1\n")
    place = folder / f"earlier{folder}" / CACHED
    place.parent.mkdir(parents=True)
    place.write_bytes(code)
    source, cached = str(folder / "m.py"), str(folder / CACHED)
    hashes = hashlib.sha256(b"X = 1\n").hexdigest(), hashlib.sha256(b"code").hexdigest()
    return taken.take(str(folder / "earlier"), (source, hashes[0], cached, hashes[1]))


def test_bytecode_is_taken_where_it_is_what_it_was(tmp_path: Path) -> None:
    assert take(tmp_path) == str(tmp_path / "m.py")
    assert (tmp_path / CACHED).read_bytes() == b"code"


def test_damaged_bytecode_is_not_taken(tmp_path: Path) -> None:
    assert take(tmp_path, b"c0de") is None
    assert not (tmp_path / CACHED).exists()


def test_only_what_is_compiled_then_and_now_is_taken() -> None:
    tag = sys.implementation.cache_tag
    cached = {name: f"/s/__pycache__/{name}.{tag}.pyc" for name in ("same", "new", "gone", "brought")}
    known = {f"/s/{name}.py": name for name in cached} | {path: f"{name} code" for name, path in cached.items()}
    known["/s/__pycache__/same.cpython-27.pyc"] = "another interpreter's"
    then, now = {"/s/same.py", "/s/gone.py", "/s/brought.py", cached["brought"]}, {"/s/same.py", "/s/new.py"}
    wanted = [("/s/same.py", "same", cached["same"], "same code")]
    assert list(taken.candidates(now | {"/s/brought.py"}, then, known)) == wanted
    assert list(taken.candidates(now | {"/s/brought.py", cached["brought"]}, then, known)) == wanted


def test_an_interpreter_that_loads_other_code_when_it_starts_takes_nothing(tmp_path: Path) -> None:
    site, module = str(tmp_path), tmp_path / "hook.py"
    module.write_text("A = 1\n")
    known = {f"{site}/hook.py": taken.sha256_of(str(module)), f"{site}/inner/x.pth": "read by nobody"}
    assert taken.starts_alike(site, [], known)
    assert taken.starts_alike(site, [str(module)], known)
    (tmp_path / "hook.pth").write_text("import hook\n")
    assert not taken.starts_alike(site, [str(module)], known), "a new one"
    known[f"{site}/hook.pth"] = taken.sha256_of(f"{site}/hook.pth")
    assert taken.starts_alike(site, [str(module)], known)
    module.write_text("A = 2\n")
    assert not taken.starts_alike(site, [str(module)], known), "another module"
    assert taken.starts_alike(site, [], known)
    (tmp_path / "hook.pth").unlink()
    assert not taken.starts_alike(site, [], known), "one is gone"
