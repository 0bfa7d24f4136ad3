"""The one way in which the program runs another program outside the sandbox."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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


@contextmanager
def new_folder(prefix: str, patience: float = 10) -> Iterator[Path]:
    """A temporary folder for commands, removed afterwards.

    When an interrupt ended a command, its own children may go on writing for a moment: removal is tried again for
    `patience` seconds. Raises OSError when it still fails.
    """
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        yield folder
    finally:
        deadline = time.monotonic() + patience
        while folder.exists():
            try:
                shutil.rmtree(folder)
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)


_LINE = 200


def tail(output: bytes, lines: int = 4) -> str:
    """The last `lines` lines of `output` that say something, cut where they are very long, joined by ' | '."""
    said = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    return " | ".join(line if len(line) <= _LINE else f"{line[:_LINE]}..." for line in said[-lines:])
