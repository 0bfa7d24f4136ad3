"""What a command in the sandbox sees, keeps and may do; all of it as root and as an ordinary user."""

from __future__ import annotations

import dataclasses
import json
import os
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from builder.sandbox import Bind, Limits, Spec, Stop, StoppedError, run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120), pytest.mark.usefixtures("no_leftovers")]

PROGRAM = """
import json, os, stat, sys
from pathlib import Path
from builder.errors import BuilderError
from builder.sandbox import Bind, Limits, Spec, run
from builder.sandbox.userns import become_root
become_root()
given = json.loads(sys.argv[1])
for name in ("upper", "work"):
    given[name] = given[name] and Path(given[name])
given["layers"] = tuple(map(Path, given["layers"]))
given["binds"] = tuple(Bind(Path(b["source"]), b["target"], b["writable"]) for b in given["binds"])
given["limits"] = Limits(**given["limits"])
given["argv"] = tuple(given["argv"])
log = Path(sys.argv[2])
error = ""
os.umask(0o077)
try:
    run(Spec(**given), log=log)
except BuilderError as failure:
    error = str(failure)
kept = {}
for folder, folders, files in os.walk(given["upper"] or "/nonexistent"):
    for path in (Path(folder, name) for name in folders + files):
        about = path.lstat()
        kind = "whiteout" if stat.S_ISCHR(about.st_mode) and about.st_rdev == 0 else stat.filemode(about.st_mode)
        kept[str(path.relative_to(given["upper"]))] = f"{kind} {about.st_uid}:{about.st_gid}"
print(json.dumps({"error": error, "kept": kept}), file=sys.stderr if given["interactive"] else sys.stdout)
"""


@dataclasses.dataclass
class Result:
    error: str
    kept: dict[str, str]
    said: str


class World:
    """A root of one layer, with the host's programs bound in, for one user."""

    def __init__(self, user: Any, home: Path) -> None:
        self.user, self.home = user, home
        self.layer, self.upper, self.work = home / "layer", home / "upper", home / "work"
        for folder in ("usr", "etc", "root", "proc", "sys", "dev", "run", "tmp"):
            (self.layer / folder).mkdir(parents=True)
        self.upper.mkdir()
        self.work.mkdir()
        self.binds = [Bind(Path("/usr"), "/usr")]
        for name in ("bin", "sbin", "lib", "lib64"):
            if Path("/", name).is_symlink():
                (self.layer / name).symlink_to(os.readlink(f"/{name}"))
            else:
                (self.layer / name).mkdir()
                self.binds.append(Bind(Path("/", name), f"/{name}"))
        self.own(home)

    def own(self, folder: Path) -> None:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, self.user.uid, self.user.gid, follow_symlinks=False)

    def spec(self, script: str, **more: Any) -> Spec:
        more.setdefault("layers", (self.layer,))
        more.setdefault("upper", self.upper)
        more["binds"] = (*(() if more.get("host_root") else self.binds), *more.get("binds", ()))
        more.setdefault("argv", ("/bin/bash", "-c", script))
        return Spec(name="test", work=self.work, **more)

    def command(self, spec: Spec, log: Path) -> list[str]:
        wire = json.dumps(dataclasses.asdict(spec), default=str)
        return [self.user.python, "-c", PROGRAM, wire, str(log)]

    def run(self, script: str, *, log: Path | None = None, **more: Any) -> Result:
        log = log or self.home / "log"
        before = log.stat().st_size if log.exists() else 0
        done = self.user.run(self.command(self.spec(script, **more), log))
        assert done.returncode == 0, done.stderr.decode()
        answer = json.loads(done.stdout)
        return Result(answer["error"], answer["kept"], log.read_text()[before:] if log.is_file() else "")

    def start(self, script: str, **more: Any) -> subprocess.Popen[bytes]:
        """Start a run and return once its script has said "ready"."""
        log = self.home / "log"
        process = self.user.popen(self.command(self.spec(f"echo ready; {script}", **more), log), stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while not (log.exists() and "ready" in log.read_text()):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return process


@pytest.fixture
def world(user: Any) -> Iterator[World]:
    home = user.home / "world"
    home.mkdir()
    yield World(user, home)
    shutil.rmtree(home)


def test_sees_a_fixed_world(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    script = """
        id -u; hostname; umask; pwd; ulimit -n; ulimit -c; readlink /proc/self/fd/0; ls /proc/$$/fd | tr '\\n' ' '; echo
        ls / /sys/devices/system /run /tmp; ls -d /proc/[0-9]* | wc -l; stat -c %a /tmp /dev/shm /
        grep NoNewPrivs /proc/self/status
    """
    said = world.run(script).said.split("\n")
    assert said[:7] == ["0", "builder", "0022", "/", "1024", "0", "/dev/null"]
    assert said[7] in ("0 1 2 255 ", "0 1 2 ")  # 255 is bash's own
    assert "cpu" in said
    assert "net" not in said
    assert said[-6:-2] in (["3", "1777", "1777", "755"], ["4", "1777", "1777", "755"])
    assert said[-2].split() == ["NoNewPrivs:", "1"]


def test_environment_holds_nothing_of_the_callers(world: World) -> None:
    said = world.run("", argv=("/usr/bin/env",), env={"SOURCE_DATE_EPOCH": "1", "TZ": "Asia/Tokyo"}).said
    assert sorted(said.splitlines()) == [
        "DEBIAN_FRONTEND=noninteractive",
        "HOME=/root",
        "LANG=C.UTF-8",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "SOURCE_DATE_EPOCH=1",
        "TZ=Asia/Tokyo",
    ]


def test_devices_work(world: World) -> None:
    script = """
        set -e
        head -c 5 /dev/zero | wc -c; head -c 5 /dev/urandom | wc -c; echo x > /dev/null; test ! -s /dev/null
        echo out > /dev/stdout; cat < /dev/fd/0; touch /dev/shm/x
        python3 -c 'import os; a, b = os.openpty(); print(os.ttyname(b))'
        ! echo x > /dev/full
    """
    result = world.run(script)
    assert result.error == ""
    assert "/dev/pts/0" in result.said


def test_keeps_only_what_the_command_changed(world: World) -> None:
    (world.layer / "etc/old").write_text("old")
    (world.layer / "etc/gone").write_text("gone")
    (world.layer / "etc/folder").mkdir()
    world.own(world.layer)
    result = world.run("""
        set -e
        rm /etc/gone; echo new > /etc/new; chown 33:33 /etc/new; echo more >> /etc/old; touch /tmp/t /run/r
        rmdir /etc/folder; mkdir /etc/folder
    """)
    assert result.error == ""
    assert result.kept == {
        "etc": "drwxr-xr-x 0:0",
        "etc/gone": "whiteout 0:0",
        "etc/new": "-rw-r--r-- 33:33",
        "etc/old": "-rw-r--r-- 0:0",
        "etc/folder": "drwxr-xr-x 0:0",
    }
    assert "user.overlay.opaque" in os.listxattr(world.upper / "etc/folder")
    assert (world.layer / "etc/gone").exists()


def test_the_same_upper_takes_several_runs(world: World) -> None:
    assert world.run("echo 1 > /one").error == ""
    assert world.run("cat /one && echo 2 > /two").error == ""
    assert sorted(world.run("rm /one").kept) == ["two"]


def test_without_upper_the_root_is_read_only(world: World) -> None:
    result = world.run("touch /tmp/ok /run/ok && touch /etc/x", upper=None)
    assert "Read-only file system" in result.error


def test_many_layers_with_long_and_odd_names(world: World) -> None:
    folder = world.home / ("long" * 40) / "a:b,c\\d é"
    layers = []
    for number in range(150):
        layer = folder / str(number)
        layer.mkdir(parents=True)
        (layer / "top").write_text(str(number))
        (layer / f"in-{number}").touch()
        layers.append(layer)
    world.own(world.home / ("long" * 40))
    result = world.run("cat /top; echo; ls -d /in-* | wc -l", layers=(world.layer, *layers))
    assert (result.error, result.said.split()) == ("", ["149", "150"])


def test_binds_are_read_only_unless_asked_and_leave_no_trace(world: World) -> None:
    for name in ("in", "out"):
        (world.home / name).mkdir()
    (world.home / "in/file").write_text("given")
    world.own(world.home)
    binds = (
        Bind(world.home / "in", "/run/builder/in"),
        Bind(world.home / "in/file", "/run/builder/file"),
        Bind(world.home / "out", "/run/builder/out", writable=True),
    )
    result = world.run(
        "cat /run/builder/in/file /run/builder/file; echo > /run/builder/out/made; touch /run/builder/in/x", binds=binds
    )
    assert result.said.startswith("givengiven")
    assert "/run/builder/in/x': Read-only file system" in result.error
    assert (world.home / "out/made").exists()
    assert result.kept == {}


def test_a_bind_makes_no_folder_in_a_layer(world: World) -> None:
    result = world.run("true", binds=(Bind(Path("/etc"), "/opt/etc"),))
    assert "cannot bind to /opt/etc: no such place in the layers (use one below /run/builder)" in result.error
    assert result.kept == {}


def test_a_link_in_a_layer_does_not_lead_a_bind_out(world: World) -> None:
    outside = world.home / "outside"
    outside.mkdir()
    (world.layer / "trap").symlink_to(outside)
    world.own(world.home)
    world.run("ls /trap", binds=(Bind(Path("/etc/hostname"), "/trap/file"),))
    assert list(outside.iterdir()) == []


def test_the_kernel_of_the_host_is_out_of_reach(world: World) -> None:
    result = world.run("""
        echo x > /proc/sys/kernel/core_pattern; mount -t tmpfs x /tmp; mknod /disk b 254 0; date -s 2001-01-01
        ip link set lo up; cat /proc/1/environ; ls /proc/1/root/; echo end
    """)
    assert result.error == ""
    assert len([line for line in result.said.splitlines() if re.search("denied|permitted|Read-only", line)]) == 7
    assert result.kept == {}


def test_no_network_and_a_hint(world: World) -> None:
    server = socket.create_server(("127.0.0.1", 0))
    with server:
        result = world.run(f"exec 3<>/dev/tcp/127.0.0.1/{server.getsockname()[1]}")
    assert "Network is unreachable" in result.error
    assert "stages have no network: lock the input instead" in result.error
    assert "stage test" in result.error


def test_network_when_asked(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        script = f"exec 3<>/dev/tcp/127.0.0.1/{server.getsockname()[1]} && cat /etc/resolv.conf"
        result = world.run(script, network=True)
    assert result.error == ""
    assert result.said == Path("/etc/resolv.conf").read_text()


def test_a_failure_names_stage_command_exit_and_last_lines(world: World) -> None:
    result = world.run("echo first; echo 'it broke' >&2; exit 3")
    assert result.error.startswith("stage test: /bin/bash -c ")
    assert "exit 3: first | it broke; all output is in " in result.error
    assert result.error.endswith("/world/log")
    assert result.said == "first\nit broke\n"
    assert (world.home / "log").stat().st_mode & 0o777 == 0o600


def test_death_by_a_signal_is_named(world: World) -> None:
    assert "killed by SIGSEGV" in world.run("kill -SEGV $$").error


def test_a_missing_command_and_folder_are_named(world: World) -> None:
    assert world.run("", argv=("nosuch", "x")).error.startswith("stage test: nosuch x: command not found in the layers")
    assert "no such folder /nowhere" in world.run("true", cwd="/nowhere").error


def test_a_missing_source_is_named(world: World) -> None:
    result = world.run("true", binds=(Bind(world.home / "nosuch", "/run/builder/x"),))
    assert f"cannot bind {world.home}/nosuch: No such file or directory" in result.error


def test_a_missing_layer_is_named(world: World) -> None:
    result = world.run("true", layers=(world.layer, world.home / "nosuch"))
    assert f"cannot use {world.home}/nosuch as a layer: no such folder" in result.error


def test_a_log_that_cannot_be_written_ends_the_run(world: World) -> None:
    assert world.run("yes", log=Path("/dev/full")).error == "/dev/full: cannot write: No space left on device"
    assert world.run("yes", log=Path("/nosuch/log")).error == "/nosuch/log: cannot write: No such file or directory"


def test_what_stays_in_the_background_is_ended(world: World) -> None:
    marker = f"{time.time_ns()}"
    assert world.run(f"setsid sleep {marker} & exit 0").error == ""
    assert _sleeping(marker) == 0


def test_time_limit(world: World) -> None:
    result = world.run("sleep 600 & setsid sleep 600 & wait", limits=Limits(seconds=1))
    assert re.search(r"stage test: .*: ran for 1 s, its limit; raise TimeoutSeconds of the stage", result.error)


HOLD = "import sys, time; held = bytearray(int(sys.argv[1]) << 20); print('held', flush=True); time.sleep(60)"


def test_memory_limit_counts_all_processes(world: World) -> None:
    script = f'python3 -c "{HOLD}" 60 & python3 -c "{HOLD}" 60 & wait'
    result = world.run(script, limits=Limits(memory_mib=100))
    used = re.search(r"stage test: .*: used (\d+) MiB, over its limit of 100 MiB", result.error)
    assert used
    assert 100 < int(used[1]) < 160
    assert "raise MemoryMiB of the stage" in result.error


def test_memory_limit_counts_files_in_tmp(world: World) -> None:
    result = world.run("head -c 80M /dev/zero > /tmp/file; sleep 60", limits=Limits(memory_mib=50))
    assert "over its limit of 50 MiB" in result.error


def test_memory_shared_after_a_fork_counts_once(world: World) -> None:
    script = "import os, time; held = bytearray(60 << 20); pids = [os.fork() for _ in range(2)]; time.sleep(1)"
    assert world.run("", argv=("python3", "-c", script), limits=Limits(memory_mib=120)).error == ""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_ending_the_builder_ends_all(world: World, number: signal.Signals) -> None:
    marker = f"{time.time_ns()}"
    process = world.start(f"setsid sleep {marker} & sleep {marker}")
    _wait_for(2, marker)
    process.send_signal(number)
    process.communicate()
    _wait_for(0, marker)


def _wait_for(count: int, marker: str, state: str = "") -> None:
    deadline = time.monotonic() + 60
    while _sleeping(marker, state) != count and time.monotonic() < deadline:
        time.sleep(0.02)
    assert _sleeping(marker, state) == count


def _sleeping(marker: str, state: str = "") -> int:
    """How many `sleep MARKER` there are whose state, as ps(1) says it, begins so; "S+" is one that has the terminal."""
    done = subprocess.run(["ps", "-ewwo", "stat=,args="], capture_output=True, text=True, check=True)
    rows = (line.split(maxsplit=1) for line in done.stdout.splitlines())
    return sum(row[1:] == [f"sleep {marker}"] and row[0].startswith(state) for row in rows)


def test_a_pulled_switch_ends_the_run_and_all_that_follow(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    stop, marker = Stop(), tmp_path / "began"
    binds = (Bind(tmp_path, "/run/builder/out", writable=True),)
    spec = Spec("forever", ("sh", "-c", "touch /run/builder/out/began; sleep 1000"), host_root=True, binds=binds)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run, spec, stop=stop)
        deadline = time.monotonic() + 30
        while not marker.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        stop.pull()
        with pytest.raises(StoppedError):
            running.result(30)
    with pytest.raises(StoppedError):
        run(spec, stop=stop)


def test_host_root_is_read_only_but_for_the_writable_bind(world: World) -> None:
    target = world.home / "target"
    target.mkdir()
    world.own(target)
    script = """
        echo made > /run/builder/target/file; ls /tmp
        touch /etc/x; touch /usr/x; mount -t tmpfs x /mnt && echo mounted
    """
    bind = Bind(target, "/run/builder/target", writable=True)
    result = world.run(script, host_root=True, layers=(), upper=None, binds=(bind,))
    assert (target / "file").read_text() == "made\n"
    assert result.said.count("Read-only file system") == 2
    assert result.said.endswith("mounted\n")


def test_interactive_keeps_the_terminal_with_job_control(world: World) -> None:
    ours, theirs = pty.openpty()
    spec = world.spec("", argv=("/bin/bash", "--norc", "-i"), env={"PS1": "ready> "}, interactive=True)
    argv = ["setsid", "--ctty", *world.command(spec, world.home / "log")]
    process = world.user.popen(argv, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = _type(ours, "ready> ", None)
    assert "no job control" not in said
    _type(ours, "ready> ", "echo kept > /kept\n")
    marker = f"{time.time_ns()}"
    os.write(ours, f"sleep {marker}\n".encode())
    _wait_for(1, marker, state="S+")
    assert "Stopped" in _type(ours, "ready> ", "\x1a")
    assert f"sleep {marker}" in _type(ours, "ready> ", "jobs\n")
    os.write(ours, b"fg\n")
    _wait_for(1, marker, state="S+")
    _type(ours, "ready> ", "\x03")
    assert "rc=130" in _type(ours, "ready> ", "echo rc=$?\n")
    os.write(ours, b"exit\n")
    said = _type(ours, '"kept"', None)
    assert process.wait(60) == 0
    assert '"error": ""' in said
    os.close(ours)


def _type(terminal: int, until: str, text: str | None) -> str:
    """Type `text` and return what is shown up to and with `until`."""
    if text is not None:
        os.write(terminal, text.encode())
    said = ""
    deadline = time.monotonic() + 60
    while until not in said.replace(text or "\0", ""):
        assert time.monotonic() < deadline, said
        if select.select([terminal], [], [], 0.2)[0]:
            said += os.read(terminal, 4096).decode()
    return said


FORBIDDEN = """
import os, sys
from pathlib import Path
from builder.errors import BuilderError
from builder.sandbox import linux
from builder.sandbox.userns import become_root
uid, gid = map(int, sys.argv[1:])
ready, go = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    linux.unshare(linux.CLONE_NEWUSER)
    os.write(ready[1], b"1")
    os.read(go[0], 1)
    Path("/proc/sys/user/max_user_namespaces").write_text("0")
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    try:
        become_root()
    except BuilderError as error:
        print(error, flush=True)
    os._exit(0)
os.read(ready[0], 1)
for ids in ("uid_map", "gid_map"):
    Path(f"/proc/{child}/{ids}").write_text("0 0 4294967295")
os.write(go[1], b"1")
os.waitpid(child, 0)
"""


def test_forbidden_user_namespaces_are_told_with_the_mend(root_user: Any, ordinary_user: Any) -> None:
    """In a user namespace of the test's own, where the setting can be changed without harm."""
    done = root_user.run([root_user.python, "-c", FORBIDDEN, str(ordinary_user.uid), str(ordinary_user.gid)])
    assert done.stdout.decode() == (
        "user namespaces are not allowed; run: sudo sysctl -w user.max_user_namespaces=65536\n"
    )


def test_doctor_is_content_with_this_machine(user: Any) -> None:
    done = user.builder("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert [check for check in checks.values() if check["status"] == "fail"] == []
    assert done.returncode == 0
    assert checks["sandbox"]["status"] == "ok"
    assert ("user namespace" in checks) == (user.name != "root")
