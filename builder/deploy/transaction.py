"""Steps with an undo each, a journal before every one: all of them happen, or none stays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from builder.deploy.journal import Journal, StepState, Undo
from builder.deploy.shell import AwayError, LostError
from builder.errors import BuilderError
from builder.interrupts import shielded
from builder.progress import Progress

Operations = Mapping[str, Callable[..., bool]]
"""What each `Undo.operation` does, and whether there was anything; every one may run again after it was cut short."""


@dataclass(frozen=True)
class Step:
    """One change: its name in journal and messages, what does it, and what takes it back.

    `run` may begin on what an earlier, cut short run of the same step left, once `undo` has run. It returns what is
    to be said of it beside its name.
    """

    name: str
    run: Callable[[], str]
    undo: tuple[Undo, ...] = ()


def perform(
    steps: Sequence[Step],
    journal: Journal,
    operations: Operations,
    progress: Progress,
    reach: Callable[[], object] = lambda: None,
) -> None:
    """Do what the journal does not have as done. On a failure or an interrupt everything is taken back.

    Raises what stopped it, after the roll-back; a BuilderError names the step. `reach` raises AwayError while the
    host does not answer: then nothing is taken back, and the journal stays as it is for a resumption or a roll-back.
    When the roll-back fails, the journal stays open, and the error says how to finish.
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
    except (Exception, KeyboardInterrupt) as error:
        with shielded():
            _refuse_out_of_reach(reach, name, error)
            how = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            progress.say(f"{name}: {how}, rolling back")
            roll_back(journal, operations, progress, _reason(error))
        if isinstance(error, BuilderError):
            raise _at_step(name, error) from error
        raise


def roll_back(journal: Journal, operations: Operations, progress: Progress, reason: str) -> None:
    """Take back what the journal has as begun, last first. Signals do nothing until it is over.

    Raises BuilderError when something could not be taken back; the rest was, and calling it again goes on.
    """
    with shielded():
        run = journal.read()
        failed: list[str] = []
        _attempt("journal", lambda: journal.undoing(reason), failed)
        for state in reversed(run.steps if run else ()):
            if _attempt(state.name, partial(_told_back, state, operations, progress), failed):
                _attempt("journal", partial(journal.undone, state.name), failed)
        if not failed:
            _attempt("journal", lambda: journal.end("rolled back"), failed)
        if failed:
            what = f"after {reason!r} this could not be taken back: {'; '.join(dict.fromkeys(failed))}"
            raise BuilderError(what, where=journal.path, hint="mend that, then run `builder rollback` to finish")


def _attempt(name: str, what: Callable[[], None], failed: list[str]) -> bool:
    """Whether it was done; if not, why is added to `failed`: the rest must be taken back whatever that was."""
    try:
        what()
    except Exception as error:
        failed.append(f"{name}: {error if isinstance(error, (BuilderError, OSError)) else repr(error)}")
        return False
    return True


def _told_back(state: StepState, operations: Operations, progress: Progress) -> None:
    if _take_back(state.undo, operations):
        progress.say(f"{state.name}: taken back")


def _take_back(undo: Sequence[Undo], operations: Operations) -> bool:
    changed = False
    for each in reversed(undo):
        operation = operations.get(each.operation)
        if operation is None:
            raise BuilderError(
                f"unknown operation {each.operation!r} in the journal", hint="use the builder that wrote it"
            )
        changed |= operation(**each.values)
    return changed


def _refuse_out_of_reach(reach: Callable[[], object], name: str, error: BaseException) -> None:
    try:
        reach()
    except AwayError as away:
        hint = (
            "nothing was taken back: once the host answers, `builder deploy --resume` goes on, "
            "and `builder rollback` takes all back"
        )
        raise AwayError(f"step {name}: {_reason(error)}; {away.what}", where=away.where, hint=hint) from error


def _reason(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, LostError):
        return error.what  # what its hint says to do is being done
    return str(error) or repr(error)


def _at_step(name: str, error: BuilderError) -> BuilderError:
    """The same error with the step that it stopped, once all was taken back."""
    own = None if isinstance(error, LostError) else error.hint
    hint = own or "all was taken back: mend that and run the same command again"
    return type(error)(f"step {name}: {error.what}", where=error.where, hint=hint)
