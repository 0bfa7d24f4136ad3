"""The secrets of a deployment: read from files and the environment, kept out of arguments, logs and messages."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex

from builder.deploy.journal import state_root
from builder.errors import BuilderError, UsageError

API_KEY = "BUILDER_API_KEY"
TOKEN = "HF_TOKEN"

_LONGEST = 4096


@dataclass(frozen=True)
class Secrets:
    """What nobody may see. Its repr shows nothing."""

    api_key: str | None = field(default=None, repr=False)  # what clients of the server send
    token: str | None = field(default=None, repr=False)  # for the model hub; never goes into a container

    def hide(self, text: str) -> str:
        """`text` with asterisks in place of each."""
        for secret in filter(None, (self.api_key, self.token)):
            text = text.replace(secret, "***")
        return text


def kept(host: str, name: str) -> Path:
    """Where the API key of a deployment lies on this machine.

    Raises UsageError for a name that is no file's: it may come from a guest's description, which others write.
    """
    if not re.fullmatch(r"[\w-][\w.-]{0,62}", name, re.ASCII):
        what = "is no deployment's name: it must be letters, digits, '-', '_' and '.', not '.' first, at most 63 in all"
        raise UsageError(what, where=ascii(name)[:80])
    return state_root() / "keys" / host / name


def read(api_key_file: Path | None, token_file: Path | None, environ: Mapping[str, str]) -> Secrets:
    """The API key and the hub's token, each from its file, else from $BUILDER_API_KEY and $HF_TOKEN, else none.

    Raises UsageError for a file that is missing, not a secret on one line, or readable by other users.
    """
    return Secrets(
        api_key=_from_file(api_key_file) if api_key_file else _from_environment(API_KEY, environ),
        token=_from_file(token_file) if token_file else _from_environment(TOKEN, environ),
    )


def to_hide(kept: Path, environ: Mapping[str, str]) -> Secrets:
    """The API key in `kept`, else in $BUILDER_API_KEY, and the token in $HF_TOKEN, to `hide` them and for nothing else.

    What `read` refuses is hidden too; what is blank is none. Raises UsageError when `kept` cannot be read.
    """
    try:
        key = kept.read_text("utf-8", "replace").strip()
    except FileNotFoundError:
        key = ""
    except OSError as error:
        raise UsageError(f"the key to hide cannot be read: {error.strerror or error}", where=kept) from error
    return Secrets(
        api_key=key or environ.get(API_KEY, "").strip() or None,
        token=environ.get(TOKEN, "").strip() or None,
    )


def obtain(api_key_file: Path | None, kept: Path, environ: Mapping[str, str], *, keep: bool) -> Secrets:
    """The secrets of a deployment: an API key as it is given, else the one in `kept`, else a new one.

    With `keep` the key then lies in `kept`, readable by its owner only: a run that is resumed has the same one.
    Raises UsageError as `read` does, BuilderError when it cannot be kept.
    """
    given = read(api_key_file, None, environ)
    known = _from_file(kept) if kept.exists() else None
    key = given.api_key or known or new_api_key()
    if keep and key != known:
        keep_key(kept, key)
    return Secrets(api_key=key, token=given.token)


def new_api_key() -> str:
    """256 random bits."""
    return token_hex(32)


def _from_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if stat.S_ISREG(status.st_mode) and status.st_mode & 0o077:
                mode = f"{stat.S_IMODE(status.st_mode):04o}"
                raise UsageError(
                    f"holds a secret, and others may read it (mode {mode})", where=path, hint=f"chmod 600 {path}"
                )
            content = file.read(_LONGEST + 1)
    except OSError as error:
        raise UsageError(error.strerror or str(error), where=path) from error
    return _plain(content.decode("latin-1").strip("\r\n"), path)


def _from_environment(name: str, environ: Mapping[str, str]) -> str | None:
    return _plain(environ[name], f"${name}") if environ.get(name) else None


def _plain(text: str, where: object) -> str:
    """`text`, which must be fit for an HTTP header."""
    if len(text) > _LONGEST or not re.fullmatch(r"[\x21-\x7e]+", text):
        raise UsageError("is no secret: it must be one line of printable ASCII without blanks", where=where)
    return text


def keep_key(path: Path, key: str) -> None:
    """Put `key` into the file `path`, readable by its owner only. Raises BuilderError when that is not possible."""
    new = path.with_name(f".{path.name}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new.unlink(missing_ok=True)
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(f"{key}\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        raise BuilderError(f"the API key cannot be kept: {error.strerror or error}", where=path) from error
