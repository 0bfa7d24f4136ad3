"""The one way in which the program runs another program outside the sandbox."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from builder.errors import BuilderError


def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: Path | None = None,
    stdin: bytes | None = None,
    hint: str | None = None,
) -> bytes:
    """Run `argv` with exactly the environment `env` and return its standard output.

    Raises BuilderError, with the command and the last lines of its standard error, when it cannot be started
    or exits other than 0.
    """
    try:
        done = subprocess.run(
            argv,
            env=dict(env),
            cwd=cwd,
            input=stdin,
            capture_output=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise BuilderError("command not found", where=argv[0], hint=hint or "run `builder doctor`") from error
    if done.returncode != 0:
        said = tail(done.stderr)
        raise BuilderError(f"exit {done.returncode}: {said}", where=shlex.join(argv), hint=hint)
    return done.stdout


_LINE = 200


def tail(output: bytes, lines: int = 4) -> str:
    """The last `lines` lines of `output` that say something, cut where they are very long, joined by ' | '."""
    said = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    return " | ".join(line if len(line) <= _LINE else f"{line[:_LINE]}..." for line in said[-lines:])
