"""Only what a run made itself is touched: not copies of it, nor what has got its id since, nor what others need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from builder.deploy import profile as profiles
from builder.deploy import run as runs
from builder.deploy.deployments import deployments, find, template_of
from builder.deploy.host.base import Capabilities
from builder.deploy.journal import Journal, folder_of
from builder.deploy.model import Container, Guest, Mark, Settings
from builder.deploy.plan import Plan, Replaced, Source
from builder.deploy.profile.secrets import Secrets
from builder.deploy.shell import Done, Shell
from builder.deploy.steps import Deploy, operations, steps
from builder.errors import BuilderError, UsageError
from builder.progress import Silent

DIGEST = "ab" * 32


class SimulatedChannel:
    """Every command succeeds and says nothing."""

    name = "simulated"

    def run(self, argv: Any, **options: Any) -> Done:
        return Done(tuple(argv), 0, b"", b"")


@dataclass
class SimulatedHost:
    """Containers that are started, stopped and destroyed; `meanwhile` happens while `recover` and an import wait."""

    all: dict[int, Guest]
    meanwhile: Callable[[], None] = lambda: None
    files: set[str] = field(default_factory=set)
    name: str = "simulated"
    capabilities: Capabilities = field(default_factory=lambda: Capabilities(True, True, False))
    shell: Shell = field(default_factory=lambda: Shell(SimulatedChannel()))

    def guests(self) -> tuple[Guest, ...]:
        return tuple(self.all.values())

    def guest(self, ctid: int) -> Guest | None:
        return self.all.get(ctid)

    def find_upload(self, name: str, sha256: str) -> str | None:
        return "files:t.tar.zst" if "t.tar.zst" in self.files else None

    def upload(self, file: Path, sha256: str, run: str) -> str:
        self.files.add(f"{run}-{file.name}")
        return f"files:{run}-{file.name}"

    def forget_upload(self, name: str, sha256: str, run: str) -> bool:
        own = {f"{run}-{name}", f"{run}-{name}.part"} & self.files
        self.files -= own
        return bool(own)

    def create(self, container: Container, volume: str, settings: Settings) -> None:
        assert volume.partition(":")[2] in self.files
        self.all[container.ctid] = Guest(container.ctid, container.name, description=settings.description, config={})

    def make_template(self, ctid: int) -> None:
        self.all[ctid] = replace(self.all[ctid], template=True)
        self.meanwhile()

    def recover(self, ctid: int, template: int | None) -> None:
        self.meanwhile()
        if self.all[ctid].lock == "create":
            del self.all[ctid]

    def start(self, ctid: int) -> None:
        self.all[ctid] = replace(self.all[ctid], running=True)

    def stop(self, ctid: int, *, timeout: int = 60) -> None:
        self.all[ctid] = replace(self.all[ctid], running=False)

    def set_onboot(self, ctid: int, onboot: bool) -> None:
        self.all[ctid] = replace(self.all[ctid], config={"onboot": f"{onboot:d}"})

    def configure(self, settings: Settings) -> None:
        self.set_onboot(settings.container.ctid, settings.container.onboot)

    def destroy(self, ctid: int) -> None:
        assert not self.all[ctid].running
        del self.all[ctid]


def made(ctid: int, name: str = "fp8", run: str = "r1", role: str = "server", **more: Any) -> Guest:
    mark = Mark(run, name, role, DIGEST, "t", made="2026-01-01", ctid=ctid)
    values: dict[str, Any] = {"template": role == "template", "config": {}, **more}
    return Guest(ctid, name, description=mark.line(), **values)


def host_of(*guests: Guest) -> Any:
    return SimulatedHost({guest.ctid: guest for guest in guests})


def plan_of(replaces: Replaced | None = None, **more: Any) -> Plan:
    profile = profiles.load(Path(__file__).parents[3] / "recipes/vllm-cpu", "cpu")
    container = Container(930 if replaces else 921, "fp8", onboot=True)
    source = Source("t.tar.zst", DIGEST, "t", 1, None)  # type: ignore[arg-type]
    template = Container(920, "t")
    values: dict[str, Any] = {"fallback": None, "full": False, "volume": None, "listen": None, "unit": False}
    return Plan("r2", "2026", source, template, container, profile, replaces=replaces, had_unit=False, **values, **more)


def do(host: Any, plan: Plan, name: str) -> None:
    (step,) = [step for step in steps(Deploy(plan, host, Secrets(), Silent(), 1)) if step.name == name]
    step.run()


def undo(host: Any, operation: str, **values: Any) -> list[str]:
    said: list[str] = []
    operations(host, said.append)[operation](**values)
    return said


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BUILDER_STATE", str(tmp_path))
    return tmp_path


def begin(ctid: int, run: str, **request: Any) -> None:
    folder = folder_of("simulated", ctid)
    folder.mkdir(parents=True)
    Journal(folder).begin(run, request, "2026-01-01T00:00:00+00:00")


def test_a_clone_by_hand_is_not_the_builders_though_it_has_a_copy_of_the_mark() -> None:
    copies = (replace(made(921), ctid=960), replace(made(920, role="template"), ctid=961, template=False))
    host = host_of(made(921, running=True), made(920, role="template"), *copies)
    assert [found.guest.ctid for found in deployments(host.guests())] == [921]
    assert runs.retired(host, "fp8") == ()
    assert runs.unused_templates(host) == ()
    with pytest.raises(UsageError, match="no deployment of the builder"):
        find(host, "960")
    undo(host, "forget template", ctid=920, name="t", digest="cd" * 32, run="r1", uploaded=True)
    assert sorted(host.all) == [920, 921, 960, 961]


@pytest.mark.parametrize(
    "words",
    [
        *("builder: Anna", "builder:", "builder: [1]", 'builder: {"run":', "builder: {}", f"builder: {'[' * 200_000}"),
        *(made(101).description.replace(*pair) for pair in (('"made":"2026-01-01"', '"made":null'), ("101", '"x"'))),
        *(made(101).description.replace('"gpus":[]', f'"gpus":{gpus}') for gpus in ("5", '["0"]', '"0"', "null")),
        made(101).description.replace('"run"', '"later":1,"run"'),
    ],
)
def test_somebodys_own_words_are_no_mark(words: str) -> None:
    assert Guest(101, "hers", description=f"notes\n{words}").mark is None


@pytest.mark.parametrize("operation", ["destroy", "stop", "start", "onboot"])
@pytest.mark.parametrize("other", [Guest(921, "theirs", running=True, config={}), made(921, run="r2", running=True)])
def test_an_id_that_another_one_has_by_now_is_left_alone_and_said(operation: str, other: Guest) -> None:
    host = host_of(other)
    values = {"onboot": True} if operation == "onboot" else {}
    (said,) = undo(host, operation, ctid=921, run="r1", **values)
    assert "container 921" in said
    assert "left alone" in said
    assert host.all == {921: other}


def test_a_reboot_in_the_middle_of_a_replacement_starts_one_of_the_two() -> None:
    host = host_of(made(921, config={"onboot": "1"}), made(930, run="r2"))
    plan = plan_of(Replaced(921, "r1", running=True, onboot=True))
    do(host, plan, "configure")
    assert (host.all[921].onboot, host.all[930].onboot) == (True, False)
    do(host, plan, "retire old")
    assert (host.all[921].onboot, host.all[930].onboot) == (False, True)


@pytest.mark.parametrize("name", ["configure", "stop old", "start", "ssh host keys", "serve", "retire old"])
def test_a_step_that_is_done_days_later_stops_at_somebody_elses_containers(name: str) -> None:
    old, new = (Guest(ctid, "theirs", running=True, config={}) for ctid in (921, 930))
    host = host_of(old, new)
    with pytest.raises(BuilderError, match=r"container 9(21|30): \(theirs\) is another one now"):
        do(host, plan_of(Replaced(921, "r1", running=True, onboot=True)), name)
    assert host.all == {921: old, 930: new}
    assert host.shell.record == []


def test_what_was_half_made_and_is_somebodys_after_all_is_left_alone() -> None:
    host = host_of(Guest(921, "CT921", lock="create", config={}))
    theirs = Guest(921, "theirs", running=True, config={})
    host.meanwhile = lambda: host.all.update({921: theirs})
    undo(host, "destroy", ctid=921, run="r1")
    assert host.all == {921: theirs}


@pytest.mark.parametrize("kind", [{"config": None}, {"kind": "qemu", "config": None}])
def test_what_is_being_made_on_another_node_is_left_alone(kind: dict[str, Any]) -> None:
    host = host_of(Guest(921, "921", lock="create", **kind))
    undo(host, "destroy", ctid=921, run="r1")
    assert sorted(host.all) == [921]


def test_a_template_that_was_cut_short_before_it_had_a_mark_is_taken_away() -> None:
    host = host_of(Guest(920, "CT920", lock="create", config={}))
    undo(host, "forget template", ctid=920, name="t", digest=DIGEST, run="r1", uploaded=True)
    assert host.all == {}


@pytest.mark.parametrize("there", [False, True])
def test_a_file_goes_once_its_template_is_made_unless_it_was_there(there: bool) -> None:
    host = host_of()
    host.files = {"t.tar.zst"} if there else set()
    do(host, plan_of(), "template")
    assert host.files == ({"t.tar.zst"} if there else set())
    assert host.all[920].template


@pytest.mark.parametrize("other", [919, 921])
def test_of_two_templates_made_at_once_by_two_machines_one_is_used(other: int) -> None:
    theirs = made(other, run="theirs", role="template")
    host = host_of()
    host.meanwhile = lambda: host.all.update({other: theirs})
    do(host, plan_of(), "template")
    assert sorted(host.all) == ([919] if other == 919 else [920, 921])
    found = template_of(host.guests(), DIGEST)
    assert found is not None
    assert found.ctid == min(host.all)


def test_what_an_upload_that_was_cut_short_left_is_taken_away() -> None:
    host = host_of()
    others = {"t.tar.zst", "r1-t.tar.zst", "r3-t.tar.zst.part"}
    host.files = {"r2-t.tar.zst.part", *others}
    undo(host, "forget template", ctid=920, name="t.tar.zst", digest=DIGEST, run="r2", uploaded=True)
    assert host.files == others


def test_a_template_stays_when_another_deployment_or_run_needs_it() -> None:
    values = {"ctid": 920, "name": "t", "digest": DIGEST, "run": "r1", "uploaded": True}
    host = host_of(made(920, role="template"), made(922, "lab", run="r2"))
    assert "stays" in undo(host, "forget template", **values)[0]
    del host.all[922]
    begin(923, "r3", source={"digest": DIGEST})
    assert "stays" in undo(host, "forget template", **values)[0]
    assert runs.unused_templates(host) == ()
    Journal(folder_of("simulated", 923)).end("rolled back")
    assert undo(host, "forget template", **values) == []
    assert host.all == {}


def test_the_hosts_unit_stays_while_anybody_has_a_card() -> None:
    host = host_of(Guest(101, "theirs", config={"dev0": "/dev/nvidia0,mode=0666"}))
    assert "stays" in undo(host, "uninstall host unit", run="r1")[0]
    host.all.clear()
    begin(922, "r2", container={"ctid": 922, "gpus": [0]})
    assert "stays" in undo(host, "uninstall host unit", run="r1")[0]
    assert host.shell.record == []


def test_a_deployment_that_changed_while_somebody_was_asked_is_not_destroyed() -> None:
    host = host_of(made(921))
    found = find(host, "921")
    host.all[921] = Guest(921, "theirs", config={})
    with pytest.raises(BuilderError, match="was changed by somebody else"):
        runs.destroy(host, found, Silent())
    assert sorted(host.all) == [921]


@pytest.mark.parametrize("key", ["container", "replaces"])
def test_what_an_unfinished_run_for_another_id_relies_on_is_not_destroyed(key: str) -> None:
    host = host_of(made(930))
    begin(921, "r2", **{key: {"ctid": 930}})
    with pytest.raises(BuilderError, match=r"container 930: belongs to the run of .* `builder rollback 921`"):
        runs.destroy(host, find(host, "930"), Silent())
    Journal(folder_of("simulated", 921)).end("deployed")
    runs.destroy(host, find(host, "930"), Silent())
    assert host.all == {}


def test_a_secret_that_cannot_be_read_leaves_nothing_to_finish() -> None:
    planned: Any = SimpleNamespace(run="r1", started="", replaces=None, request=dict)

    def secrets(made: object) -> NoReturn:
        raise UsageError("holds a secret, and others may read it")

    for _ in range(2):
        with pytest.raises(UsageError, match="others may read it"):
            runs.deploy(host_of(), 921, lambda: planned, secrets, Silent(), deadline=1)
    assert Journal(folder_of("simulated", 921)).read() is None
