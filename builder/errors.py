"""The two errors that reach a user: a failure (exit 1) and a wrong use (exit 2)."""

from __future__ import annotations


class BuilderError(Exception):
    """Something failed. Renders as one line: ``WHERE: WHAT; HINT``.

    `what` says what is wrong, `where` names the file, stage, URL or host, `hint` is the next step that a person
    can take (often a command). Newlines are folded, so that the line stays one line.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: object = None, hint: str | None = None) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.hint = hint
        super().__init__(str(self))

    def __str__(self) -> str:
        line = self.what if self.where is None else f"{self.where}: {self.what}"
        if self.hint:
            line = f"{line}; {self.hint}"
        return "".join(
            letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in " ".join(line.split())
        )


class UsageError(BuilderError):
    """The command, recipe or option was wrong before anything ran."""

    exit_code = 2
