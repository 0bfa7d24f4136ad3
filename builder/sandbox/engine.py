"""Starts a run, keeps what it says, and turns its end into a return or one error."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pickle
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from builder.command import tail
from builder.errors import BuilderError
from builder.sandbox import terminal
from builder.sandbox.spec import Bind, Spec
from builder.sandbox.stop import Stop

_START = "import sys; sys.path.append(sys.argv[1]); from builder.sandbox.child import main; main()"
_HOUSE = str(Path(__file__).parents[2])
_KEPT = 16384  # bytes of output that are looked at for a message
_FAKETIME = "/run/builder/libfaketime.so.1"
_MACHINE = ("cannot mount", "cannot make", "cannot pivot")
_NETWORK = re.compile(
    rb"Network is unreachable|[Nn]ame or service not known|[Tt]emporary failure (in name resolution|resolving)"
    rb"|[Cc]ould not resolve|[Ff]ailed to resolve|Name resolution|dns error|No address associated"
)
_FULL = re.compile(rb"No space left on device|enough free space|Disk quota exceeded")


def run(spec: Spec, *, log: Path | None = None, kept: Path | None = None, stop: Stop | None = None) -> None:
    """Run `spec.argv` in its private world and return when it has exited 0 and nothing of it is left.

    Needs uid 0, of the machine or of a user namespace (`userns.become_root`). All output is appended to `log`
    (created 0600); `kept` is where the caller will have moved it when somebody reads the error, None: not at all.
    Raises BuilderError naming `spec.name`, the command, how it ended and its last lines; StoppedError when `stop` was
    pulled meanwhile.
    """
    result, said = _outcome(spec, log, stop or Stop())
    if result != {"exit": 0}:
        raise failure(spec, result, said, kept or log)


def attend(spec: Spec) -> int:
    """Run an interactive `spec` as `run` does, and return its exit status: 128 and the number for a signal.

    Raises BuilderError when it could not be started.
    """
    result, said = _outcome(spec, None, Stop())
    if "exit" in result:
        return int(result["exit"])
    if "signal" in result:
        return 128 + int(result["signal"])
    raise failure(spec, result, said)


def _outcome(spec: Spec, log: Path | None, stop: Stop) -> tuple[dict[str, Any], bytes]:
    """How the command of `spec` ended (see `failure`), and its last output."""
    spec = _with_clock(_portable(spec))
    ours, theirs = socket.socketpair()
    with ours, contextlib.ExitStack() as stack:
        written = stack.enter_context(_append(log)) if log else None
        ends = stack.enter_context(terminal.opened()) if spec.interactive else None
        with theirs:
            process = _start(spec, theirs, ends[1] if ends else None)
        try:
            with stop.over(process):
                said, result = _follow(process, ours, spec, written, ends)
        except OSError as error:
            raise BuilderError(f"cannot write: {error.strerror}", where=log or f"stage {spec.name}") from error
        finally:
            _end(process)
    return result, said


def _portable(spec: Spec) -> Spec:
    """`spec` as a process with another working directory can read it."""
    return dataclasses.replace(
        spec,
        env=dict(spec.env),
        layers=tuple(layer.absolute() for layer in spec.layers),
        upper=spec.upper and spec.upper.absolute(),
        work=spec.work and spec.work.absolute(),
        binds=tuple(dataclasses.replace(bind, source=bind.source.absolute()) for bind in spec.binds),
    )


def _with_clock(spec: Spec) -> Spec:
    """`spec` with the clock of faketime(1) where this very process has it: who tests with it means the stages too."""
    preloaded = re.split("[: ]", os.environ.get("LD_PRELOAD", ""))
    library = next((Path(name) for name in preloaded if os.path.basename(name).startswith("libfaketime")), None)
    if library is None or not library.is_file():
        return spec
    env = {"LD_PRELOAD": _FAKETIME, "FAKETIME": os.environ.get("FAKETIME", ""), "NO_FAKE_STAT": "1"}
    return dataclasses.replace(spec, binds=(*spec.binds, Bind(library, _FAKETIME)), env={**env, **spec.env})


def _append(log: Path) -> IO[bytes]:
    try:
        return os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "wb", buffering=0)
    except OSError as error:
        raise BuilderError(f"cannot write: {error.strerror}", where=log) from error


def _start(spec: Spec, control: socket.socket, tty: IO[bytes] | None) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-IBS", "-c", _START, _HOUSE, str(control.fileno()), str(os.getpid())]
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    if spec.interactive:
        names = ("stdin", "stdout", "stderr")
        streams = {name: tty for number, name in enumerate(names) if tty is not None and os.isatty(number)}
    return subprocess.Popen(argv, env={}, cwd="/", pass_fds=[control.fileno()], start_new_session=True, **streams)


def _follow(
    process: subprocess.Popen[bytes],
    control: socket.socket,
    spec: Spec,
    log: IO[bytes] | None,
    ends: terminal.Ends | None,
) -> tuple[bytes, dict[str, Any]]:
    """Hand the spec over, copy all output to `log`, and return the end of the output and the result."""
    wire = pickle.dumps(spec)
    with contextlib.suppress(BrokenPipeError):  # it died at once: its output says why
        control.sendall(len(wire).to_bytes(4, "big") + wire)
    if ends:
        terminal.join(ends)
    said = b""
    while process.stdout and (chunk := os.read(process.stdout.fileno(), 65536)):
        said = (said + chunk)[-_KEPT:]
        if log:
            log.write(chunk)
    line = b""
    with contextlib.suppress(ConnectionResetError), control.makefile("rb") as results:  # it was killed before it read
        line = results.readline()
    process.wait()
    return said, json.loads(line) if line else {"error": f"the sandbox ended early (status {process.returncode})"}


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill whatever still runs and wait until it is gone."""
    process.terminate()
    process.wait()
    if process.stdout:
        process.stdout.close()


def failure(spec: Spec, result: Mapping[str, Any], said: bytes, log: Path | None = None) -> BuilderError:
    """The error for a run that ended with `result` (see `supervise`, or {"error": text}) and last said `said`."""
    command = shlex.join(spec.argv)
    if len(command) > 160:
        command = f"{command[:157]}..."
    lines = tail(said)
    hint = f"all output is in {log}" if log else None
    if "error" in result:
        how, lines = result["error"], lines if "ended early" in result["error"] else ""
        if how.startswith(_MACHINE):
            hint = "run `builder doctor`"
    elif result.get("limit") == "memory":
        how = f"used {result['used']} MiB, over its limit of {spec.limits.memory_mib} MiB"
        hint = "raise MemoryMiB of the stage"
    elif result.get("limit") == "time":
        how, hint = f"ran for {result['used']} s, its limit", "raise TimeoutSeconds of the stage"
    else:
        how = f"killed by {_signal(result['signal'])}" if "signal" in result else f"exit {result['exit']}"
        if not spec.network and _NETWORK.search(said):
            hint = "; ".join(filter(None, ("stages have no network: lock the input instead", hint)))
        elif _FULL.search(said):
            hint = "; ".join(filter(None, ("the disk is full: free some space or run `builder store gc`", hint)))
    return BuilderError(": ".join(filter(None, (command, how, lines))), where=f"stage {spec.name}", hint=hint)


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
