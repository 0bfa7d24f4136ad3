"""Measures a deployment with vLLM's own `vllm bench serve`, run inside its container, and sets two side by side.

The other may be a server that the builder did not make: it is asked over the network by the same client in the same
container, and never stopped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from typing import Any

from builder.deploy import gpu, health
from builder.deploy.adopted import Server
from builder.deploy.deployments import Deployment
from builder.deploy.host.base import Host
from builder.deploy.inside import UNIT, call, plain, table, texts
from builder.deploy.model import from_jsonable
from builder.deploy.profile.model import Bench, Profile
from builder.errors import BuilderError, UsageError
from builder.progress import Progress

PERCENTILES = (50, 90, 99)
_TIMEOUT = 7200.0
_LEAST, _EACH, _MOST = 16, 4, 8192
"""Requests of one measurement when nobody says: so many for each client, at least and at most so many."""
_SHORTEST = 5.0
"""Seconds; a shorter measurement is made again with more requests, unless their number was given."""
_PATH = (
    ("attention", re.compile(r"Using (.+? backend)")),
    ("engine", re.compile(r"Initializing a (V\d) LLM engine \((\S+?)\)")),
    ("quantization", re.compile(r"\bquantization=([^,\s]+)")),
    ("KV cache", re.compile(r"\bkv_cache_dtype=([^,\s]+)")),
    ("type", re.compile(r"\bdtype=(?:torch\.)?([^,\s]+)")),
    ("tensor parallel", re.compile(r"\btensor_parallel_size=(\d+)")),
    ("eager", re.compile(r"\benforce_eager=(\w+)")),
    ("kernel", re.compile(r"Using (\S*(?:[Mm]arlin|[Cc]utlass|CUTLASS|Kernel)\S*)")),
    ("room", re.compile(r"KV cache size: ([\d,]+ tokens)")),
)
"""What a server says at its start about the path that it takes."""


@dataclass(frozen=True)
class Load:
    """What is asked of a server."""

    concurrency: tuple[int, ...]
    input_tokens: int
    output_tokens: int
    prompts: int | None = None  # requests of each measurement; None: so many that it takes some seconds


@dataclass(frozen=True)
class Point:
    """One measurement. Rates are of all clients together; times are percentiles (50, 90, 99) in milliseconds."""

    concurrency: int
    requests: int
    failed: int
    seconds: float
    requests_per_second: float
    tokens_per_second: float  # generated; of an embedding those read
    ttft_ms: tuple[float, ...]  # to the first token; empty for embeddings, as are the next two
    tpot_ms: tuple[float, ...]  # for each further token
    itl_ms: tuple[float, ...]  # between two pieces that arrive
    latency_ms: tuple[float, ...]  # of a whole request
    errors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Series:
    """One server's measurements, with what it said at its start about the path that it takes."""

    name: str
    ctid: int | None  # None: a server known by its address alone
    profile: str
    recipe: str
    digest: str
    model: str
    kind: str
    cards: tuple[str, ...]
    path: tuple[tuple[str, str], ...]
    points: tuple[Point, ...]
    base: str = ""  # the address of a server that the builder did not make: of it profile to path are not known
    tokenizer: str = ""  # that of the client, which made the prompts

    @property
    def label(self) -> str:
        """As tables and file names have it."""
        return self.base.partition("//")[2] if self.ctid is None else str(self.ctid)


@dataclass(frozen=True)
class Ratio:
    """The first server's rate by the second's."""

    concurrency: int
    tokens: float


@dataclass(frozen=True)
class Result:
    """A bench from beginning to end."""

    date: str  # ISO 8601, UTC
    host: str
    seed: int  # of the prompts, new each time: a server keeps the prefixes that it has seen
    load: Load
    series: tuple[Series, ...]
    ratios: tuple[Ratio, ...]
    alone: bool  # the other server was stopped while one was measured
    notes: tuple[str, ...] = ()  # what is to be known of a comparison with a server that the builder did not make


def load_of(host: Host, found: Deployment, **given: Any) -> Load:
    """What the deployment's profile asks for, with what is given (None: not) in its place."""
    told = table(table(call(host, found.guest.ctid, "look"), "record"), "profile").get("bench")
    try:
        bench = from_jsonable(Bench, told) if told else Bench()
        bench = Bench(int(bench.input_tokens), int(bench.output_tokens), tuple(map(int, bench.concurrency)))
    except (LookupError, TypeError, ValueError, OverflowError):
        bench = Bench()
    return Load(
        given.get("concurrency") or bench.concurrency,
        given.get("input_tokens") or bench.input_tokens,
        given.get("output_tokens") or bench.output_tokens,
        given.get("prompts"),
    )


def measure(
    host: Host,
    found: Deployment,
    against: Deployment | Server | None,
    load: Load,
    progress: Progress,
    *,
    alone: bool = False,
) -> Result:
    """Measure one deployment, or two one after the other under the same load.

    Where both do not fit their cards together, or with `alone`, each is measured while the other's service is stopped.
    Services that ran before run again afterwards, the others not; a server that the builder did not make stays up.
    Raises UsageError when a container is stopped, BuilderError when a server does not run, does not come up, refuses
    every request, or one gives embeddings and the other, not the builder's, completions.
    """
    chosen = (found, against) if isinstance(against, Deployment) else (found,)
    for each in chosen:
        if not each.guest.running:
            raise UsageError("is stopped", where=f"container {each.guest.ctid}", hint="start it first")
    apart = isinstance(against, Deployment) and (alone or not fit_together(found, against))
    targets: list[Callable[[], _Target]] = [partial(_own, host, each) for each in chosen]
    if isinstance(against, Server):
        foreign = _foreign(host, found, against)
        targets.append(lambda: foreign)
    now = datetime.now(timezone.utc)
    seed = int(now.timestamp())
    ran = {each.guest.ctid: _runs(host, each) for each in chosen}
    counts = {clients: load.prompts or max(_LEAST, _EACH * clients) for clients in load.concurrency}
    series: list[Series] = []
    try:
        for number, target in enumerate(targets):
            if apart:
                _switch(host, chosen[1 - number], "stop")
                _start(host, chosen[number], progress)
            series.append(_series(target(), load, counts, seed, progress, fixed=bool(series or load.prompts)))
            counts = {point.concurrency: point.requests for point in series[0].points}
    finally:
        if apart:
            for each in sorted(chosen, key=lambda each: ran[each.guest.ctid]):  # stop first, then start
                _switch(host, each, "start" if ran[each.guest.ctid] else "stop")
    ratios = compare(series[0], series[1]) if len(series) == 2 else ()
    date = now.isoformat(timespec="seconds")
    notes = _notes(found, against, series[-1]) if isinstance(against, Server) else ()
    return Result(date, host.name, seed, load, tuple(series), ratios, apart, notes)


def fit_together(one: Deployment, other: Deployment) -> bool:
    """Whether the memory shares of both fit every card that they have in common."""
    common = set(one.mark.gpus) & set(other.mark.gpus)
    return not common or one.mark.share + other.mark.share <= gpu.LIMIT + 1e-9


def compare(one: Series, other: Series) -> tuple[Ratio, ...]:
    """The rates of `one` by those of `other`, where both were measured."""
    rates = {point.concurrency: point.tokens_per_second for point in other.points}
    return tuple(
        Ratio(point.concurrency, point.tokens_per_second / rates[point.concurrency])
        for point in one.points
        if rates.get(point.concurrency)
    )


def path_of(log: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """What a server's lines at its start say about the path that it takes, as names and values."""
    found: dict[str, str] = {}
    for name, pattern in _PATH:
        for line in log:
            if name not in found and (match := pattern.search(line)):
                found[name] = " ".join(match.groups())
    return tuple(found.items())


def point_of(told: dict[str, Any], concurrency: int, requests: int) -> Point:
    """One measurement from what vLLM wrote. Raises BuilderError when it is not of the expected form."""
    result, errors = table(told, "result"), table(told, "errors")
    try:
        rate = result["total_token_throughput" if told["kind"] == "embedding" else "output_throughput"]
        return Point(
            concurrency=concurrency,
            requests=requests,
            failed=requests - int(result["completed"]),
            seconds=float(result["duration"]),
            requests_per_second=float(result["request_throughput"]),
            tokens_per_second=float(rate),
            ttft_ms=_percentiles(result, "ttft"),
            tpot_ms=_percentiles(result, "tpot"),
            itl_ms=_percentiles(result, "itl"),
            latency_ms=_percentiles(result, "e2el"),
            errors=tuple(f"{plain(text)} ({plain(count)} times)" for text, count in list(errors.items())[:5]),
        )
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise BuilderError(f"the result of `vllm bench serve` cannot be read: {error}") from error


def _percentiles(result: dict[str, Any], name: str) -> tuple[float, ...]:
    keys = [f"p{percentile}_{name}_ms" for percentile in PERCENTILES]
    return tuple(float(result[key]) for key in keys) if all(key in result for key in keys) else ()


@dataclass(frozen=True)
class _Target:
    """A server to be measured."""

    about: Series  # without points
    bench: Callable[..., dict[str, Any]]  # one run of `vllm bench serve` with these options


def _own(host: Host, found: Deployment) -> _Target:
    ctid, mark = found.guest.ctid, found.mark
    answer = health.ask(host, ctid)
    path = path_of(texts(call(host, ctid, "proof"), "log"))
    names = {card.index: plain(card.name) for card in gpu.look(host.shell).cards} if mark.gpus else {}
    about = Series(
        name=plain(mark.name),
        ctid=ctid,
        profile=plain(mark.profile),
        recipe=plain(mark.recipe),
        digest=plain(mark.digest),
        model=answer.model,
        kind=answer.kind,
        cards=tuple(names.get(index, f"card {index}") for index in mark.gpus),
        path=path,
        points=(),
    )
    return _Target(about, partial(call, host, ctid, "bench", timeout=_TIMEOUT))


def _foreign(host: Host, found: Deployment, server: Server) -> _Target:
    """A server that the client in the container of `found` reaches over the network."""
    ctid = found.guest.ctid
    own, answer = health.ask(host, ctid), health.ask_other(host, server.base, server.key, ctid=ctid)
    if answer.kind != own.kind:
        raise BuilderError(f"{server.label} gives {answer.kind}s, {ctid} {own.kind}s", hint="name another")
    cards = tuple(f"card {index}" for index in server.cards or ())
    about = Series(server.name, server.ctid, "", "", "", answer.model, answer.kind, cards, (), (), server.base)
    return _Target(about, partial(call, host, ctid, "bench-other", server.base, key=server.key, timeout=_TIMEOUT))


def _notes(found: Deployment, server: Server, series: Series) -> tuple[str, ...]:
    """What the reader of a comparison with a server that the builder did not make must know."""
    ctid, common = found.guest.ctid, sorted(set(found.mark.gpus) & set(server.cards or ()))
    up = f"{series.label} was never stopped: both servers were up all the time"
    if common:
        up += f", and both hold card {', '.join(map(str, common))}"
    elif server.cards is None and found.mark.gpus:
        up += ", and nobody knows whether they share a card"
    tokens = f"the prompts for {series.label} have their length by the tokenizer {series.tokenizer}"
    return (
        f"the load on {series.label} was made in container {ctid}, over the network",
        up,
        f"{tokens} in container {ctid}; a server with another may read more or fewer tokens",
    )


def _series(
    target: _Target, load: Load, counts: Mapping[int, int], seed: int, progress: Progress, *, fixed: bool
) -> Series:
    most, label = max(load.concurrency), target.about.label

    def point(clients: int, count: int, seed: int) -> Point:
        with progress.task(f"bench {label}: {count} requests, {clients} at once"):
            return point_of(target.bench(*_options(load, clients, count, seed)), clients, count)

    with progress.task(f"bench {label}: warm-up"):
        first = target.bench(*_options(load, most, most, seed))
    points = []
    for clients, count in counts.items():
        made = point(clients, count, seed + clients)
        if made.seconds < _SHORTEST and not fixed:
            more = min(_MOST, math.ceil(1.2 * count * _SHORTEST / max(made.seconds, 0.01)))
            made = point(clients, more, seed + _MOST + clients)
        points.append(made)
    tokenizer = plain(table(first, "result").get("tokenizer_id") or "")
    return replace(target.about, points=tuple(points), tokenizer=tokenizer)


def _options(load: Load, clients: int, requests: int, seed: int) -> list[str]:
    """Of one run of `vllm bench serve`. Each seed makes prompts of its own."""
    options = {
        "--dataset-name": "random",
        "--random-input-len": load.input_tokens,
        "--random-output-len": load.output_tokens,
        "--num-prompts": requests,
        "--max-concurrency": clients,
        "--seed": seed,
        "--percentile-metrics": "ttft,tpot,itl,e2el",
        "--metric-percentiles": ",".join(map(str, PERCENTILES)),
    }
    return [str(word) for pair in options.items() for word in pair]


def _runs(host: Host, found: Deployment) -> bool:
    unit = table(call(host, found.guest.ctid, "state", "0"), "unit")
    return unit.get("ActiveState") in ("active", "activating")


def _switch(host: Host, found: Deployment, verb: str) -> None:
    """Stop the service, done when it has ended; or start it, without waiting for its first answer."""
    wait = ("--no-block",) if verb == "start" else ()
    argv = host.inside(found.guest.ctid, ("systemctl", verb, *wait, UNIT))
    host.shell.do(*argv, timeout=120).check()


def _start(host: Host, found: Deployment, progress: Progress) -> None:
    """Start the service and wait for its first answer, unless it runs and answers."""
    record = table(call(host, found.guest.ctid, "look"), "record")
    try:
        profile = from_jsonable(Profile, record["profile"])
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        what = "there is no record of its profile in it"
        raise BuilderError(what, where=f"container {found.guest.ctid}") from error
    unit = table(call(host, found.guest.ctid, "state", "0"), "unit")
    if unit.get("ActiveState") != "active":
        health.wait(host, found.guest.ctid, profile, progress=progress)
