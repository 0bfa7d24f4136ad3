"""Locking one Python environment: uv proposes versions, pip-compile confirms them, the index tells the files."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import requests
from packaging.utils import canonicalize_name
from packaging.version import Version

from builder.command import new_folder
from builder.errors import BuilderError, UsageError
from builder.lock import index
from builder.lock.model import VenvRequest, Wheel
from builder.lock.resolvers import Bench, Pins, Run
from builder.lock.times import moment
from builder.progress import Progress

JOBS = 8
"""Index pages read at a time."""


def resolve_venv(
    request: VenvRequest,
    *,
    run: Run,
    session: requests.Session,
    environ: Mapping[str, str],
    progress: Progress,
    resolver: str = "pip-tools",
    known: Sequence[Wheel] = (),
    upgrade: Collection[str] = (),
) -> tuple[Wheel, ...]:
    """The wheels of `request`, sorted by name: for each package the one file that its interpreter takes.

    `known` are the wheels locked so far: their versions stay where they satisfy the request. With `upgrade`, names
    of packages, only these move, and all others of `known` stay. `resolver` is "pip-tools", which has pip-compile
    confirm uv's result, or "uv", which does without. Of `environ` the resolvers see proxies and the CA bundle.

    Raises UsageError for overrides with pip-tools, BuilderError when there is no such set, when the resolvers
    disagree, or when a file is too new or does not suit.
    """
    if request.overrides and resolver == "pip-tools":
        raise UsageError(
            "pip-tools knows no overrides", where=f"environment {request.id}", hint="lock with `--resolver uv`"
        )
    pins = {wheel.name: Version(wheel.version) for wheel in known}
    moving = set(map(canonicalize_name, upgrade))
    staying = {name: version for name, version in pins.items() if name not in moving}
    try:
        with new_folder("builder-lock-") as folder:
            bench = Bench(request, folder, run, environ)
            interpreter = bench.interpreter()
            with progress.task(f"{request.id}: uv resolves"):
                resolved = bench.uv(preferred=staying, fixed=staying if moving else {})
            if resolver == "pip-tools":
                with progress.task(f"{request.id}: pip-compile confirms"):
                    _agree(request, resolved, bench.pip_compile(fixed=resolved))
    except OSError as error:
        raise BuilderError(error.strerror or str(error), where=error.filename or tempfile.gettempdir()) from error
    limit = moment(request.exclude_newer)

    def lock(name: str) -> Wheel:
        found = index.files(session, request.index, name)
        return index.choose(found, name, resolved[name], interpreter, limit)

    wheels = []
    with (
        progress.task(f"{request.id}: index", len(resolved), "pages") as task,
        ThreadPoolExecutor(JOBS) as pool,
    ):
        for wheel in pool.map(lock, sorted(resolved)):
            wheels.append(wheel)
            task.advance(1)
    return tuple(wheels)


def _agree(request: VenvRequest, proposed: Pins, confirmed: Pins) -> None:
    if proposed == confirmed:
        return
    names = sorted(name for name in proposed.keys() | confirmed.keys() if proposed.get(name) != confirmed.get(name))
    told = ", ".join(f"{name} {proposed.get(name, 'absent')} and {confirmed.get(name, 'absent')}" for name in names)
    raise BuilderError(
        f"uv and pip-compile disagree: {told}",
        where=f"environment {request.id}",
        hint="pin these in Requirements or Constraints, or lock with `--resolver uv`",
    )
