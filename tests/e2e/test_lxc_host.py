"""Plain LXC as a host, with real containers: made, cloned, configured, started, entered, broken and taken away."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from conftest import User
from container import Bridge, new_bridge, open_folder, traces, with_subids
from project import STORE, project

from builder.deploy.channel import Local
from builder.deploy.host.lxc import Lxc
from builder.deploy.model import Container, Device, Network, Settings
from builder.deploy.shell import Done, Shell
from builder.errors import BuilderError

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.lxc,
    pytest.mark.timeout(300),
    pytest.mark.skipif(shutil.which("lxc-start") is None, reason="needs LXC"),
]

TEMPLATE, FULL, LINKED, BROKEN, ROOTED = 7920, 7921, 7922, 7923, 7930
ADDRESSES = {TEMPLATE: 20, FULL: 21, LINKED: 22, BROKEN: 23, ROOTED: 30, ROOTED + 1: 31}
DESCRIPTION = 'builder: {"run":"r1"}\nmade by a test, gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n'
ZERO = os.makedev(1, 5)


class WithSubids:
    """This machine, with the subordinate ids of a Proxmox host for its root."""

    name = "this machine"

    def __init__(self, folder: Path) -> None:
        self._prefix = with_subids(folder / "subids")

    def run(self, argv: Sequence[str], **options: object) -> Done:
        return Local().run([*self._prefix, *argv], **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def bridge() -> Iterator[Bridge]:
    with new_bridge() as bridge:
        yield bridge
    assert traces(bridge.name) == []


@pytest.fixture(scope="module")
def smoke(root_user: User, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = project(root_user, tmp_path_factory.mktemp("lxc-host"), "smoke", store=STORE)
    made.json("template", "recipes/smoke")
    return next(made.artifacts.glob("*.tar.zst"))


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """The folder of LXC; nothing that knows it may be left in the end."""
    with open_folder() as folder:
        root = folder / "lxc"
        root.mkdir(mode=0o755)
        yield root
        deadline = time.monotonic() + 60
        while (left := [*traces(str(folder), patience=0), *_groups()]) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert left == []
        assert [path.name for path in root.iterdir()] == [".builder"]
        assert [path for path in (root / ".builder").rglob("*") if path.is_file()] == []


def _groups() -> list[str]:
    found = Path("/sys/fs/cgroup").glob("**/lxc.*.79[23][0-9]*")
    return [str(path) for path in found]


@pytest.fixture
def node() -> Iterator[Path]:
    """A device node of the host that everybody may open."""
    path = Path(f"/dev/builder-test-{os.getpid()}")
    os.mknod(path, stat.S_IFCHR, ZERO)
    path.chmod(0o666)
    yield path
    path.unlink()


def host(folder: Path, *, dry: bool = False) -> Lxc:
    return Lxc(Shell(WithSubids(folder.parent), dry=dry), folder)


@pytest.fixture(scope="module")
def lxc(folder: Path) -> Lxc:
    return host(folder)


@pytest.fixture(scope="module")
def entry(bridge: Bridge) -> Callable[..., Container]:
    def make(ctid: int, **more: object) -> Container:
        network = Network(bridge=bridge.name, ip=f"{bridge.network}.{ADDRESSES[ctid]}/24", gateway=bridge.host)
        values = {"network": network, "memory_mib": 512, "cores": 1, **more}
        return Container(ctid, f"ct{ctid}", **values)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="module")
def template(lxc: Lxc, smoke: Path, entry: Callable[..., Container]) -> Iterator[int]:
    """smoke as a template, with files in it that are easily copied wrongly."""
    container = entry(TEMPLATE)
    assert lxc.problems(container) == ()
    digest = sha256(smoke.read_bytes()).hexdigest()
    assert lxc.find_upload(smoke.name, digest) is None
    volume = lxc.upload(smoke, digest, "r1")
    assert lxc.find_upload(smoke.name, digest) == volume
    lxc.create(container, volume, Settings(container, ("builder",), DESCRIPTION))
    _add_difficult_files(lxc.root / str(TEMPLATE) / "rootfs")
    lxc.make_template(TEMPLATE)
    yield TEMPLATE
    lxc.destroy(TEMPLATE)
    assert lxc.forget_upload(smoke.name, digest, "r1")
    assert not lxc.forget_upload(smoke.name, digest, "r1")
    assert lxc.guests() == ()


CAPABILITY = struct.pack("<6I", 0x03000001, 1 << 10, 0, 0, 0, 100_000)
"""cap_net_bind_service for the root of a container (capabilities(7), VFS_CAP_REVISION_3)."""


def _add_difficult_files(rootfs: Path) -> None:
    holes, named, linked = (rootfs / "opt" / name for name in ("holes", "named", "linked"))
    holes.touch()
    os.truncate(holes, 64 << 20)
    named.touch()
    for path in holes, named:
        os.chown(path, 100_000, 100_000)
    os.setxattr(named, "user.note", b"kept")
    os.setxattr(named, "security.capability", CAPABILITY)
    os.link(named, linked)


@pytest.fixture
def clone(lxc: Lxc, template: int, entry: Callable[..., Container]) -> Iterator[Callable[..., Container]]:
    """Makes clones of the template; they are gone in the end."""
    made: list[int] = []

    def make(ctid: int, *, full: bool = True) -> Container:
        container = entry(ctid, template=template)
        made.append(ctid)
        lxc.clone(template, container, full=full, description=DESCRIPTION)
        return container

    yield make
    for ctid in made:
        lxc.stop(ctid, timeout=10)
        if lxc.guest(ctid) is not None:
            lxc.destroy(ctid)
        assert lxc.guest(ctid) is None


def inside(lxc: Lxc, ctid: int, *argv: str, stdin: bytes | None = None) -> Done:
    return lxc.shell.ask(*lxc.inside(ctid, argv), stdin=stdin)


def up(lxc: Lxc, ctid: int) -> str:
    """What systemd says when it has done with starting, and which units failed."""
    deadline = time.monotonic() + 120
    while (state := inside(lxc, ctid, "systemctl", "is-system-running").text) in ("", "initializing", "starting"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return state + inside(lxc, ctid, "systemctl", "list-units", "--failed", "--plain", "--no-legend").text


class Hello(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"from the host")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(bridge: Bridge) -> Iterator[str]:
    """A web server on the bridge."""
    with HTTPServer((bridge.host, 0), Hello) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://{bridge.host}:{server.server_port}/"
        server.shutdown()


@pytest.mark.parametrize(("ctid", "full"), [(FULL, True), (LINKED, False)], ids=["full", "linked"])
class TestClone:
    def test_it_lives_and_goes(
        self, lxc: Lxc, clone: Callable[..., Container], bridge: Bridge, node: Path, web: str, ctid: int, full: bool
    ) -> None:
        assert lxc.can_link(TEMPLATE, None)
        container = clone(ctid, full=full)
        guest = lxc.guest(ctid)
        assert guest is not None
        assert (guest.name, guest.description, guest.running, guest.template, guest.lock) == (
            f"ct{ctid}",
            DESCRIPTION,
            False,
            False,
            "",
        )
        mount = f"lxc.mount.entry: {lxc.root.parent} srv/models none ro,bind,optional,create=dir"
        settings = Settings(container, ("builder", "more"), DESCRIPTION, (Device(str(node)),), (mount,))
        lxc.configure(settings)
        lxc.configure(settings)
        lxc.start(ctid)
        assert up(lxc, ctid) == "running"
        lxc.describe(ctid, "another", ("builder",))
        guest = lxc.guest(ctid)
        assert guest is not None
        assert (guest.running, guest.tags, guest.description) == (True, ("builder",), "another")

        self.check_inside(lxc, ctid, node)
        self.check_network(lxc, ctid, bridge, web)

        lxc.stop(ctid)
        lxc.start(ctid)
        assert up(lxc, ctid) == "running"
        with pytest.raises(BuilderError, match="runs"):
            lxc.destroy(ctid)
        if not full:
            with pytest.raises(BuilderError, match=f"has linked clones: {ctid} .ct{ctid}."):
                lxc.destroy(TEMPLATE)
        lxc.recover(ctid, TEMPLATE)
        assert lxc.guest(ctid) is not None, "recover leaves alone what is whole"

    def check_inside(self, lxc: Lxc, ctid: int, node: Path) -> None:
        shell = ("sh", "-c")
        assert [inside(lxc, ctid, *shell, end).status for end in ("exit 7", "kill -9 $$")] == [7, 137]
        assert inside(lxc, ctid, "no-such-command").status == 127
        assert inside(lxc, ctid, "cat", stdin=b"\0bytes\n").out == b"\0bytes\n"
        environment = dict(line.split("=", 1) for line in inside(lxc, ctid, "env").text.splitlines())
        assert {"PATH", "HOME", "TERM", "container"} <= set(environment)
        assert "LC_ALL" not in environment
        assert inside(lxc, ctid, "cat", "/etc/hostname", "/proc/sys/kernel/hostname").text == f"ct{ctid}\nct{ctid}"
        assert inside(lxc, ctid, "nproc").text == "1"
        limit = "cat /sys/fs/cgroup/memory.max || cat /sys/fs/cgroup/memory/memory.limit_in_bytes"
        assert inside(lxc, ctid, *shell, limit).text == str(512 << 20)
        reads = inside(lxc, ctid, "su", "nobody", "-s", "/bin/sh", "-c", f"head -c 3 {node}")
        assert reads.out == b"\0\0\0", reads.err
        assert inside(lxc, ctid, "ls", "/srv/models").text.split() == ["lxc", "subids"]
        assert inside(lxc, ctid, "touch", "/srv/models/new").status != 0
        gone = "rm -r /usr/share/doc && mkdir /usr/share/doc && ls -A /usr/share/doc && mv /etc/apt /etc/moved"
        done = inside(lxc, ctid, *shell, gone)
        assert (done.status, done.out) == (0, b""), done.err
        said = inside(lxc, ctid, "python3", "-c", FIND).text
        assert said == f"b'kept' True 0 2 {len(CAPABILITY)}"

    def check_network(self, lxc: Lxc, ctid: int, bridge: Bridge, web: str) -> None:
        get = f"import urllib.request; print(urllib.request.urlopen({web!r}, timeout=30).read().decode())"
        assert inside(lxc, ctid, "python3", "-c", get).text == "from the host"
        serve = ("systemd-run", "--quiet", "python3", "-m", "http.server", "8000", "--directory", "/etc")
        inside(lxc, ctid, *serve).check()
        url = f"http://{bridge.network}.{ADDRESSES[ctid]}:8000/hostname"
        deadline = time.monotonic() + 60
        while True:
            try:
                answer = urllib.request.urlopen(url, timeout=30).read()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        assert answer == f"ct{ctid}\n".encode()


FIND = """\
import os
named, holes = os.stat("/opt/named"), os.stat("/opt/holes")
capability = os.getxattr("/opt/named", "security.capability")
print(os.getxattr("/opt/named", "user.note"), named.st_ino == os.stat("/opt/linked").st_ino, end=" ")
print(holes.st_blocks, named.st_nlink, len(capability) + 4 * (len(capability) == 20))
"""
"""Inside, the kernel shows a container's own capability without the id of its root: 20 bytes."""


def test_a_template_is_only_cloned(lxc: Lxc, template: int) -> None:
    with pytest.raises(BuilderError, match="is a template, which is only cloned"):
        lxc.start(template)
    by_hand = lxc.shell.do("lxc-start", "-P", str(lxc.root), "-n", str(template), timeout=60)
    assert by_hand.status != 0
    assert not any(guest.running for guest in lxc.guests())


def test_a_start_that_fails_says_why_and_leaves_no_group(lxc: Lxc, clone: Callable[..., Container]) -> None:
    clone(BROKEN)
    before = _groups()
    (lxc.root / str(BROKEN) / "rootfs" / "sbin" / "init").unlink()
    with pytest.raises(BuilderError, match=r"No such file or directory.*init"):
        lxc.start(BROKEN)
    assert _groups() == before


def test_links_of_a_container_lead_nowhere_on_the_host(
    lxc: Lxc, clone: Callable[..., Container], tmp_path: Path
) -> None:
    container = clone(BROKEN)
    rootfs = lxc.root / str(BROKEN) / "rootfs"
    target = tmp_path / "hosts"
    target.write_text("the host's")
    tmp_path.chmod(0o777)
    target.chmod(0o666)
    (rootfs / "etc/hosts").unlink()
    (rootfs / "etc/hosts").symlink_to(target)
    shutil.rmtree(rootfs / "etc/network")
    (rootfs / "etc/network").symlink_to(tmp_path)
    with pytest.raises(BuilderError, match="network"):
        lxc.configure(Settings(container, (), ""))
    assert target.read_text() == "the host's"
    assert os.listdir(tmp_path) == ["hosts"]


@pytest.mark.parametrize("wait", [0.0, 0.2])
def test_a_killed_clone_shows_whose_it_is_and_is_taken_away(
    lxc: Lxc, template: int, bridge: Bridge, wait: float
) -> None:
    script = f"""
import sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from test_lxc_host import *
network = Network(bridge={bridge.name!r})
host(Path({str(lxc.root)!r})).clone({template}, Container({BROKEN}, "cut", network=network), full=True, description="d")
"""
    process = subprocess.Popen([sys.executable, "-c", script])
    while not (lxc.root / str(BROKEN)).exists():
        assert process.poll() is None
        time.sleep(0.002)
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    process.wait()
    guest = lxc.guest(BROKEN)
    assert guest is not None
    assert (guest.name, guest.description) == ("cut", "d")
    if guest.lock:
        with pytest.raises(BuilderError, match="was not finished"):
            lxc.start(BROKEN)
        lxc.recover(BROKEN, template)
    else:  # it was done before the signal came
        lxc.destroy(BROKEN)
    assert lxc.guest(BROKEN) is None
    assert lxc.guest(template) is not None
    assert os.listdir(lxc.root / ".builder") == ["templates"]


def test_a_full_disk_is_one_line_and_nothing_stays(folder: Path, smoke: Path, entry: Callable[..., Container]) -> None:
    small = folder.parent / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m,mode=755", "tmpfs", str(small)], check=True)
    try:
        lxc, container = host(small), entry(BROKEN)
        with pytest.raises(BuilderError, match="No space left on device"):
            lxc.upload(smoke, sha256(smoke.read_bytes()).hexdigest(), "r1")
        with pytest.raises(BuilderError, match="No space left on device") as error:
            lxc.create(container, str(smoke), Settings(container, (), ""))
        assert str(error.value).startswith(f"container {BROKEN}: tar: ")
        assert "\n" not in str(error.value)
        assert lxc.guests() == ()
        assert [path for path in small.rglob("*") if path.is_file()] == []
    finally:
        subprocess.run(["umount", str(small)], check=True)
        small.rmdir()


def test_foreign_containers_are_seen_and_never_removed(lxc: Lxc, entry: Callable[..., Container]) -> None:
    foreign = lxc.root / str(BROKEN)
    foreign.mkdir()
    (foreign / "config").write_text("lxc.uts.name = other\nlxc.mount.entry = /dev/nvidia0 dev/nvidia0 none bind\n")
    try:
        guest = lxc.guest(BROKEN)
        assert guest is not None
        assert (guest.name, guest.mark, guest.lock) == ("other", None, "")
        assert guest.raw == ("lxc.uts.name: other", "lxc.mount.entry: /dev/nvidia0 dev/nvidia0 none bind")
        lxc.recover(BROKEN, None)
        for take in (
            lambda: lxc.destroy(BROKEN),
            lambda: lxc.describe(BROKEN, "mine", ()),
            lambda: lxc.create(entry(BROKEN), "/no/file", Settings(entry(BROKEN), (), "")),
        ):
            with pytest.raises(BuilderError):
                take()
        assert os.listdir(foreign) == ["config"]
    finally:
        shutil.rmtree(foreign)


def test_a_dry_run_shows_the_commands_and_does_nothing(
    folder: Path, smoke: Path, entry: Callable[..., Container], node: Path
) -> None:
    empty = folder.parent / "empty"
    empty.mkdir()
    lxc, container = host(empty, dry=True), entry(FULL)
    settings = Settings(container, ("builder",), DESCRIPTION, (Device(str(node)),))
    volume = lxc.upload(smoke, "0" * 64, "r1")
    lxc.create(entry(TEMPLATE), volume, Settings(entry(TEMPLATE), (), ""))
    lxc.make_template(TEMPLATE)
    lxc.clone(TEMPLATE, container, full=False, description=DESCRIPTION)
    lxc.configure(settings)
    lxc.set_onboot(FULL, True)
    lxc.start(FULL)
    lxc.stop(FULL)
    lxc.destroy(FULL)
    shown = "\n".join(lxc.shell.record)
    places = [shown.index(word) for word in ("tar xpf", "lxc.hook.pre-start", "delta/upper", "lxc-start")]
    assert places == sorted(places)
    assert os.listdir(empty) == []
    empty.rmdir()


def test_a_privileged_container_has_its_devices_and_no_others(
    lxc: Lxc, smoke: Path, entry: Callable[..., Container], node: Path
) -> None:
    base, server = entry(ROOTED, unprivileged=False), entry(ROOTED + 1, unprivileged=False)
    lxc.create(base, str(smoke), Settings(base, (), ""))
    lxc.make_template(ROOTED)
    with pytest.raises(BuilderError, match="is privileged, and so are its clones"):
        lxc.clone(ROOTED, entry(ROOTED + 1), full=False, description="")
    lxc.clone(ROOTED, server, full=False, description="")
    loop = Device("/dev/loop-control", "0600")
    lxc.configure(Settings(server, (), "", (Device(str(node)), loop)))
    lxc.start(server.ctid)
    assert up(lxc, server.ctid) == "running"
    assert inside(lxc, server.ctid, "cat", "/proc/self/uid_map").text.split()[:2] == ["0", "0"]
    assert inside(lxc, server.ctid, "head", "-c", "3", str(node)).out == b"\0\0\0"
    opened = "import os; os.open('/dev/loop-control', os.O_RDWR); os.mknod('/root/ram', 0o20600, os.makedev(1, 1)); "
    done = inside(lxc, server.ctid, "python3", "-c", f"{opened}print('made'); os.open('/root/ram', 0)")
    assert (done.status, done.text) == (1, "made")
    assert b"Operation not permitted" in done.err
    lxc.stop(server.ctid)
    lxc.destroy(server.ctid)
    lxc.destroy(ROOTED)
