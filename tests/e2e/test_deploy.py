"""`builder deploy` into real unprivileged containers, with a small program in place of vLLM: what users see when it
works, when it fails, and when somebody pulls the plug."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import User
from container import traces
from deploying import SIMULATED, Site, deploy, models, site

pytestmark = [pytest.mark.e2e, pytest.mark.lxc]

ROWS = [
    (921, "sim-fp8", "good", 21),
    (922, "sim-lab", "good", 22),
    (950, "sim-start", "fails-at-start", 50),
    (951, "sim-first", "fails-at-first-answer", 51),
    (952, "sim-never", "never-healthy", 52),
]
STEPS = ("template", "clone", "configure", "start", "ssh host keys", "serve")


@pytest.fixture(scope="module")
def place(root_user: User) -> Iterator[Site]:
    with site(root_user, SIMULATED, ROWS) as made:
        done = made.builder("template", "recipes/simulated-vllm")
        assert done.returncode == 0, done.stderr
        yield made


@pytest.fixture
def here(place: Site) -> Iterator[Site]:
    """The site with nothing on it; nothing may be left of it in the machine afterwards."""
    place.clear()
    yield place
    place.clear()
    assert traces(str(place.lxc)) == []


def api_key(here: Site, name: str) -> str:
    (path,) = [path for path in (here.state / "keys").rglob(name) if path.is_file()]
    assert path.stat().st_mode & 0o777 == 0o600
    return path.read_text().strip()


def test_from_nothing_to_an_answer_and_back(here: Site) -> None:
    done = deploy(here, 921)
    assert done.returncode == 0, done.stderr
    assert "sim-fp8: container 921" in done.stdout
    assert here.containers() == ["920", "921"]
    assert here.running() == ["921"]
    key = api_key(here, "sim-fp8")
    assert models(here, 21, key) == 200
    assert models(here, 21) == 401
    journal = here.inside(921, "journalctl", "--no-pager", "-o", "cat").stdout
    assert "completion of" in journal
    for text in (done.stdout, done.stderr, journal, here.journal(921).read_text()):
        assert key not in text
    assert here.inside(921, "stat", "-c", "%a %U", "/etc/vllm/env").stdout == "600 root\n"
    assert here.inside(921, "systemctl", "is-system-running").stdout == "running\n"

    again = deploy(here, 921)
    assert again.returncode == 2
    assert "deployed already" in again.stderr
    assert "--replace" in again.stderr

    assert here.on_host("destroy", "921", "--yes").returncode == 0
    assert here.containers() == ["920"]
    assert here.json("templates", "gc")["removed"] == [920]
    assert here.containers() == []


def test_a_dry_run_prints_the_commands_and_changes_nothing(here: Site) -> None:
    before = sorted(path.name for path in here.lxc.rglob("*"))
    printed = here.passes("deploy", "--ctid", "921", "--dry-run").splitlines()
    assert sorted(path.name for path in here.lxc.rglob("*")) == before
    assert not here.state.exists()
    text = "\n".join(printed)
    assert text.index("920") < text.index("921")
    assert "lxc-start" in text
    assert text.index("lxc-start") < text.index("vllm.service")


def test_two_clones_share_one_template_with_host_keys_of_their_own(here: Site) -> None:
    with here.popen("deploy", "--host", here.host, "--ctid", "921") as first:
        second = deploy(here, 922)
        _, said = first.communicate(timeout=120)
    assert (first.returncode, second.returncode) == (0, 0), said + second.stderr
    assert here.containers() == ["920", "921", "922"]
    show = ("cat", "/etc/ssh/ssh_host_ed25519_key.pub")
    keys = {here.inside(ctid, *show).stdout for ctid in (921, 922)}
    assert len(keys) == 2
    assert "" not in keys
    assert {row["name"]: row["ctid"] for row in here.json("status")["deployments"]} == {"sim-fp8": 921, "sim-lab": 922}


@pytest.mark.parametrize(
    ("ctid", "says"),
    [(950, "simulated failure at start"), (951, "Block size must be at least 32 for fp8")],
)
def test_a_server_that_does_not_come_up_is_told_with_its_own_log_and_taken_back(
    here: Site, ctid: int, says: str
) -> None:
    done = deploy(here, ctid)
    assert done.returncode == 1
    assert "step serve" in done.stderr
    assert says in done.stderr.splitlines()[-1]
    assert "run the same command again" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert here.containers() == []


def test_a_server_that_never_answers_is_given_up_at_the_deadline(here: Site) -> None:
    done = deploy(here, 952, "--deadline", "8")
    assert done.returncode == 1
    assert "8" in done.stderr.splitlines()[-1]
    assert here.containers() == []


def test_the_fallback_serves_when_the_profile_does_not(here: Site) -> None:
    done = deploy(here, 951, "--fallback", "good")
    assert done.returncode == 0, done.stderr
    assert "Block size" in done.stderr
    assert "trying good" in done.stderr
    assert "serves good" in done.stdout
    (row,) = here.json("status")["deployments"]
    assert (row["ctid"], row["profile"]) == (951, "good")


@pytest.mark.parametrize("step", STEPS)
def test_after_a_kill_in_any_step_a_roll_back_restores_the_old_state(here: Site, step: str) -> None:
    here.killed_in(step, 921)
    refused = deploy(here, 921)
    assert refused.returncode == 1
    assert "unfinished" in refused.stderr
    assert "builder rollback 921" in refused.stderr
    here.passes("rollback", "921")
    assert here.containers() == []
    assert here.running() == []
    assert here.on_host("rollback", "921").returncode == 2


@pytest.mark.parametrize(("step", "wait"), [("template", 0.1), ("template", 0.6), ("clone", 0.15), ("serve", 0.4)])
def test_after_a_kill_in_a_step_a_resume_finishes(here: Site, step: str, wait: float) -> None:
    here.killed_in(step, 921, wait=wait)
    here.passes("deploy", "--ctid", "921", "--resume")
    assert here.containers() == ["920", "921"]
    assert models(here, 21, api_key(here, "sim-fp8")) == 200


@pytest.mark.parametrize("number", [*range(5), *(pytest.param(n, marks=pytest.mark.full) for n in range(5, 30))])
def test_after_a_kill_at_a_random_moment_everything_can_be_taken_back(here: Site, number: int) -> None:
    moment = random.Random(f"{number} {os.getpid()}").uniform(0.3, 6)
    process = here.popen("deploy", "--host", here.host, "--ctid", "921")
    try:
        process.wait(moment)
    except subprocess.TimeoutExpired:
        process.kill()
    process.communicate(timeout=60)
    if process.returncode == 0 or not list((here.state / "deploy").rglob("journal.jsonl")):
        return
    done = here.on_host("rollback", "921")
    if "the last one has ended (deployed)" in done.stderr:  # killed when nothing was left to do but to say so
        assert here.containers() == ["920", "921"], f"killed after {moment:.2f} s"
        assert models(here, 21, api_key(here, "sim-fp8")) == 200
        return
    assert done.returncode == 0, done.stderr
    assert here.containers() == [], f"killed after {moment:.2f} s"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", ["template", "serve"])
def test_an_interrupt_takes_everything_back(here: Site, step: str, number: int) -> None:
    said = here.killed_in(step, 921, "--profile", "never-healthy", number=number)
    assert "interrupted" in said
    assert here.containers() == []
    assert '"rolled back"' in here.journal(921).read_text()


def test_a_container_that_somebody_else_made_is_never_touched(here: Site) -> None:
    foreign = here.lxc / "921"
    (foreign / "rootfs").mkdir(parents=True)
    (foreign / "config").write_text(f"lxc.uts.name = foreign\nlxc.rootfs.path = dir:{foreign}/rootfs\n")
    (foreign / "rootfs" / "precious").write_text("mine")
    for command in (("deploy", "--ctid", "921"), ("deploy", "--ctid", "921", "--replace"), ("destroy", "921", "--yes")):
        done = here.on_host(*command)
        assert done.returncode == 2, done.stderr
    assert (foreign / "rootfs" / "precious").read_text() == "mine"
    assert here.containers() == ["921"]


def test_replace_keeps_the_old_one_until_the_new_one_answers(here: Site) -> None:
    here.passes("deploy", "--ctid", "921")
    here.passes("deploy", "--ctid", "921", "--replace")
    assert here.containers() == ["920", "921", "931"]
    assert here.running() == ["931"]
    assert models(here, 21, api_key(here, "sim-fp8")) == 200
    here.passes("destroy", "sim-fp8", "--old", "--yes")
    assert here.containers() == ["920", "931"]
    assert here.running() == ["931"]


def test_a_replacement_that_fails_leaves_the_old_one_serving(here: Site) -> None:
    here.passes("deploy", "--ctid", "921")
    before = (here.lxc / "921" / "config").read_bytes()
    done = deploy(here, 921, "--replace", "--profile", "fails-at-first-answer")
    assert done.returncode == 1
    assert here.containers() == ["920", "921"]
    assert here.running() == ["921"]
    assert (here.lxc / "921" / "config").read_bytes() == before
    for _ in range(60):
        try:
            assert models(here, 21, api_key(here, "sim-fp8")) == 200
            break
        except OSError:
            subprocess.run(["sleep", "0.5"], check=True)
    else:
        pytest.fail("the old one does not answer")


def test_a_kill_in_the_middle_of_a_replacement_is_rolled_back_to_the_old_one(here: Site) -> None:
    here.passes("deploy", "--ctid", "921")
    here.killed_in("start", 921, "--replace")
    here.passes("rollback", "921")
    assert here.containers() == ["920", "921"]
    assert here.running() == ["921"]


def test_two_deploys_of_one_container_do_not_meet(here: Site) -> None:
    with here.popen("deploy", "--host", here.host, "--ctid", "921") as first:
        while not (here.state / "deploy").exists() or not list((here.state / "deploy").rglob("journal.jsonl")):
            assert first.poll() is None
        second = deploy(here, 921)
        _, said = first.communicate(timeout=120)
    assert first.returncode == 0, said
    assert second.returncode == 1
    assert f"process {first.pid}" in second.stderr


def test_a_bridge_that_goes_away_stops_the_start_and_everything_is_taken_back(here: Site) -> None:
    name = f"gone{os.getpid()}"
    subprocess.run(["ip", "link", "add", name, "type", "bridge"], check=True)
    try:
        with here.popen("deploy", "--host", here.host, "--ctid", "921", "--bridge", name) as process:
            while not here.state.exists() or '"clone"' not in here.events(921):
                assert process.poll() is None
            subprocess.run(["ip", "link", "delete", name], check=True)
            _, said = process.communicate(timeout=60)
    finally:
        subprocess.run(["ip", "link", "delete", name], capture_output=True)
    assert process.returncode == 1
    assert "step start: " in said
    assert here.containers() == []


def test_a_template_that_is_damaged_on_its_way_is_refused(here: Site) -> None:
    (path,) = (here.folder / "artifacts").glob("*.tar.zst")
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:-1000] + bytes([whole[-1000] ^ 1]) + whole[-999:])
        done = deploy(here, 921)
    finally:
        path.write_bytes(whole)
    assert done.returncode == 1
    assert "sha256" in done.stderr
    assert "step template" in done.stderr
    assert here.containers() == []
    assert not list((here.lxc / ".builder").rglob("*.tar.zst*"))


@pytest.mark.parametrize(("megabytes", "step"), [(190, "template"), (330, "clone")])
def test_a_full_disk_is_one_line_and_everything_is_taken_back(
    here: Site, tmp_path: Path, megabytes: int, step: str
) -> None:
    image = tmp_path / "disk"
    with open(image, "wb") as file:
        os.truncate(file.fileno(), megabytes << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    small = here.lxc / "small"
    small.mkdir()
    subprocess.run(["mount", "-o", "loop", str(image), str(small)], check=True)
    try:
        (small / "lost+found").rmdir()
        small.chmod(0o755)
        done = here.builder("deploy", "--host", f"lxc:{small}", "--ctid", "921", "--full")
        assert done.returncode == 1
        (said,) = [line for line in done.stderr.splitlines() if line.startswith("builder: ")]
        assert f"step {step}" in said
        assert "No space left on device" in said
        assert [path.name for path in small.iterdir() if path.name.isdigit()] == []
    finally:
        subprocess.run(["umount", str(small)], check=True)
        small.rmdir()
