"""Asks vLLM's service from inside its container: one command of the host an answer, run by the template's own Python.
A server that is not the builder's is asked from the host, by the host's Python, or from a container of the builder.

What a container says is not trusted: an answer is JSON of the expected shape or an error, and texts are made harmless.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from builder.deploy.host.base import Host
from builder.deploy.shell import LostError
from builder.errors import BuilderError

PYTHON = "/opt/vllm/bin/python"
UNIT = "vllm.service"
_LARGEST = 1 << 20
_BOTH = """\
import sys, types
package, api = types.ModuleType("builder.data"), types.ModuleType("builder.data.api")
exec({api!a}, vars(api))
package.api, api.KEY = api, {key!a}
sys.modules["builder.data"], sys.modules["builder.data.api"] = package, api
exec({inside!a})
"""


def call(
    host: Host, ctid: int | None, command: str, *arguments: str, key: str | None = None, timeout: float = 60
) -> dict[str, Any]:
    """The answer of `builder/data/inside.py` to one of its commands, run in a container, or for None on the host.

    `timeout` is in seconds. `key` is the API key of another server that the command asks; it goes by standard input,
    and no answer shows it. Raises BuilderError with what was said instead of an answer; LostError when the line
    dropped.
    """
    where = host.name if ctid is None else f"container {ctid}"
    words = ("-I", "-", command, *arguments)
    argv = ("python3", *words) if ctid is None else host.inside(ctid, (PYTHON, *words))
    done = host.shell.ask(*argv, stdin=program(key), timeout=timeout)
    out, err = (text.replace(key.encode(), b"***") if key else text for text in (done.out, done.err))
    if done.status != 0:
        said = [plain(line) for line in err.decode(errors="replace").splitlines() if line.strip()]
        raise BuilderError(said[-1] if said else f"exit {done.status}, and nothing was said", where=where)
    try:
        if len(out) > _LARGEST:
            raise ValueError("too long")
        answer = json.loads(out)
        if not isinstance(answer, dict):
            raise ValueError("no object")
    except (ValueError, RecursionError) as error:
        raise BuilderError(f"its answer to {command} cannot be read ({error})", where=where) from error
    return answer


def reason(error: BuilderError) -> str:
    """Why something could not be asked, for a row that says so. Raises `error` again when the line dropped."""
    if isinstance(error, LostError):
        raise error
    return plain(error.what)


def plain(text: object, longest: int = 300) -> str:
    """A text of a container or host on one line, harmless to a terminal, cut when it is very long."""
    line = harmless(" ".join(str(text).split()))
    return line if len(line) <= longest else f"{line[: longest - 3]}..."


def harmless(text: str) -> str:
    """The same with tabs as spaces, and a sign for each letter that could steer a terminal."""
    text = text.replace("\t", " ")
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def table(answer: dict[str, Any], key: str) -> dict[str, Any]:
    """The object under `key`, empty when there is none."""
    found = answer.get(key)
    return found if isinstance(found, dict) else {}


def texts(answer: dict[str, Any], key: str) -> tuple[str, ...]:
    """The list of texts under `key`, each harmless to a terminal; empty when there is none."""
    found = answer.get(key)
    return tuple(harmless(str(line)[:2000]) for line in found) if isinstance(found, list) else ()


def program(key: str | None) -> bytes:
    """What a Python without this package is fed: `builder/data/api.py` as a module with `key` in it, then
    `builder/data/inside.py`."""
    folder = resources.files("builder") / "data"
    api, inside = ((folder / name).read_text("utf-8") for name in ("api.py", "inside.py"))
    return _BOTH.format(api=api, key=key, inside=inside).encode()
