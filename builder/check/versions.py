"""Whether the parts of a template fit each other, and the driver that they need."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from packaging.utils import canonicalize_name

from builder.check.look import Look, View
from builder.check.model import Finding, Severity
from builder.check.packages import Package, fits, requirements, twice
from builder.check.rules import table, unseen
from builder.gpucode import Kind, Library, Target, capability, choose

_LIBCUDA = re.compile(r"libcuda\.so\.(\d+\.\d+(?:\.\d+)?)")
_COMPILED = ("torch", "torchvision", "torchaudio", "xformers")
_IMPORT = "importlib.metadata takes the first that the folder lists"


@dataclass(frozen=True)
class Need:
    """The oldest driver that something asks for."""

    driver: str  # "" when the table does not tell
    reason: str


def fit(look: Look) -> Iterator[Finding]:
    """What vLLM requires against what is installed."""
    vllm = look.importable.get("vllm")
    if vllm is None:
        yield unseen("vllm", "template", "whether the parts fit vLLM", f"no vLLM in {look.subject.venv}")
        return
    for name, them in twice(look.packages, [look.site]).items():
        versions = " and ".join(sorted(package.version for package in them))
        what = f"{name} is installed twice, {versions}: which one counts is chance"
        yield Finding("package-twice", Severity.ERROR, "template", what, f"/{look.site}", _alone(vllm), _IMPORT)
    if not look.tree.readable:
        yield unseen("requirements", "template", "what vLLM requires", "only the list of files is at hand")
    elif not list(requirements(look.tree, vllm, look.python)):
        yield unseen("requirements", "template", "what vLLM requires", f"{vllm.folder}/METADATA names nothing")
    else:
        yield from _misfits(look, vllm, look.importable, "template")
    if look.capability:
        yield from _compiler(look)


def fit_on_path(view: View) -> Iterator[Finding]:
    """The same of a profile whose PYTHONPATH puts other packages before those of the template: what it adds."""
    vllm = view.importable.get("vllm")
    if vllm is not None and view.sites[1:]:
        known = {finding.what for finding in _misfits(view.look, vllm, view.look.importable, "template")}
        for finding in _misfits(view.look, vllm, view.importable, f"profile {view.profile.name}"):
            if finding.what not in known:
                yield finding


def _misfits(look: Look, vllm: Package, importable: Mapping[str, Package], subject: str) -> Iterator[Finding]:
    for required in requirements(look.tree, vllm, look.python):
        there = importable.get(canonicalize_name(required.name))
        wanted = str(required.specifier)
        if there is None or not fits(there.version, wanted or ">=0"):
            is_ = "is missing" if there is None else f"is {there.version}"
            wants = "was built against" if required.name in _COMPILED else "wants"
            what = f"{required.name} {is_}; vLLM {vllm.version} {wants} {wanted or 'any'}"
            seen = f"/{there.folder}" if there else f"/{vllm.folder}"
            yield Finding("requirements", Severity.ERROR, subject, what, seen, _alone(vllm), "vLLM's own metadata")


def _alone(vllm: Package) -> str:
    return f'Requirements = ["{vllm.name}=={vllm.version}"] alone, resolved by `builder lock`; nothing installed beside'


def _compiler(look: Look) -> Iterator[Finding]:
    """What Triton compiles its stubs with at run time."""
    source = "triton/runtime/build.py 3.4"
    wanted = {
        "a C compiler": ("/usr/bin/gcc", "/usr/bin/cc", "/usr/bin/clang"),
        "Python.h": (f"/usr/include/python{look.python}/Python.h",),
    }
    for name, places in wanted.items():
        if not any(look.tree.find(place) for place in places):
            what = f"no {name}: Triton cannot compile its launchers, and the engine dies at start"
            mend = f'Packages = ["gcc", "libc6-dev", "python{look.python}-dev"] in the base stage'
            yield Finding(
                "triton-compiler", Severity.ERROR, "template", what, f"none of {', '.join(places)}", mend, source
            )


def needs(look: Look, libraries: Sequence[Library] = ()) -> tuple[Need, ...]:
    """All that ask for a driver, those that are not in the table first, then the most demanding.

    () when nothing of CUDA is there or no card is known.
    """
    data = table("cuda-drivers.toml")
    cuda = torch_cuda(look)
    if not look.capability or (cuda == "" and not libraries):
        return ()
    found = []
    if cuda is None:
        found.append(Need("", "torch, whose version.py does not tell its CUDA"))
    elif cuda:
        found.append(Need(data["Minor"].get(cuda.partition(".")[0], ""), f"torch, built with CUDA {cuda}"))
    drivers = {row["Version"]: row["Driver"] for row in data["Cuda"]}
    first = data["Card"].get(look.capability)
    came = f" came with CUDA {first}" if first else ""
    found.append(Need(drivers.get(first, ""), f"compute capability {look.capability}{came}"))
    card = Target(capability(look.capability))
    for library in libraries:
        taken = [choose(container.entries, card).entry for container in library.containers]
        versions = [entry.version for entry in taken if entry is not None and entry.kind is Kind.PTX]
        if versions:
            isa = ".".join(map(str, max(versions)))
            found.append(Need(_driver_of(max(versions), data), f"PTX of ISA {isa} in {library.path}"))
    return tuple(sorted(found, key=lambda need: (not need.driver, _numbers(need.driver)), reverse=True))


def torch_cuda(look: Look) -> str | None:
    """The CUDA version that torch is built with, as in "12.8"; "" when it is built without or is not there.

    None when it is there and does not tell.
    """
    if "torch" not in look.importable:
        return ""
    text = look.tree.read(f"{look.site}/torch/version.py")
    if text is None:  # the wheel of its runtime tells as well
        runtime = look.importable.get("nvidia-cuda-runtime-cu12") or look.importable.get("nvidia-cuda-runtime")
        return ".".join(runtime.version.split(".")[:2]) if runtime else None
    found = re.search(r"^cuda\b.*=\s*(?:'(\d+\.\d+)'|None\s*$)", text, re.MULTILINE)
    return (found[1] or "") if found else None


def own_driver(look: Look) -> str:
    """The version of the driver's userspace in the template, "" when it has none."""
    found = (_LIBCUDA.fullmatch(path.rpartition("/")[2]) for path in look.tree.entries if "libcuda.so." in path)
    return next((match[1] for match in found if match), "")


def newest_isa(driver: str) -> tuple[int, int] | None:
    """The newest PTX that a driver compiles; None for a driver older than any in the table."""
    rows = [row for row in table("cuda-drivers.toml")["Cuda"] if _numbers(row["Driver"]) <= _numbers(driver)]
    isas = [_numbers(row["Isa"]) for row in rows]
    return (max(isas)[0], max(isas)[1]) if isas else None


def driver(look: Look, libraries: Sequence[Library] | None) -> Iterator[Finding]:
    """The driver that the template needs, with what asks for it."""
    wanted = needs(look, libraries or ())
    if not wanted and not look.capability and (torch_cuda(look) != "" or libraries):
        yield unseen("driver", "template", "which driver it needs", "no [Target] is known")
    unknown = [one for one in wanted if not one.driver]
    for one in unknown:
        reason = "it is in no row of builder/data/cuda-drivers.toml"
        yield unseen("driver", "template", f"which driver it takes for {one.reason}", reason)
    found = wanted[len(unknown) :]
    if not found:
        return
    need, own = found[0].driver, own_driver(look)
    same = [one.reason for one in found if one.driver == need]
    seen = "; ".join(same[:3]) + (f" and {len(same) - 3} more" if same[3:] else "")
    source = "NVIDIA's CUDA release notes; builder/data/cuda-drivers.toml"
    if libraries is None:
        seen += "; PTX was not looked at"
    if not own:
        yield Finding("driver", Severity.NOTE, "template", f"needs a driver of {need} or later", seen, "", source)
        what = f"whether the host's driver is {need} or later, with the open kernel modules"
        yield unseen("driver-host", "template", what, "it comes from the host at start", "`builder deploy` looks first")
    elif _numbers(own) < _numbers(need):
        what = f"holds driver {own}, and needs {need} or later"
        yield Finding("driver", Severity.ERROR, "template", what, seen, "a newer Version in the driver stage", source)
    elif not unknown:
        what = f"holds driver {own}; {need} would do"
        yield Finding(
            "driver", Severity.NOTE, "template", what, seen, "the host's must be of this very version", source
        )


def _driver_of(isa: tuple[int, int], data: dict[str, list[dict[str, str]]]) -> str:
    """The oldest driver that compiles PTX of this ISA, "" for one that the table does not have."""
    return next((row["Driver"] for row in data["Cuda"] if _numbers(row["Isa"]) >= isa), "")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part)
