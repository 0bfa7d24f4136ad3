"""Templates boot in LXC as on a Proxmox host: systemd comes up whole, and what the template brings is found."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import User
from container import Bridge, Container, booted, new_bridge, open_folder, traces
from project import STORE, project

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.lxc,
    pytest.mark.timeout(300),
    pytest.mark.skipif(shutil.which("lxc-start") is None, reason="needs LXC"),
]

KINDS = {
    "unprivileged": {"unprivileged": True, "nesting": True},
    "unprivileged, no nesting": {"unprivileged": True, "nesting": False},
    "privileged": {"unprivileged": False, "nesting": False},
}
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CUDA = "/usr/local/cuda-12.8"
LATER = re.compile(r'^(\[\[Stage\]\]\nName = "(?:wheels|vllm|model)"\n)', re.MULTILINE)


SERVER = """\
#!/bin/sh
id -un > said
for place in /tmp /home /usr /var/lib/vllm /var/cache/vllm; do
    ls "$place/of-all" && echo "sees $place"
    touch "$place/own" && echo "writes $place"
done >> said 2> /dev/null
touch ready
exec sleep infinity
"""


@pytest.fixture(scope="module")
def bridge() -> Iterator[Bridge]:
    """The bridge of this module's containers; all of them must be gone with it."""
    with new_bridge() as bridge:
        yield bridge
    assert traces(bridge.name) == []


@pytest.fixture(scope="module")
def smoke(root_user: User, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = project(root_user, tmp_path_factory.mktemp("boot"), "smoke", store=STORE)
    made.json("template", "recipes/smoke")
    return next(made.artifacts.glob("*.tar.zst"))


def assert_up(container: Container) -> None:
    state = container.state()
    failed = container.run("systemctl", "list-units", "--failed", "--plain", "--no-legend")
    assert (state, failed) == ("running", "")


@pytest.fixture(scope="class", params=KINDS)
def container(request: pytest.FixtureRequest, smoke: Path, bridge: Bridge) -> Iterator[Container]:
    """smoke, started."""
    with booted(smoke, bridge, **KINDS[request.param]) as container:
        yield container


class TestSmoke:
    """What every template must do, on the smallest."""

    def test_it_comes_up_whole_with_its_own_service(self, container: Container) -> None:
        assert_up(container)
        assert container.run("systemctl", "is-active", "smoke.service") == "active"
        assert "httpx 0.28.1" in container.run("journalctl", "--boot", "--unit", "smoke.service", "--output", "cat")

    def test_root_is_the_hosts_root_only_where_asked(self, container: Container) -> None:
        inside, outside, _ = container.run("cat", "/proc/self/uid_map").split()
        assert (inside, outside) == ("0", str(container.owner))
        assert (container.root / "usr/bin/env").stat().st_uid == container.owner

    def test_shells_and_commands_have_a_path(self, container: Container) -> None:
        environment = container.run("env").splitlines()
        assert f"PATH={SYSTEM_PATH}" in environment
        assert {line.partition("=")[0] for line in environment} <= {"PATH", "TERM", "container", "_"} | {
            "SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE"
        }
        assert container.run("su", "-", "--command", "id -u; pwd; echo $PATH") == f"0\n/root\n{SYSTEM_PATH}"
        assert container.run("su", "-", "nobody", "-s", "/bin/sh", "-c", "id").startswith("uid=65534(nobody)")

    def test_the_machine_id_is_made_at_the_first_boot(self, smoke: Path, container: Container) -> None:
        member = ["tar", "--zstd", "--extract", "--to-stdout", "--file", str(smoke), "./etc/machine-id"]
        assert subprocess.run(member, check=True, capture_output=True).stdout == b""
        container.state()
        assert re.fullmatch("[0-9a-f]{32}", container.run("cat", "/etc/machine-id"))

    def test_hostname_and_network_are_what_proxmox_wrote(self, container: Container, bridge: Bridge) -> None:
        container.state()
        assert container.run("hostname") == container.name
        assert f"inet {bridge.guest}/24" in container.run("ip", "address", "show", "eth0")
        assert "state UP" in container.run("ip", "link", "show", "eth0")
        with socket.create_server((bridge.host, 0)) as server:
            port = server.getsockname()[1]
            call = f"import socket; socket.create_connection(('{bridge.host}', {port}), 60).sendall(b'hello')"
            container.run("/opt/smoke/bin/python", "-c", call)
            server.settimeout(60)
            connection, (caller, _) = server.accept()
            with connection:
                assert (connection.recv(9), caller) == (b"hello", bridge.guest)

    def test_a_copy_made_after_the_first_boot_comes_up_as_a_machine_of_its_own(self, container: Container) -> None:
        """What `pct clone` does: an emptied machine-id, so that it is no first boot."""
        container.state()
        before = container.run("cat", "/etc/machine-id")
        container.stop("-t", "30")
        container.write("/etc/machine-id", "\n")
        container.start()
        assert_up(container)
        after = container.run("cat", "/etc/machine-id")
        assert re.fullmatch("[0-9a-f]{32}", after)
        assert after != before


def test_a_container_whose_test_fails_leaves_nothing(smoke: Path, bridge: Bridge) -> None:
    folders: list[Path] = []

    def fail() -> None:
        with booted(smoke, bridge) as container:
            folders.append(container.folder)
            assert traces(str(container.folder), patience=0)
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    assert traces(str(folders[0])) == []
    assert not folders[0].exists()


@pytest.fixture(scope="module")
def host_driver() -> Iterator[Path]:
    """A stand-in for the folder of the host's driver: a libcuda.so.1 with nothing in it."""
    compiler = ["gcc", "-shared", "-nostdlib", "-Wl,-soname,libcuda.so.1", "-x", "c", "/dev/null"]
    with open_folder() as folder:
        subprocess.run([*compiler, "-o", str(folder / "libcuda.so.1")], check=True)
        yield folder


@pytest.fixture(scope="class", params=["vllm-blackwell", "vllm-cpu"])
def vllm(
    request: pytest.FixtureRequest,
    root_user: User,
    tmp_path_factory: pytest.TempPathFactory,
    bridge: Bridge,
    host_driver: Path,
) -> Iterator[Container]:
    """A recipe for vLLM without vLLM, and with the smallest of CUDA's libraries; started, with the host's driver."""
    made = project(root_user, tmp_path_factory.mktemp("boot"), request.param, store=STORE)
    recipe = made.folder / "recipes" / request.param / "recipe.toml"
    text = LATER.sub(r'\1Skip = "too large for a test"\n', recipe.read_text())
    recipe.write_text(text.replace('Only = ["nvidia-*"]', 'Only = ["nvidia-cuda-runtime-cu12"]'))
    made.json("template", f"recipes/{request.param}")
    driver = f"{host_driver} usr/lib/nvidia-host none ro,bind,create=dir"
    template = next(made.artifacts.glob("*.tar.zst"))
    members = subprocess.run(["tar", "-tf", template], check=True, capture_output=True, text=True).stdout
    assert "ssh_host_" not in members
    with booted(template, bridge, mounts=[driver]) as container:
        yield container


class TestVllm:
    """The recipes for vLLM, without vLLM itself."""

    def test_a_template_for_vllm_comes_up_whole_and_waits_for_its_settings(self, vllm: Container) -> None:
        assert_up(vllm)
        shown = vllm.run("systemctl", "show", "vllm.service", "--property", "ActiveState,ConditionResult,UnitFileState")
        assert set(shown.splitlines()) == {"ActiveState=inactive", "ConditionResult=no", "UnitFileState=enabled"}
        assert vllm.run("id", "-u", "vllm") == "990"

    def test_ssh_makes_the_host_keys_that_are_missing(self, vllm: Container, bridge: Bridge) -> None:
        vllm.state()
        with socket.create_connection((bridge.guest, 22), 60) as connection:
            assert connection.recv(7) == b"SSH-2.0"
        first = vllm.run("ssh-keygen", "-lf", "/etc/ssh/ssh_host_ed25519_key.pub")
        vllm.run("sh", "-c", "rm /etc/ssh/ssh_host_*")
        vllm.run("systemctl", "restart", "ssh.service")
        assert vllm.run("ssh-keygen", "-lf", "/etc/ssh/ssh_host_ed25519_key.pub") != first

    def test_everybody_finds_cuda_and_the_hosts_driver(self, vllm: Container) -> None:
        if not (vllm.root / CUDA.lstrip("/")).exists():
            pytest.skip("a recipe without CUDA")
        vllm.state()
        script = "command -v ptxas; echo $CUDA_HOME; ls -d ${PATH%%:*}"
        expected = f"{CUDA}/bin/ptxas\n{CUDA}\n{CUDA}/bin"
        assert vllm.run("su", "-", "--command", script) == expected
        assert vllm.run("su", "-", "nobody", "-s", "/bin/sh", "-c", script) == expected
        assert vllm.run("systemd-run", "--quiet", "--wait", "--pipe", "sh", "-c", script.replace("$", "$$")) == expected
        assert f"=> {CUDA}/lib64/libcudart.so.12" in vllm.run("ldconfig", "-p")
        assert vllm.run("systemctl", "is-active", "nvidia-host-driver.service") == "active"
        vllm.run("python3", "-c", "import ctypes; [ctypes.CDLL(name) for name in ('libcudart.so.12', 'libcuda.so.1')]")

    def test_the_service_starts_confined_once_it_has_settings(self, vllm: Container) -> None:
        """A stand-in for the server: what counts is that this kind of container allows the unit's restrictions."""
        vllm.state()
        vllm.run("touch", "/tmp/of-all", "/home/of-all", "/usr/of-all", "/etc/vllm/serve.yaml")
        vllm.write("/opt/vllm/bin/vllm", SERVER)
        vllm.write("/opt/vllm/bin/python", "#!/bin/sh\nuntil test -e ready; do sleep 0.1; done\n")
        vllm.run("chmod", "755", "/opt/vllm/bin/vllm", "/opt/vllm/bin/python")
        vllm.run("systemctl", "start", "vllm.service")
        said = vllm.run("cat", "/var/lib/vllm/said").splitlines()
        assert [line for line in said if not line.startswith("/")] == [
            "vllm",
            "writes /tmp",
            "sees /usr",
            "writes /var/lib/vllm",
            "writes /var/cache/vllm",
        ]
        assert_up(vllm)
