"""Locks on disk: `lock.toml`, which says all, and a `wheels-VENV.txt` for each environment, which pip and uv take.

The text files are made from lock.toml and must agree with it to the byte. lock.toml is renamed into place last, so
that a write that was cut short shows as a disagreement.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tomli

from builder.errors import BuilderError
from builder.lock import requirements
from builder.lock.entries import MEND, decode, encode, normal
from builder.lock.model import Lock

LOCK_FILE = "lock.toml"


def read(folder: Path, *, texts: bool = True) -> Lock:
    """The lock in `folder`; with `texts` False from lock.toml alone, to mend what does not agree with it.

    Raises BuilderError naming file and entry, or file and line, when it is missing, damaged, or when a
    `wheels-VENV.txt` is not what lock.toml says.
    """
    path = folder / LOCK_FILE
    hint = f"run `builder lock` for {folder.name}"
    try:
        data = tomli.loads(path.read_bytes().decode())
    except FileNotFoundError as error:
        raise BuilderError("there is no lock yet", where=path, hint=hint) from error
    except OSError as error:
        raise BuilderError(error.strerror or str(error), where=path) from error
    except ValueError as error:
        raise BuilderError(f"not a lock: {error}", where=path, hint=MEND) from error
    lock = decode(data, path)
    if texts:
        for venv, wheels in lock.venvs.items():
            requirements.check(folder / _text_name(venv), wheels, f"{hint}, which makes it from lock.toml")
        for name in sorted(_texts(folder) - set(map(_text_name, lock.venvs))):
            raise BuilderError("lock.toml has no such environment", where=folder / name, hint=f"{hint}, or remove it")
    return lock


def write(lock: Lock, folder: Path) -> bool:
    """Write `lock` into `folder`, whole or not at all; True when a byte changed, which a second time none does.

    Raises BuilderError with the path when the lock could not be read again, the disk is full, or the folder cannot
    be written.
    """
    files = {_text_name(venv): requirements.render(wheels) for venv, wheels in normal(lock).venvs.items()}
    files[LOCK_FILE] = render(lock)
    decode(tomli.loads(files[LOCK_FILE]), folder / LOCK_FILE)  # nothing is written that could not be read again
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            changed = {name: text.encode() for name, text in files.items() if _differs(folder / name, text)}
            gone = _texts(folder) - set(files)
            _replace(folder, changed)
            for name in gone:
                (folder / name).unlink()
    except OSError as error:
        raise BuilderError(f"cannot write: {error.strerror or error}", where=error.filename or folder) from error
    return bool(changed or gone)


def render(lock: Lock) -> str:
    """lock.toml's text: the same for equal locks."""
    tables = encode(lock)
    lines = ["# Made by `builder lock`, as are the wheels-*.txt beside it."]
    lines += [f"{name} = {_toml(tables.pop(name))}" for name in ("recipe", "snapshot")]
    lines += ["", "[requests]", *(f"{_toml(key)} = {_toml(value)}" for key, value in tables.pop("requests").items())]
    for kind, entries in tables.items():
        for entry in entries:
            lines += ["", f"[[{kind}]]", *(f"{name} = {_toml(value)}" for name, value in entry.items())]
        if not entries:
            lines.insert(3, f"{kind} = []")
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    """Text, a whole number or a list of text in TOML."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _text_name(venv: str) -> str:
    return f"wheels-{venv}.txt"


def _texts(folder: Path) -> set[str]:
    return {path.name for path in folder.glob(_text_name("*"))}


def _differs(path: Path, text: str) -> bool:
    try:
        return path.read_bytes() != text.encode()
    except FileNotFoundError:
        return True


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One writer at a time."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(folder: Path, files: Mapping[str, bytes]) -> None:
    """Put `files` into `folder`, in order, once all of them lie on the disk."""
    new = folder / ".new"
    shutil.rmtree(new, ignore_errors=True)  # of a writer that was killed
    if not files:
        return
    new.mkdir()
    try:
        for name, content in files.items():
            with (new / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        for name in files:
            (new / name).rename(folder / name)
    finally:
        shutil.rmtree(new, ignore_errors=True)
