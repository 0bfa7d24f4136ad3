"""Whether the parts of a template fit each other, and the driver that they need."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from builder.check.look import Look
from builder.check.model import Finding, Severity
from builder.check.packages import fits, requirements
from builder.check.rules import table, unseen
from builder.gpucode import Kind, Library, Target, capability, choose

_LIBCUDA = re.compile(r"libcuda\.so\.(\d+\.\d+(?:\.\d+)?)")
_COMPILED = ("torch", "torchvision", "torchaudio", "xformers")


@dataclass(frozen=True)
class Need:
    """The oldest driver that something asks for."""

    driver: str
    reason: str


def fit(look: Look) -> Iterator[Finding]:
    """What vLLM requires against what is installed."""
    vllm = look.importable.get("vllm")
    if vllm is None:
        yield unseen("vllm", "template", "whether the parts fit vLLM", f"no vLLM in {look.subject.venv}")
        return
    if not look.tree.readable:
        yield unseen("requirements", "template", "what vLLM requires", "only the list of files is at hand")
        return
    for required in requirements(look.tree, vllm, look.python):
        there = look.importable.get(required.name.lower().replace("_", "-"))
        wanted = str(required.specifier)
        if there is None or not fits(there.version, wanted or ">=0"):
            is_ = "is missing" if there is None else f"is {there.version}"
            wants = "was built against" if required.name in _COMPILED else "wants"
            what = f"{required.name} {is_}; vLLM {vllm.version} {wants} {wanted or 'any'}"
            mend = (
                f'Requirements = ["vllm=={vllm.version}"] alone, resolved by `builder lock`; nothing installed beside'
            )
            yield Finding("requirements", Severity.ERROR, "template", what, vllm.folder, mend, "vLLM's own metadata")
    if look.capability:
        yield from _compiler(look)


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
    """All that ask for a driver, the most demanding first; () when nothing of CUDA is there or no card is known."""
    data = table("cuda-drivers.toml")
    cuda = torch_cuda(look)
    if not cuda or not look.capability:
        return ()
    found = []
    if minor := data["Minor"].get(cuda.partition(".")[0]):
        found.append(Need(minor, f"torch is built with CUDA {cuda}"))
    drivers = {row["Version"]: row["Driver"] for row in data["Cuda"]}
    if first := data["Card"].get(look.capability):
        found.append(Need(drivers[first], f"compute capability {look.capability} came with CUDA {first}"))
    card = Target(capability(look.capability))
    for library in libraries:
        taken = [choose(container.entries, card).entry for container in library.containers]
        versions = [entry.version for entry in taken if entry is not None and entry.kind is Kind.PTX]
        if versions and (driver := _driver_of(max(versions), data)):
            isa = ".".join(map(str, max(versions)))
            found.append(Need(driver, f"PTX of ISA {isa} in {library.path}"))
    return tuple(sorted(found, key=lambda need: _numbers(need.driver), reverse=True))


def torch_cuda(look: Look) -> str:
    """The CUDA version that torch is built with, as in "12.8"; "" when it is built without or is not there."""
    text = look.tree.read(f"{look.site}/torch/version.py") if look.site else None
    if text and (found := re.search(r"^cuda\b.*=\s*'(\d+\.\d+)'", text, re.MULTILINE)):
        return found[1]
    runtime = look.importable.get("nvidia-cuda-runtime-cu12") or look.importable.get("nvidia-cuda-runtime")
    return ".".join(runtime.version.split(".")[:2]) if runtime and not text else ""


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
    found = needs(look, libraries or ())
    if not found:
        cuda = torch_cuda(look)
        if cuda or ("torch" in look.importable and not look.tree.readable):
            reason = "no [Target] is known" if cuda else "torch/version.py was not read"
            yield unseen("driver", "template", "which driver it needs", reason)
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
    else:
        what = f"holds driver {own}; {need} would do"
        yield Finding(
            "driver", Severity.NOTE, "template", what, seen, "the host's must be of this very version", source
        )


def _driver_of(isa: tuple[int, int], data: dict[str, list[dict[str, str]]]) -> str:
    """The oldest driver that compiles PTX of this ISA, "" for one that the table does not have."""
    return next((row["Driver"] for row in data["Cuda"] if _numbers(row["Isa"]) >= isa), "")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
