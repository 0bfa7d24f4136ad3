"""uv and pip-tools, run under the template's own interpreter and out of reach of this machine's configuration."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from builder.errors import BuilderError
from builder.lock.index import Interpreter
from builder.lock.model import VenvRequest

WORKPLACE = "/run/builder/lock"
UV = "/run/builder/uv"
PIP_TOOLS = "/run/builder/pip-tools"
"""Where a `Run` shows its folder, the locked uv, and the folder with the locked pip-tools and all that it imports."""

Pins = Mapping[str, Version]
"""Normalised name to version."""

_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
_CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT")

_MODULE = (
    "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)
_PROBE = """
import json, sys
sys.path.insert(0, sys.argv[1])
from packaging.tags import sys_tags
facts = {"version": ".".join(map(str, sys.version_info[:3])), "tags": [str(tag) for tag in sys_tags()]}
with open(sys.argv[2], "w") as file:
    json.dump(facts, file)
"""


class Run(Protocol):
    """Runs `argv` in the locked base with the host's network and `env` for its environment.

    `folder` is shown writable at WORKPLACE, where it starts; the tools are shown at UV and PIP_TOOLS. Raises
    BuilderError when the command fails.
    """

    def __call__(self, argv: Sequence[str], *, env: Mapping[str, str], folder: Path) -> None: ...


class Bench:
    """One environment's workplace: the request as files, and the two resolvers over them."""

    def __init__(self, request: VenvRequest, folder: Path, run: Run, environ: Mapping[str, str]) -> None:
        self._request, self._folder, self._run = request, folder, run
        self._env = _environment(folder, environ)
        self._texts("requirements.in", request.requirements)
        self._texts("constraints.txt", request.constraints)
        self._texts("overrides.txt", request.overrides)

    def interpreter(self) -> Interpreter:
        """Ask the interpreter for its version and tags. Raises BuilderError when it cannot be run."""
        self._start(self._request.python, "-ISc", _PROBE, PIP_TOOLS, f"{WORKPLACE}/interpreter.json")
        facts = json.loads(self._read("interpreter.json"))
        return Interpreter(facts["version"], tuple(facts["tags"]))

    def uv(self, preferred: Pins, fixed: Pins) -> Pins:
        """What uv resolves. It keeps to `preferred` where that satisfies the request, and to `fixed` always."""
        self._pins("fixed.txt", fixed)
        self._pins("uv.txt", preferred)
        self._start(
            UV,
            *("pip", "compile", "--quiet", "--no-header", "--no-annotate", "--no-python-downloads"),
            *("--python", self._request.python, "--default-index", self._request.index),
            *("--exclude-newer", self._request.exclude_newer, "--overrides", "overrides.txt"),
            *("--constraints", "constraints.txt", "--constraints", "fixed.txt"),
            *("--output-file", "uv.txt", "requirements.in"),
        )
        return self._result("uv.txt")

    def pip_compile(self, fixed: Pins) -> Pins:
        """What pip-compile resolves when `fixed` are constraints."""
        self._pins("fixed.txt", fixed)
        self._start(
            *(self._request.python, "-ISc", _MODULE, PIP_TOOLS, "piptools"),
            *("compile", "--quiet", "--no-config", "--no-header", "--no-annotate", "--no-emit-options"),
            *("--allow-unsafe", "--strip-extras", "--cache-dir", f"{WORKPLACE}/cache/pip-tools"),
            *("--index-url", self._request.index, "--uploaded-prior-to", self._request.exclude_newer),
            *("--constraint", "constraints.txt", "--constraint", "fixed.txt"),
            *("--output-file", "pip-tools.txt", "requirements.in"),
        )
        return self._result("pip-tools.txt")

    def _start(self, *argv: str) -> None:
        try:
            self._run(argv, env=self._env, folder=self._folder)
        except BuilderError as error:
            raise BuilderError(error.what, where=self._where, hint=error.hint) from error

    def _texts(self, name: str, requirements: Sequence[str]) -> None:
        for text in requirements:
            try:
                named = Requirement(text)
            except InvalidRequirement as error:
                raise BuilderError(f"{text!r} is not a requirement: {error}", where=self._where) from error
            if named.url:
                raise BuilderError(
                    f"{text!r} names a URL, and wheels come from the index",
                    where=self._where,
                    hint="take it as [[Url]]",
                )
        self._write(name, "".join(f"{text}\n" for text in requirements))

    def _pins(self, name: str, pins: Pins) -> None:
        self._write(name, "".join(f"{project}=={pins[project]}\n" for project in sorted(pins)))

    def _write(self, name: str, text: str) -> None:
        """Make the file anew: what runs in the base can write to the folder, and could have left a link to the host."""
        place = self._folder / name
        place.unlink(missing_ok=True)
        with os.fdopen(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644), "w") as file:
            file.write(text)

    def _read(self, name: str) -> str:
        """A result, which must be a file of the folder itself. Raises BuilderError."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            with os.fdopen(os.open(self._folder / name, flags), "r") as file:
                return file.read()
        except OSError as error:
            raise BuilderError(f"the resolver left no {name}: {error.strerror}", where=self._where) from error

    def _result(self, name: str) -> Pins:
        pins: dict[str, Version] = {}
        for line in self._read(name).splitlines():
            if not line or line.startswith("#"):
                continue
            project, _, version = line.partition("==")
            try:
                pins[canonicalize_name(project, validate=True)] = Version(version)
            except ValueError as error:
                raise BuilderError(
                    f"{line!r} is not a pin: only what the index has can be locked", where=self._where
                ) from error
        return pins

    @property
    def _where(self) -> str:
        return f"environment {self._request.id}"


def _environment(folder: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """All that a resolver is told: of this machine only how to reach the network."""
    proxies = {name: environ[name] for each in _PROXIES for name in (each, each.upper()) if name in environ}
    home = folder / "home"
    home.mkdir()
    env = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": f"{WORKPLACE}/home",
        "LC_ALL": "C.UTF-8",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
        "UV_NO_CONFIG": "1",
        "UV_CACHE_DIR": f"{WORKPLACE}/cache/uv",
        **proxies,
    }
    bundles = [environ[name] for name in _CERTIFICATES if os.path.isfile(environ.get(name, ""))]
    if bundles:
        shutil.copyfile(bundles[0], folder / "certificates.pem")
        env |= dict.fromkeys(_CERTIFICATES, f"{WORKPLACE}/certificates.pem")
    return env
