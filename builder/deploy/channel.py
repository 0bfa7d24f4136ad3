"""Where the commands of a deploy run: on this machine, or on another over OpenSSH."""

from __future__ import annotations

import fcntl
import os
import re
import selectors
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex

from builder.command import tail
from builder.deploy.shell import AwayError, Done, LateError, LostError, shown
from builder.errors import BuilderError

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_GRACE = 30.0
"""Seconds between SIGTERM and SIGKILL: `pct` takes back what it began when it gets the first, not the second."""
_NO_SESSION = 255
"""What ssh(1) itself ends with."""
_NEW = 60.0
"""Seconds in which a folder may not be locked yet."""
_PIECE = 1 << 16
_MOST = 1 << 26
"""Bytes that a command may say: what runs in a container could fill the memory of the machine that asks."""

Output = Callable[[bytes], None]


@dataclass(frozen=True)
class Local:
    """This machine. The terminal's Ctrl-C does not reach what runs here: whoever runs it ends it."""

    name: str = "this machine"

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | Path | None = None,
        timeout: float | None = None,
        output: Output | None = None,
    ) -> Done:
        """As `Channel.run`. A program that is not there ends with 127, as in a shell."""
        env = {"PATH": PATH, "HOME": str(Path.home()), "LC_ALL": "C"}
        try:
            status, out, err = _run(argv, env, stdin, timeout, output)
        except FileNotFoundError:
            status, out, err = 127, b"", f"{argv[0]}: command not found\n".encode()
        return Done(tuple(argv), status, out, err)


_REMOTE = 'm=$1; shift; echo "$m" >&2; env "$@"; s=$?; printf "\\n%s %s\\n" "$m" "$s" >&2; exit "$s"'
"""Says on standard error when the command begins and how it ended: ssh's own failures have status 255 too."""
_OPTIONS = (
    *("-T", "-oBatchMode=yes", "-oLogLevel=ERROR", "-oConnectTimeout=20"),
    *("-oServerAliveInterval=15", "-oServerAliveCountMax=4"),
    *("-oControlMaster=auto", "-oControlPersist=60"),
    *("-oClearAllForwardings=yes", "-oForwardAgent=no", "-oForwardX11=no", "-oPermitLocalCommand=no"),
    *("-oRemoteCommand=none", "-oStdinNull=no", "-oForkAfterAuthentication=no", "-oSessionType=default"),
)
_HINTS = (
    ("host key verification failed", "connect once by hand to check its key: `ssh {target}`"),
    ("permission denied", "let your key in: `ssh-copy-id {target}`"),
    ("could not resolve", "check the name, or add it to ~/.ssh/config"),
    ("connection refused", "check the port, and that sshd runs there"),
)


@dataclass(eq=False)
class Ssh:
    """Another machine, through the user's own `ssh`, ~/.ssh/config and agent.

    No terminal is asked for: without one `pct` ends cleanly when the line drops. One connection serves all commands
    and closes a minute after the last, or when this object goes.
    """

    host: str
    user: str = "root"
    port: int | None = None
    program: Sequence[str] = ("ssh",)  # with further options, such as ``-F FILE``
    _folder: tempfile.TemporaryDirectory[str] = field(init=False, repr=False)
    _sockets: list[str] = field(init=False, repr=False)  # of the connections, the newest last

    def __post_init__(self) -> None:
        self._folder = _own_folder()
        self._sockets = [f"{self._folder.name}/0"]
        weakref.finalize(self, _close, self._command(), self._sockets, self.host, _ssh_env())

    @property
    def name(self) -> str:
        """As messages name it."""
        return f"ssh {self.target}"

    @property
    def target(self) -> str:
        """As a person types it behind `ssh`."""
        return f"{self.user}@{self.host}" if self.port is None else f"-p {self.port} {self.user}@{self.host}"

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | Path | None = None,
        timeout: float | None = None,
        output: Output | None = None,
    ) -> Done:
        """As `Channel.run`. What was running when the line dropped or the time was over may still run there."""
        mark = f"builder-{token_hex(8)}"
        clean = ("env", "-i", f"PATH={PATH}", "HOME=/root", "LC_ALL=C")
        remote = shlex.join(["exec", *clean, "sh", "-c", _REMOTE, "sh", mark, *argv])
        status, out, err = self._try(argv, remote, stdin, timeout, output)
        if status == _NO_SESSION and not err:  # a shared connection that ended as this one joined it: nothing ran
            self._renew()
            status, out, err = self._try(argv, remote, stdin, timeout, output)
        ended = re.search(rb"%b\n(.*)\n%b (\d+)\n" % (mark.encode(), mark.encode()), err, re.DOTALL)
        if ended:
            return Done(tuple(argv), int(ended[2]), out, ended[1])
        self._renew()
        if mark.encode() in err:
            what = f"the line dropped while `{shown(argv)}` ran; nobody knows how it ended"
            raise LostError(what, where=self.name, hint="`builder deploy --resume` looks and goes on")
        said = tail(err).rstrip(".") or f"ssh ended with {status} and said nothing"
        hints = (hint.format(target=self.target) for text, hint in _HINTS if text in said.lower())
        raise AwayError(f"no connection: {said}", where=self.name, hint=next(hints, f"try `ssh {self.target}`"))

    def _try(
        self,
        argv: Sequence[str],
        remote: str,
        stdin: bytes | Path | None,
        timeout: float | None,
        output: Output | None,
    ) -> tuple[int, bytes, bytes]:
        try:
            return _run([*self._ssh(), "--", self.host, remote], _ssh_env(), stdin, timeout, output)
        except FileNotFoundError as error:
            hint = "install openssh-client"
            raise BuilderError("command not found", where=self.program[0], hint=hint) from error
        except BuilderError as error:
            if isinstance(error, LateError):
                self._renew()
            raise type(error)(error.what, where=f"{self.name}: {shown(argv)}", hint=error.hint) from error

    def _renew(self) -> None:
        """The next command opens a connection of its own: a master that ends would take it along."""
        self._sockets.append(f"{self._folder.name}/{len(self._sockets)}")

    def _ssh(self) -> list[str]:
        return [*self._command(), f"-oControlPath={self._sockets[-1]}"]

    def _command(self) -> list[str]:
        port = () if self.port is None else ("-p", str(self.port))
        return [*self.program, *_OPTIONS, "-l", self.user, *port]


def _own_folder() -> tempfile.TemporaryDirectory[str]:
    """A new folder, locked while this process lives; those that killed ones of this user left are removed.

    The lock tells who lives, not the process's number: another PID namespace may share the folder for temporary files.
    """
    for left in Path(tempfile.gettempdir()).glob("builder-ssh-*"):
        with suppress(OSError):
            _remove_left(left)
    folder = tempfile.TemporaryDirectory(prefix="builder-ssh-")
    fcntl.flock(os.open(folder.name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), fcntl.LOCK_EX)
    return folder


def _remove_left(folder: Path) -> None:
    """Remove a folder that nobody holds. Raises OSError, BlockingIOError when somebody does."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if status.st_uid == os.geteuid() and time.time() - status.st_mtime >= _NEW:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
    finally:
        os.close(fd)


def _ssh_env() -> dict[str, str]:
    own = {"PATH": PATH, "HOME": str(Path.home()), "LC_ALL": "C"}
    agent = os.environ.get("SSH_AUTH_SOCK")
    return own if agent is None else {**own, "SSH_AUTH_SOCK": agent}


def _close(command: Sequence[str], sockets: Sequence[str], host: str, env: Mapping[str, str]) -> None:
    for path in sockets:
        argv = [*command, f"-oControlPath={path}", "-O", "exit", "--", host]
        with suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(argv, env=env, check=False, capture_output=True, stdin=subprocess.DEVNULL, timeout=5)


def _run(
    argv: Sequence[str],
    env: Mapping[str, str],
    stdin: bytes | Path | None,
    timeout: float | None,
    output: Output | None,
) -> tuple[int, bytes, bytes]:
    """Run `argv` in a session of its own: its status (128 + N for signal N), standard output and error.

    Raises FileNotFoundError when there is no such program, BuilderError when `stdin` cannot be read or `argv` cannot be
    started, LateError when the time is over. Whatever is raised while it runs, an interrupt too, ends it first.
    """
    source = _source(stdin)
    try:
        process = subprocess.Popen(
            list(argv),
            env=dict(env),
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BuilderError(error.strerror or str(error), where=argv[0]) from error
    finally:
        if source != subprocess.DEVNULL:
            os.close(source)
    try:
        deadline = None if timeout is None else time.monotonic() + timeout
        out, err = _read(argv, process, deadline, output)
        process.wait(_left(deadline))
    except subprocess.TimeoutExpired as error:
        _end(process)
        raise LateError(f"not done within {timeout:g} seconds", where=shown(argv)) from error
    except BaseException:
        _end(process)
        raise
    finally:
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    status = process.returncode
    return (status if status >= 0 else 128 - status), out, err


def _source(stdin: bytes | Path | None) -> int:
    """A descriptor to read `stdin` from; bytes are kept in memory, where no other user finds them."""
    if stdin is None:
        return subprocess.DEVNULL
    if isinstance(stdin, Path):
        try:
            return os.open(stdin, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise BuilderError(error.strerror or str(error), where=stdin) from error
    source = os.memfd_create("stdin")
    with open(source, "wb", closefd=False) as file:
        file.write(stdin)
    os.lseek(source, 0, os.SEEK_SET)
    return source


def _read(
    argv: Sequence[str], process: subprocess.Popen[bytes], deadline: float | None, output: Output | None
) -> tuple[bytes, bytes]:
    """Both outputs to their ends. Raises subprocess.TimeoutExpired, BuilderError when there is no end to them."""
    assert process.stdout is not None
    assert process.stderr is not None
    out, err = bytearray(), bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ, output or out.extend)
        selector.register(process.stderr, selectors.EVENT_READ, err.extend)
        while selector.get_map():
            for key, _ in selector.select(_left(deadline)):
                piece = os.read(key.fd, _PIECE)
                if piece:
                    key.data(piece)
                    if len(out) + len(err) > _MOST:
                        raise BuilderError(f"said more than {_MOST >> 20} MiB", where=shown(argv))
                else:
                    selector.unregister(key.fileobj)
    return bytes(out), bytes(err)


def _left(deadline: float | None) -> float | None:
    """Seconds until then. Raises subprocess.TimeoutExpired when there are none."""
    if deadline is None:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise subprocess.TimeoutExpired((), 0)
    return left


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and what it started: asked first, then killed. What waits for a disk that hangs stays."""
    try:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        pass
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
