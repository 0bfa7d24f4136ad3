"""What of a template may be passed on: part by part, of a whole template, in its bill of materials, and as told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from builder.cli import cli
from builder.errors import BuilderError
from builder.lock.model import Blob, Deb, Wheel
from builder.pack import Info, Layer, May, StageInfo, pack, rights
from builder.stage import published
from builder.tree import scan

MAIN = ("http://deb.debian.org/debian/pool/main/c/curl/curl.deb",)
SECURITY = ("http://security.debian.org/debian-security/pool/updates/main/c/curl/curl.deb",)
CONTRIB = ("http://deb.debian.org/debian/pool/contrib/n/nvidia-support/it.deb",)
NON_FREE = ("http://deb.debian.org/debian/pool/non-free/n/nvidia/it.deb",)


@pytest.mark.parametrize("urls", [MAIN, SECURITY, CONTRIB])
def test_a_deb_of_a_free_component_may_be_passed_on(urls: tuple[str, ...]) -> None:
    assert rights.of_deb("curl", "1", ["curl"], urls).may is May.YES


@pytest.mark.parametrize(("licence", "wants"), [("GPL-2+", True), ("MPL-2.0", True), ("Expat", False)])
def test_copyleft_wants_the_source_beside_it(licence: str, wants: bool) -> None:
    assert ("source" in rights.of_deb("a", "1", [licence], MAIN).says) is wants


def test_a_deb_of_another_component_has_to_be_looked_at() -> None:
    part = rights.of_deb("unrar", "1", (), NON_FREE)
    assert part.may is May.UNKNOWN
    assert "/usr/share/doc/unrar/copyright" in part.says


def test_debians_packages_of_the_driver_are_as_the_driver() -> None:
    part = rights.of_deb("libcuda1", "550.163.01-2", (), NON_FREE)
    assert (part.may, part.grant) == (May.UNMODIFIED, "nvidia-driver")


@pytest.mark.parametrize(
    "licence",
    [
        "MIT",
        "Apache-2.0 AND MIT",
        "CC0-1.0 OR Apache-2.0",
        "3-Clause BSD License",
        "Apache Software License",
        "LGPL v3",
        "MIT-CMU",
        "PSF-2.0",
    ],
)
def test_wheels_under_free_licences(licence: str) -> None:
    assert rights.of_wheel("some", "1", [licence]).may is May.YES


@pytest.mark.parametrize(
    "stated", [(), ("NVIDIA Proprietary Software",), ("LicenseRef-Some",), ("MIT AND Commercial",), ("MIT", "Other")]
)
def test_wheels_that_say_nothing_or_something_else(stated: tuple[str, ...]) -> None:
    assert rights.of_wheel("some", "1", stated).may is May.UNKNOWN


@pytest.mark.parametrize(
    ("name", "may"),
    [
        ("nvidia-cuda-nvcc-cu12", May.OWN_USE),
        ("nvidia-nvjitlink-cu12", May.OWN_USE),
        ("nvidia-cublas-cu12", May.APPLICATION),
        ("nvidia-cusparse-cu12", May.APPLICATION),
        ("nvidia-cusparselt-cu12", May.APPLICATION),
        ("nvidia-cudnn-cu12", May.APPLICATION),
        ("nvidia-some-new-thing", May.UNKNOWN),
    ],
)
def test_nvidias_wheels_are_judged_by_their_licences_text(name: str, may: May) -> None:
    assert rights.of_wheel(name, "12.8", ["NVIDIA Proprietary Software"]).may is may


def test_every_known_file_of_nvidia_has_a_grant() -> None:
    requests = [*published.drivers().values()]
    for release in published.releases():
        requests += [component.request for component in published.components(release).values()]
    names = [request.url.rpartition("/")[2] for request in requests]
    assert {name for name in names if not rights.of_url("it", name).grant} == set()


def test_a_file_by_url_that_nothing_is_known_of() -> None:
    assert rights.of_url("flashinfer", "flashinfer_python-0.3.1.tar.gz").may is May.UNKNOWN


def test_a_program_is_known_by_its_name_wherever_it_comes_from() -> None:
    part = rights.of_file("opt/vllm/lib/triton/backends/nvidia/bin/ptxas", 0o755)
    assert part is not None
    assert part.may is May.OWN_USE
    assert rights.of_file("usr/share/bash-completion/completions/nvcc", 0o644) is None
    assert rights.of_file("usr/bin/gcc", 0o755) is None


def test_every_grant_has_its_source_and_fits_something() -> None:
    assert len({grant.id for grant in rights.grants()}) == len(rights.grants())
    for grant in rights.grants():
        assert grant.says
        assert grant.source
        assert any(grant.patterns.values())


def blob(name: str, url: str) -> Blob:
    return Blob(name.encode().hex().ljust(64, "0")[:64], 10, name, (url,))


RUNFILE = "NVIDIA-Linux-x86_64-580.76.05.run"
NVCC = "cuda_nvcc-linux-x86_64-12.8.93-archive.tar.xz"


def make(folder: Path, *, nvcc: bool = True, driver: bool = True) -> Path:
    """A template with a deb, two wheels and, if asked for, NVIDIA's driver and compiler."""
    root = folder / "root"
    for name, text in {
        "usr/share/doc/curl/copyright": "Format: x\nLicense: curl\n",
        "opt/site/vllm-0.10.2.dist-info/METADATA": "Name: vllm\nVersion: 0.10.2\nLicense-Expression: Apache-2.0\n",
        **({"usr/local/cuda-12.8/bin/nvcc": "#!nvcc"} if nvcc else {}),
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
        (root / name).chmod(0o755)
    urls = ((RUNFILE, driver), (NVCC, nvcc))
    info = Info(
        recipe="demo",
        variant="",
        recipe_digest="d" * 64,
        distribution="debian",
        release="bookworm",
        stages=tuple(
            StageInfo(name, kind, "1" * 64, "a" * 64, 5)
            for name, kind in (("base", "debian"), ("driver", "nvidia-host"), ("system", "files"))
        ),
        debs=(Deb("curl", "7", "amd64", "bookworm", blob("curl.deb", MAIN[0])),),
        wheels=(Wheel("vllm", "0.10.2", blob("vllm.whl", "https://files.pythonhosted.org/v.whl"), ""),),
        urls=tuple((name, blob(name, f"https://nvidia.com/{name}")) for name, is_in in urls if is_in),
    )
    layers = [Layer("base", scan(root), root)]
    names = {"name": "demo", "version": "1", "architecture": "amd64"}
    return pack(layers, folder / "out", **names, level=1, epoch=1_760_572_800, info=info, jobs=1).path


def licences(template: Path, *more: str) -> Result:
    return CliRunner().invoke(cli, ["licences", str(template), *more], catch_exceptions=False, standalone_mode=False)


def told(template: Path) -> Any:
    return json.loads(licences(template, "--json").stdout)


def test_a_template_with_nvcc_is_for_ones_own_use(tmp_path: Path) -> None:
    template = make(tmp_path)
    said = licences(template).stdout
    assert "demo_1_amd64.tar.zst may be passed on: for one's own use only" in said
    assert "It holds usr/local/cuda-12.8/bin/nvcc" in said
    assert "The recipe and its lock" in said
    found = {(part["kind"], part["name"]): part["may"] for part in told(template)["parts"]}
    assert found == {
        ("deb", "curl"): "yes",
        ("wheel", "vllm"): "yes",
        ("url", RUNFILE): "unmodified",
        ("url", NVCC): "own use only",
        ("stage", "driver"): "yes",
        ("stage", "system"): "yes",
        ("file", "usr/local/cuda-12.8/bin/nvcc"): "own use only",
    }


def test_a_template_with_the_driver_alone_may_be_passed_on_unmodified(tmp_path: Path) -> None:
    assert told(make(tmp_path, nvcc=False))["may_be_passed_on"] == "unmodified"


def test_a_template_of_free_software(tmp_path: Path) -> None:
    template = make(tmp_path, nvcc=False, driver=False)
    assert told(template)["may_be_passed_on"] == "yes"
    assert "may be passed on: yes, under the licences of its parts" in licences(template).stdout


def test_the_bill_of_materials_says_the_same(tmp_path: Path) -> None:
    template = make(tmp_path)
    bill = json.loads((tmp_path / "out/demo_1_amd64.cdx.json").read_text())
    by_name = {row["name"]: row for row in bill["components"]}
    properties = {name: {each["name"]: each["value"] for each in row["properties"]} for name, row in by_name.items()}
    assert {name: each["builder:may-be-passed-on"] for name, each in properties.items()} == {
        part["name"]: part["may"] for part in told(template)["parts"] if part["kind"] in ("deb", "wheel", "url")
    }
    assert by_name[NVCC]["licenses"] == [
        {"license": {"acknowledgement": "concluded", "name": "NVIDIA CUDA Toolkit EULA"}}
    ]
    assert "internal use" in properties[NVCC]["builder:terms"]
    whole = {each["name"]: each["value"] for each in bill["metadata"]["component"]["properties"]}
    assert whole["builder:may-be-passed-on"] == "own use only"
    assert whole["builder:own-use-only"] == "/usr/local/cuda-12.8/bin/nvcc"


@pytest.mark.parametrize("text", ["", "[]", '{"components": [{"name": "x"}]}', '{"components": 1}'])
def test_a_damaged_bill_of_materials(tmp_path: Path, text: str) -> None:
    template = make(tmp_path)
    (tmp_path / "out/demo_1_amd64.cdx.json").write_text(text)
    with pytest.raises(BuilderError, match="is no bill of materials"):
        licences(template)


def test_what_a_template_says_does_no_harm_to_a_terminal(tmp_path: Path) -> None:
    template = make(tmp_path)
    bill = tmp_path / "out/demo_1_amd64.cdx.json"
    bill.write_text(bill.read_text().replace('"name": "vllm"', '"name": "nvidia-cublas\\u001b[2J"'))
    assert "\x1b" not in licences(template).stdout
