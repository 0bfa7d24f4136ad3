"""The long proofs, on the real templates: run by `scripts/full`, which keeps what they measure in docs/measured."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import HOUSE, MIRROR, Measure, User
from container import Bridge, booted, new_bridge
from dockerd import private_dockerd
from project import NETWORK, STORE, Project, project, seed

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.lxc,
    pytest.mark.full,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(shutil.which("lxc-start") is None, reason="needs LXC"),
]

SERVE = """\
model: /opt/models/tiny-llama
served-model-name: tiny
host: 127.0.0.1
port: 8000
dtype: bfloat16
enforce-eager: true
max-model-len: 512
max-num-seqs: 4
"""
ASK = """
import json, urllib.request
body = json.dumps({"model": "tiny", "prompt": "hello", "max_tokens": 8}).encode()
request = urllib.request.Request("http://127.0.0.1:8000/v1/completions", body, {"Content-Type": "application/json"})
print(json.load(urllib.request.urlopen(request, timeout=60))["usage"]["completion_tokens"])
"""
TRIXIE = "mmdebstrap,uidmap,zstd,dpkg-dev,debian-archive-keyring,gpgv,python3,python3-venv,ca-certificates"
TOOLS = ["dpkg-query", "--show", "--showformat", "${Package} ${Version} ", "apt", "dpkg", "mmdebstrap", "python3"]
ENTER = """
mount --bind "$0" "$0"
cd "$0"
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
pivot_root . mnt
umount --lazy /mnt
cd /root/project
exec "$@"
"""
CERTIFICATES = Path("etc/ssl/certs/ca-certificates.crt")


@pytest.fixture(scope="module")
def bridge() -> Iterator[Bridge]:
    with new_bridge() as bridge:
        yield bridge


@pytest.fixture(scope="module")
def here(root_user: User) -> Project:
    """The project itself, with the machine's store."""
    of = project_here(root_user)
    assert not of.builder("doctor").returncode
    return of


def project_here(user: User) -> Project:
    return Project(HOUSE, User(**{**vars(user), "env": {**user.env, "BUILDER_STORE": str(STORE)}}))


def timed_template(of: Project, recipe: str) -> tuple[dict[str, Any], float]:
    started = time.monotonic()
    made = of.json("template", f"recipes/{recipe}")
    return made, round(time.monotonic() - started, 2)


def test_the_real_template(here: Project, bridge: Bridge, measure: Measure) -> None:
    made, first = timed_template(here, "vllm-blackwell")
    again, second = timed_template(here, "vllm-blackwell")
    assert (again["sha256"], again["fresh"]) == (made["sha256"], False)
    measure("vllm-blackwell", {"sha256": made["sha256"], "size": made["size"], "first_s": first, "second_s": second})

    started = time.monotonic()
    with booted(Path(made["path"]), bridge) as container:
        unpacked = time.monotonic()
        assert container.state(patience=180) == "running"
        measure("vllm-blackwell in LXC", {"unpack_and_start_s": round(unpacked - started, 1), "state": "running"})
        versions = "import vllm, torch; print(vllm.__version__, torch.__version__)"
        said = container.run("/opt/vllm/bin/python", "-c", versions).splitlines()[-1]
        assert said == "0.10.2 2.8.0+cu128"
        measure("vllm-blackwell imports", said)
        assert "/usr/local/cuda-12.8/bin" in container.run("bash", "-lc", "echo $PATH").split(":")
        service = ["systemd-run", "--quiet", "--wait", "--pipe", "sh", "-c", "echo $CUDA_HOME; command -v ptxas"]
        assert container.run(*service).split() == ["/usr/local/cuda-12.8", "/usr/local/cuda-12.8/bin/ptxas"]
        assert "libcudart.so.12 (libc6,x86-64) => /usr/local/cuda-12.8/" in container.run("ldconfig", "-p")
        assert container.run("su", "-", "nobody", "-s", "/bin/sh", "-c", "id").startswith("uid=65534(nobody)")


def test_vllm_serves_on_the_cpu(here: Project, bridge: Bridge, measure: Measure) -> None:
    """The real vLLM in an unprivileged container: the service counts as up after a real completion."""
    made, first = timed_template(here, "vllm-cpu")
    measure("vllm-cpu", {"sha256": made["sha256"], "size": made["size"], "first_s": first})
    with booted(Path(made["path"]), bridge) as container:
        assert container.state(patience=180) == "running"
        container.write("/etc/vllm/serve.yaml", SERVE)
        started = time.monotonic()
        begun = container.try_run("systemctl", "start", "--no-block", "vllm.service")
        assert begun.returncode == 0, begun.stderr
        while (state := container.try_run("systemctl", "is-active", "vllm.service").stdout.strip()) == "activating":
            assert time.monotonic() - started < 600
            time.sleep(1)
        log = container.run("journalctl", "--unit", "vllm.service", "--output", "cat")
        assert state == "active", log
        assert "tiny: completion of 4 tokens" in log
        measure("vllm-cpu service", {"start_to_first_completion_s": round(time.monotonic() - started, 1)})
        assert container.run("/opt/vllm/bin/python", "-c", ASK) == "8"
        assert container.run("sh", "-c", "stat -c %U /proc/$(pgrep -o -f 'vllm serve')") == "vllm"


def test_an_ordinary_user_gets_the_same_bytes(
    here: Project, ordinary_user: User, tmp_path_factory: pytest.TempPathFactory, measure: Measure
) -> None:
    """The big template again, by another user with another store, path, clock, umask and time zone."""
    place = ordinary_user.home / "elsewhere"
    place.mkdir()
    theirs = project(ordinary_user, place, "vllm-blackwell").with_env(TZ="Asia/Kathmandu", LC_ALL="tr_TR.UTF-8")
    prefix = ["sh", "-c", 'umask 077; exec faketime -f "@$0" "$@"', "2033-02-03 04:05:06"]
    made = theirs.json("template", "recipes/vllm-blackwell", prefix=prefix)
    ours = here.json("template", "recipes/vllm-blackwell")
    measure("vllm-blackwell by an ordinary user", {"sha256": made["sha256"], "same": made["sha256"] == ours["sha256"]})
    assert made["sha256"] == ours["sha256"]
    shutil.rmtree(place)  # 19 GB that the next proofs need


@pytest.mark.parametrize(("recipe", "variations"), [("smoke", ""), ("vllm-blackwell", "user+path+future,docker")])
def test_the_same_bytes_in_other_surroundings(
    here: Project, ordinary_user: User, measure: Measure, recipe: str, variations: str
) -> None:
    """smoke in every variation, the big template in two rebuilds; what is not tried fails."""
    with private_dockerd() as host:
        named = ["--variations", variations] if variations else []
        told = here.with_env(DOCKER_HOST=host).json("rebuild-check", f"recipes/{recipe}", *named)
    states = {row["variation"]: row["state"] for row in told["variations"]}
    measure(f"{recipe} again", {"sha256": told["sha256"], **states})
    assert set(states.values()) == {"same"}


def test_a_debian_13_host_gives_the_same_bytes(here: Project, tmp_path: Path, measure: Measure) -> None:
    """smoke by the tools of a Debian 13 root, set up there as on any machine, in a store that holds no layer."""
    root = tmp_path / "trixie"
    argv = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={TRIXIE}", "trixie", str(root), MIRROR]
    subprocess.run(argv, check=True, capture_output=True)
    for path in ("etc/resolv.conf", CERTIFICATES):
        shutil.copy(Path("/", path), root / path)
    theirs = root / "root/project"
    for name in ("builder", "recipes", "locks", "scripts"):
        shutil.copytree(HOUSE / name, theirs / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(HOUSE / name, theirs)
    seed(root / "root/.cache/builder", HOUSE, ["smoke"])

    def run(*argv: str) -> str:
        words = ["unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "sh", "-euc", ENTER]
        env = {**NETWORK, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8", "YES": "1"}
        done = subprocess.run([*words, str(root), *argv], env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("scripts/setup")
    made = json.loads(run(".venv/bin/builder", "build", "recipes/smoke", "--json"))
    ours = here.json("template", "recipes/smoke")
    same = made["sha256"] == ours["sha256"]
    measure("smoke on a Debian 13 host", {"sha256": made["sha256"], "same": same, "with": run(*TOOLS).strip()})
    assert same
