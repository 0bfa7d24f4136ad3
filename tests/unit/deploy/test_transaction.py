"""Whatever stops a deploy, the old state or a journal that finishes it is what remains."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.deploy.journal import Journal, Undo, folder_of, locked, read, unfinished
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
        return {"remove": lambda name: self.things.discard(name)}

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
@pytest.mark.parametrize("error", [BuilderError("broke", where="host"), KeyboardInterrupt(), OSError(28, "full")])
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

    def remove(name: str) -> None:
        if name == "s1" and not ready:
            raise BuilderError("in use", where="s1")
        world.things.discard(name)

    with pytest.raises(BuilderError, match=r"could not be taken back: s1: s1: in use; .*`builder rollback`"):
        perform(world.steps(), journal, {"remove": remove}, Silent())
    assert world.things == {"foreign", "s1"}
    ready = True
    roll_back(journal, {"remove": remove}, Silent(), "asked for")
    assert world.things == {"foreign"}


def test_interrupts_wait_until_a_roll_back_is_over(journal: Journal) -> None:
    world = SimulatedWorld(stop_at("after s3", BuilderError("broke")))

    def remove(name: str) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        world.things.discard(name)

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
