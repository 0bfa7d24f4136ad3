"""How an environment is locked: what the resolvers are told, what is made of their answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests

from builder.errors import BuilderError, UsageError
from builder.lock.model import Blob, VenvRequest, Wheel
from builder.lock.resolvers import UV, WORKPLACE
from builder.lock.wheels import resolve_venv
from builder.progress import Silent


class Resolvers:
    """Stands for the sandbox with uv and pip-compile in it: answers with given pins, remembers what it was told."""

    def __init__(self, uv: str, pip_compile: str | None = None) -> None:
        self.answers = {"uv.txt": uv, "pip-tools.txt": uv if pip_compile is None else pip_compile}
        self.told: dict[str, dict[str, str]] = {}
        self.env: dict[str, str] = {}
        self.argv: list[tuple[str, ...]] = []

    def __call__(self, argv: Sequence[str], *, env: Mapping[str, str], folder: Path) -> None:
        self.env = dict(env)
        self.argv.append(tuple(argv))
        if argv[-1] == f"{WORKPLACE}/interpreter.json":
            facts = {"version": "3.11.2", "tags": ["py3-none-any"]}
            (folder / "interpreter.json").write_text(json.dumps(facts))
            return
        output = argv[argv.index("--output-file") + 1]
        self.told[output] = {path.name: path.read_text() for path in folder.iterdir() if path.suffix in (".txt", ".in")}
        self.env_files = {path.name for path in folder.iterdir()}
        (folder / output).write_text(self.answers[output])


@pytest.fixture
def request_(site: Any) -> VenvRequest:
    for name in ("idna", "certifi"):
        files = [
            {
                "filename": f"{name}-{version}-py3-none-any.whl",
                "url": f"../../files/{name}-{version}-py3-none-any.whl",
                "hashes": {"sha256": version.replace(".", "").ljust(64, "0")},
                "size": 9,
                "upload-time": "2025-01-01T00:00:00.123456Z",
                "requires-python": None,
                "yanked": False,
            }
            for version in ("3.9", "3.10")
        ]
        site.pages[f"/simple/{name}/"] = json.dumps({"files": files}).encode()
    index = f"{site.url}/simple"
    return VenvRequest("app", "/usr/bin/python3", ("idna",), ("certifi<4",), (), "2025-10-16T00:00:00Z", index)


def lock(request: VenvRequest, run: Resolvers, **options: Any) -> tuple[Wheel, ...]:
    options = {"environ": {}, **options}
    return resolve_venv(request, run=run, session=requests.Session(), progress=Silent(), **options)


def known(**versions: str) -> list[Wheel]:
    return [Wheel(name, version, Blob("a" * 64, 1, "x", ("https://x/x",)), "") for name, version in versions.items()]


def test_locks_the_files_of_the_resolved_versions(request_: VenvRequest, site: Any) -> None:
    wheels = lock(request_, Resolvers("idna==3.10\ncertifi==3.9\n"))
    assert [(wheel.name, wheel.version, wheel.uploaded) for wheel in wheels] == [
        ("certifi", "3.9", "2025-01-01T00:00:00Z"),
        ("idna", "3.10", "2025-01-01T00:00:00Z"),
    ]
    blob = Blob(
        "310".ljust(64, "0"), 9, "idna-3.10-py3-none-any.whl", (f"{site.url}/files/idna-3.10-py3-none-any.whl",)
    )
    assert wheels[1].blob == blob


def test_both_resolvers_give_the_same(request_: VenvRequest) -> None:
    pip_tools = (
        "idna==3.10\n\n# The following packages are considered to be unsafe in a requirements file:\ncertifi==3.9\n"
    )
    run = Resolvers("certifi==3.9\nidna==3.10\n", pip_tools)
    assert lock(request_, run, resolver="uv") == lock(request_, run, resolver="pip-tools")


def test_pip_compile_gets_what_uv_resolved(request_: VenvRequest) -> None:
    run = Resolvers("idna==3.10\ncertifi==3.9\n")
    lock(request_, run)
    assert run.told["pip-tools.txt"]["fixed.txt"] == "certifi==3.9\nidna==3.10\n"
    assert run.told["pip-tools.txt"]["requirements.in"] == "idna\n"
    assert run.told["pip-tools.txt"]["constraints.txt"] == "certifi<4\n"


def test_resolvers_that_disagree_are_an_error(request_: VenvRequest) -> None:
    with pytest.raises(BuilderError) as caught:
        lock(request_, Resolvers("idna==3.10\ncertifi==3.9\n", "idna==3.9\n"))
    assert "environment app: uv and pip-compile disagree: certifi 3.9 and absent, idna 3.10 and 3.9;" in str(
        caught.value
    )


def test_locked_versions_are_preferred(request_: VenvRequest) -> None:
    run = Resolvers("idna==3.9\n")
    lock(request_, run, known=known(idna="3.9", other="1"))
    assert run.told["uv.txt"]["uv.txt"] == "idna==3.9\nother==1\n"
    assert run.told["uv.txt"]["fixed.txt"] == ""


def test_upgrade_fixes_all_others(request_: VenvRequest) -> None:
    run = Resolvers("idna==3.10\n")
    lock(request_, run, known=known(idna="3.9", certifi="3.9"), upgrade=["Idna"])
    assert run.told["uv.txt"]["uv.txt"] == run.told["uv.txt"]["fixed.txt"] == "certifi==3.9\n"


def test_overrides_need_uv(request_: VenvRequest) -> None:
    request = replace(request_, overrides=("certifi==3.9",))
    with pytest.raises(UsageError, match="environment app: pip-tools knows no overrides; lock with `--resolver uv`"):
        lock(request, Resolvers(""))
    run = Resolvers("idna==3.10\ncertifi==3.9\n")
    assert len(lock(request, run, resolver="uv")) == 2
    assert run.told["uv.txt"]["overrides.txt"] == "certifi==3.9\n"


def test_of_this_machine_only_the_way_to_the_network_is_told(request_: VenvRequest, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("certificates")
    way = {"https_proxy": "http://proxy:3128", "NO_PROXY": "localhost"}
    environ = {
        **way,
        "PIP_INDEX_URL": "https://evil",
        "PIP_CERT": str(tmp_path / "ca.pem"),
        "UV_INDEX": "https://evil",
        "HOME": "/root",
        "PYTHONPATH": "/evil",
        "LANG": "de_DE",
    }
    run = Resolvers("idna==3.10\n")
    lock(request_, run, environ=environ)
    bundle = f"{WORKPLACE}/certificates.pem"
    names = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT")
    reached = {**way, **dict.fromkeys(names, bundle)}
    clean = Resolvers("idna==3.10\n")
    lock(request_, clean)
    assert run.env == {**clean.env, **reached}
    assert not clean.env.keys() & {"PIP_INDEX_URL", "UV_INDEX", "PYTHONPATH", "LANG"}
    assert "certificates.pem" in run.env_files
    assert run.argv == clean.argv


@pytest.mark.parametrize(
    ("requirement", "message"),
    [
        ("--index-url https://evil", "'--index-url https://evil' is not a requirement"),
        ("idna\n-r /etc/passwd", "is not a requirement"),
        ("idna @ https://example.org/idna.whl", "names a URL, and wheels come from the index"),
        ("./folder", "is not a requirement"),
    ],
)
@pytest.mark.parametrize("where", ["requirements", "constraints", "overrides"])
def test_only_requirements_reach_the_resolvers(
    request_: VenvRequest, where: str, requirement: str, message: str
) -> None:
    run = Resolvers("idna==3.10\n")
    with pytest.raises(BuilderError) as caught:
        lock(replace(request_, **{where: (requirement,)}), run, resolver="uv")
    assert str(caught.value).startswith("environment app: ")
    assert message in str(caught.value)
    assert run.argv == []


@pytest.mark.parametrize("line", ["-e ./here", "idna @ https://example.org/idna.whl", "idna>=3"])
def test_an_answer_that_is_no_pin_is_an_error(request_: VenvRequest, line: str) -> None:
    with pytest.raises(BuilderError, match="is not a pin: only what the index has can be locked"):
        lock(request_, Resolvers(f"{line}\n"))


def test_a_resolver_that_fails_names_the_environment(request_: VenvRequest) -> None:
    def run(argv: Sequence[str], **others: Any) -> None:
        if argv[0] == UV:
            raise BuilderError("exit 1: no solution", where="stage lock")
        Resolvers("")(argv, **others)

    with pytest.raises(BuilderError, match=r"^environment app: exit 1: no solution$"):
        resolve_venv(request_, run=run, session=requests.Session(), progress=Silent(), environ={})


@pytest.mark.parametrize(
    "page",
    [
        b"<html>",
        b"[]",
        b'{"files": [{}]}',
        b'{"files": [{"filename": "idna-3.10.tar.gz", "url": "x", "hashes": {}, "size": 1, "upload-time": ""}]}',
    ],
)
def test_an_index_without_the_json_interface_is_an_error(request_: VenvRequest, site: Any, page: bytes) -> None:
    site.pages["/simple/idna/"] = page
    with pytest.raises(BuilderError) as caught:
        lock(request_, Resolvers("idna==3.10\n"))
    assert str(caught.value).startswith(f"{site.url}/simple/idna/: does not answer in JSON")


def test_a_package_that_the_index_lost_is_an_error(request_: VenvRequest, site: Any) -> None:
    del site.pages["/simple/idna/"]
    with pytest.raises(BuilderError, match="/simple/idna/: HTTP 404"):
        lock(request_, Resolvers("idna==3.10\n"))


def test_no_place_to_work_is_an_error(request_: VenvRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    with pytest.raises(BuilderError, match=r"none/builder-lock-\w+: No such file or directory"):
        lock(request_, Resolvers("idna==3.10\n"))
