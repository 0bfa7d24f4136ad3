"""Whatever stops a deploy, the old state or a journal that finishes it is what remains."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.deploy.journal import Journal, Undo, folder_of, locked, read, unfinished
from builder.deploy.shell import AwayError, LostError
from builder.deploy.transaction import Operations, Step, perform, roll_back
from builder.errors import BuilderError
from builder.progress import Silent


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the program catches it."""


class SimulatedWorld:
    """What steps change: a set of names. `stop` is called before and after each change and may raise."""

    def __init__(self, stop: Callable[[str], None] = lambda point: None) -> None:
        self.things: set[str] = {"foreign"}
        self.stop = stop

    def steps(self, count: int = 4) -> list[Step]:
        return [
            Step(f"s{n}", lambda n=n: self._add(f"s{n}"), (Undo("remove", {"name": f"s{n}"}),)) for n in range(count)
        ]  # type: ignore[misc]

    @property
    def operations(self) -> Operations:
        return {"remove": self.remove}

    def remove(self, name: str) -> bool:
        there = name in self.things
        self.things.discard(name)
        return there

    def _add(self, name: str) -> str:
        self.stop(f"before {name}")
        assert name not in self.things, "a step never begins on what an earlier run of it left"
        self.things.add(name)
        self.stop(f"after {name}")
        return ""


def stop_at(point: str, error: BaseException) -> Callable[[str], None]:
    def stop(here: str) -> None:
        if here == point:
            raise error

    return stop


POINTS = [f"{when} s{number}" for number in range(4) for when in ("before", "after")]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    made = Journal(tmp_path)
    made.begin("run", {"wish": 1}, "2026-01-01T00:00:00+00:00")
    return made


def test_all_steps_are_done_and_the_journal_is_closed(journal: Journal) -> None:
    world = SimulatedWorld()
    perform(world.steps(), journal, world.operations, Silent())
    assert world.things == {"foreign", "s0", "s1", "s2", "s3"}
    run = journal.read()
    assert run is not None
    assert run.end == "deployed"


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize(
    "error",
    [
        BuilderError("broke", where="host"),
        KeyboardInterrupt(),
        OSError(28, "full"),
        ValueError("a bug"),
        RecursionError(),
    ],
)
def test_a_failure_at_any_point_takes_everything_back(journal: Journal, point: str, error: BaseException) -> None:
    world = SimulatedWorld(stop_at(point, error))
    with pytest.raises(type(error)) as caught:
        perform(world.steps(), journal, world.operations, Silent())
    assert world.things == {"foreign"}
    run = journal.read()
    assert run is not None
    assert run.end == "rolled back"
    if isinstance(error, BuilderError):
        said = f"host: step {point.split()[1]}: broke; all was taken back: mend that and run the same command again"
        assert str(caught.value) == said


@pytest.mark.parametrize("point", POINTS)
def test_after_a_kill_at_any_point_a_second_run_finishes(journal: Journal, point: str) -> None:
    world = SimulatedWorld(stop_at(point, Killed()))
    with pytest.raises(Killed):
        perform(world.steps(), journal, world.operations, Silent())
    world.stop = lambda here: None
    perform(world.steps(), Journal(journal.path.parent), world.operations, Silent())
    assert world.things == {"foreign", "s0", "s1", "s2", "s3"}


@given(point=st.sampled_from(POINTS), cut=st.integers(0, 60))
@settings(max_examples=60, deadline=None)
def test_after_a_kill_and_a_torn_line_a_roll_back_restores_the_old_state(
    tmp_path_factory: pytest.TempPathFactory, point: str, cut: int
) -> None:
    journal = Journal(tmp_path_factory.mktemp("journal"))
    journal.begin("run", {}, "2026-01-01T00:00:00+00:00")
    world = SimulatedWorld(stop_at(point, Killed()))
    with pytest.raises(Killed):
        perform(world.steps(), journal, world.operations, Silent())
    with open(journal.path, "ab") as file:
        file.write(b'{"event": "done", "name": "s0", "padding": "x"}'[:cut].rstrip(b"}"))
    roll_back(journal, world.operations, Silent(), "asked for")
    assert world.things == {"foreign"}
    run = journal.read()
    assert run is not None
    assert run.end == "rolled back"


def test_a_roll_back_that_fails_says_how_to_finish_and_can_be_finished(journal: Journal) -> None:
    world = SimulatedWorld(stop_at("after s3", BuilderError("broke")))
    ready = False

    def remove(name: str) -> bool:
        if name == "s1" and not ready:
            raise BuilderError("in use", where="s1")
        return world.remove(name)

    with pytest.raises(BuilderError, match=r"could not be taken back: s1: s1: in use; .*`builder rollback`"):
        perform(world.steps(), journal, {"remove": remove}, Silent())
    assert world.things == {"foreign", "s1"}
    ready = True
    roll_back(journal, {"remove": remove}, Silent(), "asked for")
    assert world.things == {"foreign"}


def test_a_bug_in_one_undo_does_not_keep_the_others_from_running(journal: Journal) -> None:
    world = SimulatedWorld(stop_at("after s3", BuilderError("broke")))

    def remove(name: str) -> bool:
        world.things.remove("nothing of this name" if name == "s2" else name)
        return True

    with pytest.raises(BuilderError, match=r"could not be taken back: s2: KeyError"):
        perform(world.steps(), journal, {"remove": remove}, Silent())
    assert world.things == {"foreign", "s2"}


def test_everything_is_taken_back_though_the_journals_disk_is_full(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Journal, event: object) -> None:
        raise BuilderError("cannot be written: No space left on device", where=self.path)

    def stop(here: str) -> None:
        if here == "after s2":
            monkeypatch.setattr(Journal, "_write", full)

    world = SimulatedWorld(stop)
    with pytest.raises(BuilderError, match=r"No space left on device; .*`builder rollback`"):
        perform(world.steps(), journal, world.operations, Silent())
    assert world.things == {"foreign"}
    monkeypatch.undo()
    run = journal.read()
    assert run is not None
    assert run.end is None
    roll_back(journal, world.operations, Silent(), "asked for")


def test_only_what_was_there_is_told_as_taken_back(journal: Journal) -> None:
    class Told(Silent):
        def say(self, line: str) -> None:
            said.append(line)

    said: list[str] = []
    world = SimulatedWorld(stop_at("before s2", BuilderError("broke")))
    with pytest.raises(BuilderError, match="broke"):
        perform(world.steps(), journal, world.operations, Told())
    assert said[2:] == ["s2: failed, rolling back", "s1: taken back", "s0: taken back"]


def test_a_roll_back_that_begins_after_the_last_line_and_is_killed_is_unfinished(journal: Journal) -> None:
    journal.step("s0", ())
    journal.done("s0")
    journal.end("deployed")
    journal.undoing("interrupted")
    run = journal.read()
    assert run is not None
    assert run.end is None
    assert run.undoing


def test_a_lost_line_is_no_reason_to_resume_what_was_taken_back(journal: Journal) -> None:
    world = SimulatedWorld(stop_at("after s2", LostError("the line dropped", hint="`builder deploy --resume`")))
    with pytest.raises(LostError, match=r"step s2: the line dropped; all was taken back"):
        perform(world.steps(), journal, world.operations, Silent())


@pytest.mark.parametrize("error", [LostError("the line dropped"), KeyboardInterrupt(), BuilderError("broke")])
@pytest.mark.parametrize("way", ["resume", "roll back"])
def test_a_host_out_of_reach_leaves_a_journal_that_both_ways_finish(
    journal: Journal, error: BaseException, way: str
) -> None:
    def reach() -> None:
        raise AwayError("no connection: refused", where="ssh root@pve")

    world = SimulatedWorld(stop_at("after s2", error))
    says = r"ssh root@pve: step s2: .*; no connection: refused; nothing was taken back: .*--resume.*`builder rollback`"
    with pytest.raises(AwayError, match=says):
        perform(world.steps(), journal, world.operations, Silent(), reach)
    assert world.things == {"foreign", "s0", "s1", "s2"}
    world.stop = lambda here: None
    if way == "resume":
        perform(world.steps(), journal, world.operations, Silent())
        assert world.things == {"foreign", "s0", "s1", "s2", "s3"}
    else:
        roll_back(journal, world.operations, Silent(), "asked for")
        assert world.things == {"foreign"}


def test_programs_that_a_roll_back_starts_end_by_signals(journal: Journal) -> None:
    world = SimulatedWorld(stop_at("after s3", BuilderError("broke")))
    ignored: list[str] = []

    def remove(name: str) -> bool:
        status = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True, check=True).stdout
        ignored.extend(line.split()[1] for line in status.splitlines() if line.startswith("SigIgn:"))
        return world.remove(name)

    with pytest.raises(BuilderError, match="broke"):
        perform(world.steps(), journal, {"remove": remove}, Silent())
    wanted = sum(1 << number - 1 for number in (signal.SIGINT, signal.SIGTERM))
    assert [mask for mask in ignored if int(mask, 16) & wanted] == []


def test_interrupts_wait_until_a_roll_back_is_over(journal: Journal) -> None:
    world = SimulatedWorld(stop_at("after s3", BuilderError("broke")))

    def remove(name: str) -> bool:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        return world.remove(name)

    with pytest.raises(BuilderError, match="broke"):
        perform(world.steps(), journal, {"remove": remove}, Silent())
    assert world.things == {"foreign"}


def test_a_second_builder_on_the_same_container_is_refused_by_name(tmp_path: Path) -> None:
    with locked(tmp_path, "container 921"):
        seen: list[str] = []

        def other() -> None:
            try:
                with locked(tmp_path, "container 921"):
                    seen.append("in")
            except BuilderError as error:
                seen.append(str(error))

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert seen == [
        f"container 921: another builder works on it, process {os.getpid()}; "
        "wait for it, or end it and run `builder rollback`"
    ]
    with locked(tmp_path, "container 921"):
        pass


@given(st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_damaged_journals_are_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    path.write_bytes(noise)
    message = ""
    try:
        read(path)
    except BuilderError as error:
        message = str(error)
    assert not message or message.startswith(f"{path}: ")


def test_unfinished_runs_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUILDER_STATE", str(tmp_path))
    for ctid, end in ((921, False), (922, True)):
        folder = folder_of("ssh-root@pve", ctid)
        folder.mkdir(parents=True)
        journal = Journal(folder)
        journal.begin("run", {}, "2026-01-01T00:00:00+00:00")
        if end:
            journal.end("deployed")
    assert [(host, ctid) for host, ctid, _ in unfinished()] == [("ssh-root@pve", 921)]
