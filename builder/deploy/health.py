"""Starting vLLM's service and waiting until it has answered.

The unit counts as started once a real completion or embedding came back (ExecStartPost), so systemd's own state is the
state of health: nothing is asked of a server that is still compiling.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from builder.deploy.host.base import Host
from builder.deploy.inside import UNIT, call, plain, reason, table, texts
from builder.deploy.profile.model import Profile
from builder.deploy.shell import AwayError, LateError
from builder.errors import BuilderError
from builder.progress import Progress

DEADLINE = 1800.0
"""Seconds: a first start compiles kernels, and its first request may do so again."""
_PAUSE = 1.0
_AWAY_PAUSE = 5.0
_BOOT = 60  # pauses
_LINES = 40
_ALL = 1000  # lines: an engine's own traceback is followed by those of who waited for it
_SHOWN = 6
_SAYS = (
    (re.compile(r"completion of \d+ tokens|embedding of \d+ numbers"), "the first answer came back"),
    (re.compile(r"Application startup complete|\"GET /health"), "waiting for the first answer"),
    (re.compile(r"[Cc]apturing (?:the model for )?(?:CUDA|cuda) ?graph"), "capturing CUDA graphs"),
    (re.compile(r"torch\.compile|Dynamo bytecode|Compiling a graph|[Ww]arming up model"), "compiling (torch.compile)"),
    (re.compile(r"KV cache|profil(?:e|ing) run|memory profiling"), "measuring memory"),
    (
        re.compile(r"[Ll]oading (?:safetensors|weights|model|pt)|Starting to load model|checkpoint shards"),
        "loading weights",
    ),
    (re.compile(r"Resolved architecture|Initializing a V"), "starting the engine"),
    (re.compile(r"Automatically detected platform|API server version"), "importing vLLM"),
)
"""What vLLM 0.10's log lines mean, the last stage first."""
_PERCENT = re.compile(r"(\d+%) Completed|\|\s*(\d+/\d+) \[")
_PREFIX = re.compile(r"^(?:\(\w+ pid=\d+\) ?)?(?:ERROR \d\d-\d\d [\d:]+ \[[^]]*\] ?)?")
_EXCEPTION = re.compile(r"(?:\w+\.)*\w*(?:Error|Exception|Interrupt): ")
_SYSTEMD = re.compile(r"vllm\.service: |(?:Starting|Started|Stopping|Stopped|Failed to start) vllm\.service\b")
_GENERIC = re.compile(r"Engine core initialization failed|See root cause|SystemExit")
T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """One real answer of a served model."""

    model: str  # as it is served
    kind: str  # "completion" or "embedding"
    amount: int  # tokens of a completion, numbers of an embedding
    seconds: float

    def __str__(self) -> str:
        unit = "numbers" if self.kind == "embedding" else "tokens"
        return f"{self.model}, {self.kind} of {self.amount} {unit} in {self.seconds:.2f} s"


def ask(host: Host, ctid: int, profile: Profile | None = None, *, timeout: float = 300) -> Answer:
    """One completion or embedding, made inside the container; the API key stays there.

    Raises BuilderError when the service does not run, does not answer, or is not what `profile` says.
    """
    answer = _answer(call(host, ctid, "ask", timeout=timeout), f"container {ctid}")
    if profile is not None and (answer.model, answer.kind) != (profile.served_name, profile.task):
        what = f"{answer.model} gave a {answer.kind}; profile {profile.name} is {profile.served_name}, {profile.task}"
        raise BuilderError(what, where=f"container {ctid}")
    return answer


def ask_other(host: Host, base: str, key: str | None, *, ctid: int | None = None, timeout: float = 300) -> Answer:
    """One completion or embedding of the server at `base`, asked for in a container of the builder, else by the host.

    Raises BuilderError when none comes.
    """
    try:
        told = call(host, ctid, "ask", base, key=key, timeout=timeout)
    except BuilderError as error:
        origin = host.name if ctid is None else f"container {ctid}"
        raise BuilderError(f"{reason(error)}, asked from {origin}", where=base) from error
    return _answer(told, base)


def _answer(told: Mapping[str, Any], where: str) -> Answer:
    try:
        answer = Answer(plain(told["model"]), plain(told["kind"]), int(told["amount"]), float(told["seconds"]))
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise BuilderError("its answer cannot be read", where=where) from error
    if answer.amount < 1:
        raise BuilderError(f"an empty {answer.kind} came back", where=where)
    return answer


def wait(
    host: Host,
    ctid: int,
    profile: Profile,
    *,
    deadline: float = DEADLINE,
    progress: Progress,
    sleep: Callable[[float], None] = time.sleep,
) -> Answer:
    """Start the service anew with what is in /etc/vllm, and wait until it has answered; then ask once more, timed.

    `deadline` is in seconds. A line that drops meanwhile disturbs nothing in there: a new one is tried until then.
    Raises BuilderError as soon as the service has failed or begins again, or the time is over, ending with the
    service's own last lines of this start; AwayError when the host does not answer any more.
    """
    end = time.monotonic() + deadline

    def patient(look: Callable[[], T]) -> T:
        try:
            return _patient(look, end, progress, sleep)
        except LateError as error:
            if not _is_there(host):
                raise
            raise BuilderError(f"hangs: {error.what}", where=f"container {ctid}", hint="see `pct enter`") from error

    before = patient(lambda: _settled(host, ctid, sleep))
    argv = host.inside(ctid, ("systemctl", "restart", "--no-block", UNIT))
    host.shell.do(*argv, timeout=60).check()
    doing = "starting"
    with progress.task(f"serve {profile.name}") as task:
        while True:
            state = patient(lambda: call(host, ctid, "state", str(_LINES)))
            unit, log = _unit(state), texts(state, "log")
            is_new = unit.get("InvocationID", "") not in ("", before)
            if is_new:
                doing = stage(log) or doing
                task.note(doing)
            if why := _failure(unit, is_new):
                raise _error(host, ctid, f"{UNIT} {why}", is_new)
            if is_new and unit.get("ActiveState") == "active":
                break
            if time.monotonic() >= end:
                raise _error(host, ctid, f"no answer within {deadline:.0f} s, it was {doing}", is_new)
            sleep(_PAUSE)
    return patient(lambda: ask(host, ctid, profile))


def _patient(look: Callable[[], T], end: float, progress: Progress, sleep: Callable[[float], None]) -> T:
    """What `look` gives, again and again while the host does not answer, until `end` of the monotonic clock."""
    told = False
    while True:
        try:
            return look()
        except AwayError as error:
            if time.monotonic() >= end:
                raise
            if not told:
                progress.say(f"{error.where}: {error.what}; looking again")
                told = True
            sleep(_AWAY_PAUSE)


def _is_there(host: Host) -> bool:
    """Whether the host itself answers: then it is the container that does not."""
    try:
        return host.shell.ask("true", timeout=_AWAY_PAUSE).status == 0
    except AwayError:
        return False


def stage(log: Sequence[str]) -> str:
    """What a service that starts is doing, from its last lines; empty when none of them says."""
    for pattern, doing in _SAYS:
        for line in reversed(log):
            if pattern.search(line):
                part = _PERCENT.search(line)
                return f"{doing} {part[1] or part[2]}" if part else doing
    return ""


def _settled(host: Host, ctid: int, sleep: Callable[[float], None]) -> str:
    """The id of the service's last run, once systemd answers in a container that was just started; empty for none."""
    for _ in range(_BOOT):
        unit = _unit(call(host, ctid, "state", "0"))
        if unit.get("ActiveState"):
            return unit.get("InvocationID", "")
        sleep(_PAUSE)
    raise BuilderError("its systemd does not answer", where=f"container {ctid}", hint="look at it with `pct enter`")


def _unit(state: Mapping[str, object]) -> dict[str, str]:
    return {key: plain(value) for key, value in table(dict(state), "unit").items()}


def _failure(unit: Mapping[str, str], is_new: bool) -> str:
    """Why the start has failed; empty while it has not."""
    active, sub, result = (unit.get(key, "") for key in ("ActiveState", "SubState", "Result"))
    if not is_new:
        if unit.get("Job") or active not in ("inactive", "failed"):
            return ""  # the job is queued, or the last run is still ending
        if unit.get("ConditionResult") == "no":
            return "did not start: /etc/vllm/serve.yaml is not there"
        return f"did not start ({result or active})"
    if active == "failed" or sub == "auto-restart":
        return f"failed ({result}, exit status {unit.get('ExecMainStatus', '?')})"
    if unit.get("NRestarts", "0") not in ("", "0"):
        return f"ended and was begun again {unit['NRestarts']} times"
    if active == "inactive" and not unit.get("Job"):
        return f"ended ({result})"
    return ""


def _error(host: Host, ctid: int, what: str, has_begun: bool) -> BuilderError:
    """With the first exception that says more than that the engine failed, then the service's own last lines.

    Frames of tracebacks, which are indented, and systemd's words about the unit are left out.
    """
    log = texts(call(host, ctid, "state", str(_ALL)), "log") if has_begun else ()
    own = [_PREFIX.sub("", line) for line in log]
    own = [line for line in own if line and not line.startswith((" ", "Traceback (")) and not _SYSTEMD.match(line)]
    last = own[-_SHOWN:]
    first = [line for line in own if _EXCEPTION.match(line) and not _GENERIC.search(line)][:1]
    said = " | ".join(plain(line) for line in (*(line for line in first if line not in last), *last))
    return BuilderError(f"{what}; its log: {said or 'empty'}", where=f"container {ctid}")
