"""`builder lock` as users run it: nothing of the machine gets in, nothing moves unasked, nothing is half written."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import User
from project import NETWORK, STORE, Project, project

from builder.lock import read

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900), pytest.mark.usefixtures("no_leftovers")]


@pytest.fixture(scope="module")
def made(root_user: User, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """smoke, locked anew by root with the machine's own store."""
    place = project(root_user, tmp_path_factory.mktemp("lock"), "smoke", store=STORE).with_env(**NETWORK)
    lock_file(place).unlink(missing_ok=True)
    wheels(place).unlink(missing_ok=True)
    place.json("lock", "recipes/smoke")
    return place


@pytest.fixture
def smoke(made: Project) -> Iterator[Project]:
    """`made`, put back as it was after the test."""
    files = (recipe_file(made), lock_file(made), wheels(made))
    before = {path: path.read_bytes() for path in files}
    yield made
    for path, content in before.items():
        path.write_bytes(content)


def recipe_file(of: Project) -> Path:
    return of.folder / "recipes/smoke/recipe.toml"


def lock_file(of: Project) -> Path:
    return of.folder / "locks/smoke/lock.toml"


def wheels(of: Project) -> Path:
    return of.folder / "locks/smoke/wheels-smoke.txt"


def edit(of: Project, old: str, new: str) -> None:
    text = recipe_file(of).read_text()
    assert old in text
    recipe_file(of).write_text(text.replace(old, new))


def versions(of: Project) -> dict[str, str]:
    return {wheel.name: wheel.version for wheel in read(lock_file(of).parent).venvs["smoke"]}


def fails(of: Project, code: int, *arguments: str) -> str:
    done = of.builder(*arguments)
    assert done.returncode == code, (done.stdout, done.stderr)
    return done.stderr.decode()


def test_locking_twice_changes_nothing(smoke: Project) -> None:
    before = {path: path.stat().st_mtime_ns for path in lock_file(smoke).parent.iterdir()}
    again = smoke.json("lock", "recipes/smoke")
    assert (again["written"], again["changes"]) == (False, [])
    assert {path: path.stat().st_mtime_ns for path in lock_file(smoke).parent.iterdir()} == before
    assert smoke.json("lock", "recipes/smoke", "--check")["stale"] == []


@pytest.fixture(scope="module")
def poison(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A home and an environment that lead resolvers astray: to another idna, old versions, previews."""
    home = tmp_path_factory.mktemp("poison")
    links = home / "links"
    links.mkdir()
    for name in ("idna", "httpx"):
        with zipfile.ZipFile(links / f"{name}-99.0-py3-none-any.whl", "w") as wheel:
            info = f"{name}-99.0.dist-info"
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 99.0\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
    constraint = home / "constraint.txt"
    constraint.write_text("certifi<2024\nanyio<4\n")
    override = home / "override.txt"
    override.write_text("sniffio==1.2.0\n")
    pip = f"[global]\nfind-links = {links}\npre = true\nno-binary = :all:\n[install]\nconstraint = {constraint}\n"
    uv = f'find-links = ["{links}"]\nprerelease = "allow"\nresolution = "lowest"\n'
    for path, text in {
        ".config/pip/pip.conf": pip,
        ".pip/pip.conf": pip,
        ".config/uv/uv.toml": uv,
        "uv.toml": uv,
        "pyproject.toml": f"[tool.uv]\n{uv}[tool.pip-tools]\npre = true\nfind-links = ['{links}']\n",
        ".pip-tools.toml": f"[tool.pip-tools]\npre = true\nfind-links = ['{links}']\n",
        ".netrc": "machine pypi.org login somebody password secret\n",
    }.items():
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_text(text)
        (home / path).chmod(0o600)
    return home, {
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "PIP_CONFIG_FILE": str(home / ".pip/pip.conf"),
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_EXTRA_INDEX_URL": "http://127.0.0.1:9/more",
        "PIP_FIND_LINKS": str(links),
        "PIP_CONSTRAINT": str(constraint),
        "PIP_PRE": "1",
        "PIP_NO_BINARY": ":all:",
        "PIP_NO_INDEX": "1",
        "PIP_UPLOADED_PRIOR_TO": "2020-01-01T00:00:00Z",
        "PIP_TOOLS_CACHE_DIR": str(home / "cache"),
        "UV_INDEX": "http://127.0.0.1:9/simple",
        "UV_INDEX_URL": "http://127.0.0.1:9/simple",
        "UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple",
        "UV_EXTRA_INDEX_URL": "http://127.0.0.1:9/more",
        "UV_FIND_LINKS": str(links),
        "UV_CONSTRAINT": str(constraint),
        "UV_OVERRIDE": str(override),
        "UV_PRERELEASE": "allow",
        "UV_RESOLUTION": "lowest",
        "UV_EXCLUDE_NEWER": "2020-01-01T00:00:00Z",
        "UV_OFFLINE": "1",
        "PYTHONPATH": str(links),
        "VIRTUAL_ENV": str(home / "venv"),
    }


def test_the_poison_works_on_unprotected_resolvers(poison: tuple[Path, dict[str, str]]) -> None:
    home, hostile = poison
    env = {**os.environ, **hostile, "UV_RESOLUTION": "highest", "UV_OFFLINE": "0", "UV_EXCLUDE_NEWER": "2099-01-01"}
    dead = {"UV_INDEX", "UV_INDEX_URL", "UV_DEFAULT_INDEX", "UV_EXTRA_INDEX_URL"}
    env = {name: value for name, value in env.items() if name not in dead}
    argv = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-index", "-"]
    done = subprocess.run(argv, input=b"idna", env=env, cwd=home, capture_output=True, check=True)
    assert b"idna==99.0" in done.stdout
    argv = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "-d",
        str(home / "got"),
        "idna",
    ]
    subprocess.run(argv, env={**env, "PIP_UPLOADED_PRIOR_TO": "2099-01-01"}, cwd=home, capture_output=True, check=True)
    assert (home / "got" / "idna-99.0-py3-none-any.whl").exists()


@pytest.mark.parametrize("resolver", ["pip-tools", "uv"])
def test_hostile_settings_change_no_byte(smoke: Project, poison: tuple[Path, dict[str, str]], resolver: str) -> None:
    text, locked = wheels(smoke).read_bytes(), read(lock_file(smoke).parent).venvs
    lock_file(smoke).unlink()
    wheels(smoke).unlink()
    home, hostile = poison
    argv = [
        "env",
        "--chdir",
        str(home),
        *(f"{name}={value}" for name, value in hostile.items() if name != "PYTHONPATH"),
    ]
    smoke.json("lock", "recipes/smoke", "--resolver", resolver, prefix=argv)
    assert wheels(smoke).read_bytes() == text
    assert read(lock_file(smoke).parent).venvs == locked


def test_an_ordinary_user_locks_the_same(
    smoke: Project, ordinary_user: User, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = ordinary_user.home / "lock"
    place.mkdir()
    theirs = project(ordinary_user, place, "smoke").with_env(**NETWORK)
    lock_file(theirs).unlink(missing_ok=True)
    wheels(theirs).unlink(missing_ok=True)
    theirs.json("lock", "recipes/smoke")
    assert wheels(theirs).read_bytes() == wheels(smoke).read_bytes()
    assert wheels(theirs).stat().st_uid == ordinary_user.uid


@pytest.mark.parametrize("installer", [["pip", "install", "--ignore-installed"], ["uv", "pip", "install"]])
def test_pip_and_uv_take_the_text_and_nothing_but_its_bytes(
    smoke: Project, installer: list[str], tmp_path: Path
) -> None:
    env = {
        **smoke.user.env,
        "PIP_CONFIG_FILE": os.devnull,
        "UV_NO_CONFIG": "1",
        "UV_CACHE_DIR": str(tmp_path / "cache"),
    }

    def install(text: Path, target: Path) -> subprocess.CompletedProcess[bytes]:
        argv = [*installer, "--require-hashes", "--no-deps", "--target", str(target), "-r", str(text)]
        return subprocess.run([sys.executable, "-m", *argv], env=env, cwd=tmp_path, capture_output=True, check=False)

    done = install(wheels(smoke), tmp_path / "here")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "here" / "httpx").is_dir()
    other = tmp_path / "other.txt"
    other.write_text(
        re.sub(r"sha256:(.)", lambda first: f"sha256:{first[1] == '0':d}", wheels(smoke).read_text(), count=1)
    )
    done = install(other, tmp_path / "there")
    assert done.returncode != 0
    assert b"hash" in done.stderr.lower()


def test_a_changed_recipe_is_told_and_mended(smoke: Project) -> None:
    edit(smoke, "httpx==0.28.1", "httpx==0.27.2")
    told = fails(smoke, 1, "lock", "recipes/smoke", "--check")
    assert told == (
        f"builder: {lock_file(smoke)}: not of this recipe: environment smoke changed; "
        f"run `builder lock {smoke.folder}/recipes/smoke`\n"
    )
    assert "environment smoke changed" in fails(smoke, 1, "build", "recipes/smoke", "--dry-run")
    debs = read(lock_file(smoke).parent).debs
    changes = smoke.json("lock", "recipes/smoke")["changes"]
    assert changes == [{"kind": "wheel", "of": "smoke", "name": "httpx", "old": "0.28.1", "new": "0.27.2"}]
    assert read(lock_file(smoke).parent).debs == debs
    assert smoke.json("lock", "recipes/smoke", "--check")["stale"] == []


def test_a_text_that_was_edited_is_told_by_line_and_mended(smoke: Project) -> None:
    text = wheels(smoke).read_text()
    wheels(smoke).write_text(text.replace("packaging==25.0", "packaging==24.2"))
    line = text[: text.index("packaging")].count("\n") + 1
    assert f"{wheels(smoke)}:{line}: 'packaging==24.2" in fails(smoke, 1, "lock", "recipes/smoke", "--check")
    assert smoke.json("lock", "recipes/smoke")["written"]
    assert wheels(smoke).read_text() == text


def test_only_what_is_named_moves(smoke: Project) -> None:
    day = 'ExcludeNewer = "{}-01T00:00:00Z"'
    edit(smoke, 'ExcludeNewer = "2025-10-16T00:00:00Z"', day.format("2025-06"))
    smoke.json("lock", "recipes/smoke")
    old = versions(smoke)
    assert (old["idna"], old["certifi"]) == ("3.10", "2025.4.26")

    edit(smoke, day.format("2025-06"), day.format("2025-11"))
    text = wheels(smoke).read_bytes()
    assert smoke.json("lock", "recipes/smoke")["changes"] == []
    assert wheels(smoke).read_bytes() == text

    kept = lock_file(smoke).read_bytes()
    names = {change["name"] for change in smoke.json("lock", "recipes/smoke", "--diff")["changes"]}
    assert {"idna", "certifi"} <= names
    assert lock_file(smoke).read_bytes() == kept

    changes = smoke.json("lock", "recipes/smoke", "--upgrade", "idna")["changes"]
    assert changes == [{"kind": "wheel", "of": "smoke", "name": "idna", "old": "3.10", "new": "3.11"}]
    assert versions(smoke) == {**old, "idna": "3.11"}

    smoke.json("lock", "recipes/smoke", "--upgrade-all")
    assert versions(smoke)["certifi"] == "2025.10.5"


def test_a_wheel_from_after_exclude_newer_is_refused(smoke: Project) -> None:
    late = 'uploaded = "2025-10-16T00:00:00Z"'
    lock_file(smoke).write_text(re.sub('uploaded = "[^"]*"', late, lock_file(smoke).read_text(), count=1))
    assert "was uploaded 2025-10-16T00:00:00Z, after ExcludeNewer" in fails(
        smoke, 1, "lock", "recipes/smoke", "--check"
    )


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('"packaging==25.0"', '"packaging==25.0", "httpcore<1"', "environment smoke: "),
        ('"packaging==25.0"', '"packaging==99.0"', "there is no version of packaging==99.0"),
        ("/usr/bin/python3.11", "/usr/bin/python3.99", "/usr/bin/python3.99"),
    ],
)
def test_what_cannot_be_locked_leaves_the_lock(smoke: Project, old: str, new: str, told: str) -> None:
    before = lock_file(smoke).read_bytes(), wheels(smoke).read_bytes()
    edit(smoke, old, new)
    message = fails(smoke, 1, "lock", "recipes/smoke")
    assert told in message
    assert message.count("\n") == 1
    assert (lock_file(smoke).read_bytes(), wheels(smoke).read_bytes()) == before


def test_what_is_no_requirement_is_told_by_line(smoke: Project) -> None:
    edit(smoke, '"packaging==25.0"', '"--pre"')
    message = fails(smoke, 2, "lock", "recipes/smoke")
    assert 'recipe.toml:23: Requirements in [[Venv]] "smoke" has "--pre", which is no requirement' in message


def test_overrides_need_uv(smoke: Project) -> None:
    edit(smoke, "ExcludeNewer", 'Overrides = ["idna==3.7"]\nExcludeNewer')
    assert "environment smoke: pip-tools knows no overrides; lock with `--resolver uv`" in fails(
        smoke, 2, "lock", "recipes/smoke"
    )
    smoke.json("lock", "recipes/smoke", "--resolver", "uv")
    assert versions(smoke)["idna"] == "3.7"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("seconds", [0.0, 1.0, 2.0])
def test_an_interrupted_lock_leaves_the_old_one(smoke: Project, number: signal.Signals, seconds: float) -> None:
    """`seconds` after it began to ask others."""
    folder = lock_file(smoke).parent
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    edit(smoke, "httpx==0.28.1", "httpx==0.27.2")
    at = smoke.with_env(TMPDIR=str(smoke.folder))  # what a kill leaves there goes with the test's own files
    process = at.user.popen(
        at.argv("lock", "recipes/smoke", "--upgrade-all"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while process.poll() is None and not has_children(process.pid):
        time.sleep(0.01)
    time.sleep(seconds)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    if process.returncode == 0:
        return  # it was done before
    if number != signal.SIGKILL:
        assert (process.returncode, said.strip()) == (130, b"builder: interrupted")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def has_children(pid: int) -> bool:
    return any((task / "children").read_text() for task in Path(f"/proc/{pid}/task").iterdir())


@pytest.mark.parametrize(
    "options",
    [("--check", "--diff"), ("--check", "--upgrade", "idna"), ("--upgrade", "idna", "--upgrade-all")],
)
def test_options_that_exclude_each_other(smoke: Project, options: tuple[str, ...]) -> None:
    assert fails(smoke, 2, "lock", "recipes/smoke", *options).startswith("builder: --check stands alone")


def test_upgrade_of_an_unknown_name_gives_the_nearest(smoke: Project) -> None:
    assert 'the lock has no htpx; did you mean "httpx"?' in fails(
        smoke, 2, "lock", "recipes/smoke", "--upgrade", "htpx"
    )


@pytest.mark.slow
def test_both_resolvers_lock_vllm_alike(root_user: User, tmp_path: Path) -> None:
    place = project(root_user, tmp_path, "vllm-blackwell", store=STORE).with_env(**NETWORK)
    folder = tmp_path / "locks/vllm-blackwell"
    found: list[Any] = []
    for resolver in ("pip-tools", "uv"):
        for path in folder.glob("*"):
            path.unlink()
        place.json("lock", "recipes/vllm-blackwell", "--resolver", resolver)
        found.append(((folder / "wheels-vllm.txt").read_bytes(), read(folder).venvs))
    assert found[0] == found[1]
    pins = {wheel.name: wheel for wheel in found[0][1]["vllm"]}
    assert (pins["vllm"].version, pins["torch"].version) == ("0.10.2", "2.8.0")
    assert pins["transformers"].version < "5"
    assert all(wheel.blob.filename.endswith(".whl") for wheel in pins.values())
