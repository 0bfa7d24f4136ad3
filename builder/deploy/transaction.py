"""Steps with an undo each, a journal before every one: all of them happen, or none stays."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from builder.deploy.journal import Journal, Undo
from builder.errors import BuilderError
from builder.progress import Progress

Operations = Mapping[str, Callable[..., None]]
"""What each `Undo.operation` does; every one may run again after it was cut short."""


@dataclass(frozen=True)
class Step:
    """One change: its name in journal and messages, what does it, and what takes it back.

    `run` may begin on what an earlier, cut short run of the same step left, once `undo` has run. It returns what is
    to be said of it beside its name.
    """

    name: str
    run: Callable[[], str]
    undo: tuple[Undo, ...] = ()


def perform(steps: Sequence[Step], journal: Journal, operations: Operations, progress: Progress) -> None:
    """Do what the journal does not have as done. On a failure or an interrupt everything is taken back.

    Raises what stopped it, after the roll-back; a BuilderError names the step. When the roll-back fails too, the
    journal stays open, and the error says how to finish.
    """
    run = journal.read()
    begun = {state.name: state for state in run.steps} if run else {}
    name = ""
    try:
        for step in steps:
            name = step.name
            state = begun.get(name)
            if state is not None and state.done:
                continue
            if state is not None:
                _take_back(state.undo, operations)
                journal.undone(name)
            journal.step(name, step.undo)
            said = step.run()
            journal.done(name)
            progress.say(f"{name}: {said}" if said else name)
        journal.end("deployed")
    except (BuilderError, KeyboardInterrupt, OSError) as error:
        reason = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
        progress.say(f"{name}: {'interrupted' if isinstance(error, KeyboardInterrupt) else 'failed'}, rolling back")
        roll_back(journal, operations, progress, reason)
        if isinstance(error, BuilderError):
            raise _at_step(name, error) from error
        raise


def roll_back(journal: Journal, operations: Operations, progress: Progress, reason: str) -> None:
    """Take back what the journal has as begun, last first. Signals wait until it is over.

    Raises BuilderError when something could not be taken back; the rest was, and calling it again goes on.
    """
    with _shielded():
        journal.undoing(reason)
        run = journal.read()
        failed: list[str] = []
        for state in reversed(run.steps if run else ()):
            try:
                _take_back(state.undo, operations)
            except BuilderError as error:
                failed.append(f"{state.name}: {error}")
                continue
            journal.undone(state.name)
            if state.undo:
                progress.say(f"{state.name}: taken back")
        if failed:
            what = f"after {reason!r} this could not be taken back: {'; '.join(failed)}"
            raise BuilderError(what, where=journal.path, hint="mend that, then run `builder rollback` to finish")
        journal.end("rolled back")


def _take_back(undo: Sequence[Undo], operations: Operations) -> None:
    for each in reversed(undo):
        operation = operations.get(each.operation)
        if operation is None:
            raise BuilderError(
                f"unknown operation {each.operation!r} in the journal", hint="use the builder that wrote it"
            )
        operation(**each.values)


def _at_step(name: str, error: BuilderError) -> BuilderError:
    """The same error with the step that it stopped."""
    hint = error.hint or "all was taken back: mend that and run the same command again"
    return type(error)(f"step {name}: {error.what}", where=error.where, hint=hint)


@contextmanager
def _shielded() -> Iterator[None]:
    """A roll-back that is cut short helps nobody: interrupts are ignored for the block; a kill leaves the journal."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before: dict[signal.Signals, Any] = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
