"""Measures a deployment with vLLM's own `vllm bench serve`, run inside its container, and sets two side by side."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from builder.deploy import gpu, health
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
    ctid: int
    profile: str
    recipe: str
    digest: str
    model: str
    kind: str
    cards: tuple[str, ...]
    path: tuple[tuple[str, str], ...]
    points: tuple[Point, ...]


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


def load_of(host: Host, found: Deployment, **given: Any) -> Load:
    """What the deployment's profile asks for, with what is given (None: not) in its place."""
    told = table(table(call(host, found.guest.ctid, "look"), "record"), "profile").get("bench")
    try:
        bench = from_jsonable(Bench, told) if told else Bench()
        bench = Bench(int(bench.input_tokens), int(bench.output_tokens), tuple(map(int, bench.concurrency)))
    except (LookupError, TypeError, ValueError):
        bench = Bench()
    return Load(
        given.get("concurrency") or bench.concurrency,
        given.get("input_tokens") or bench.input_tokens,
        given.get("output_tokens") or bench.output_tokens,
        given.get("prompts"),
    )


def measure(
    host: Host, found: Deployment, against: Deployment | None, load: Load, progress: Progress, *, alone: bool = False
) -> Result:
    """Measure one deployment, or two one after the other under the same load.

    Where both do not fit their cards together, or with `alone`, each is measured while the other's service is stopped.
    Services that ran before run again afterwards, the others not. Raises UsageError when a container is stopped,
    BuilderError when a server does not run, does not come up or refuses every request.
    """
    chosen = (found,) if against is None else (found, against)
    for each in chosen:
        if not each.guest.running:
            raise UsageError("is stopped", where=f"container {each.guest.ctid}", hint="start it first")
    apart = against is not None and (alone or not fit_together(found, against))
    now = datetime.now(timezone.utc)
    seed = int(now.timestamp())
    ran = {each.guest.ctid: _runs(host, each) for each in chosen}
    counts = {clients: load.prompts or max(_LEAST, _EACH * clients) for clients in load.concurrency}
    series: list[Series] = []
    try:
        for each in chosen:
            if apart:
                for other in chosen:
                    if other is not each:
                        _switch(host, other, "stop")
                _start(host, each, progress)
            series.append(_series(host, each, load, counts, seed, progress, fixed=bool(series or load.prompts)))
            counts = {point.concurrency: point.requests for point in series[0].points}
    finally:
        if apart:
            for each in sorted(chosen, key=lambda each: ran[each.guest.ctid]):  # stop first, then start
                _switch(host, each, "start" if ran[each.guest.ctid] else "stop")
    ratios = compare(series[0], series[1]) if len(series) == 2 else ()
    date = now.isoformat(timespec="seconds")
    return Result(date, host.name, seed, load, tuple(series), ratios, apart)


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
    except (LookupError, TypeError, ValueError) as error:
        raise BuilderError(f"the result of `vllm bench serve` cannot be read: {error}") from error


def _percentiles(result: dict[str, Any], name: str) -> tuple[float, ...]:
    keys = [f"p{percentile}_{name}_ms" for percentile in PERCENTILES]
    return tuple(float(result[key]) for key in keys) if all(key in result for key in keys) else ()


def _series(
    host: Host,
    found: Deployment,
    load: Load,
    counts: Mapping[int, int],
    seed: int,
    progress: Progress,
    *,
    fixed: bool,
) -> Series:
    ctid, mark = found.guest.ctid, found.mark
    most = max(load.concurrency)
    answer = health.ask(host, ctid)
    path = path_of(texts(call(host, ctid, "proof"), "log"))
    names = {card.index: plain(card.name) for card in gpu.look(host.shell).cards} if mark.gpus else {}
    with progress.task(f"bench {ctid}: warm-up"):
        _bench(host, ctid, load, most, most, seed)
    points = []
    for clients, count in counts.items():
        point = _point(host, ctid, load, clients, count, seed + clients, progress)
        if point.seconds < _SHORTEST and not fixed:
            more = min(_MOST, math.ceil(1.2 * count * _SHORTEST / max(point.seconds, 0.01)))
            point = _point(host, ctid, load, clients, more, seed + _MOST + clients, progress)
        points.append(point)
    return Series(
        name=plain(mark.name),
        ctid=ctid,
        profile=plain(mark.profile),
        recipe=plain(mark.recipe),
        digest=plain(mark.digest),
        model=answer.model,
        kind=answer.kind,
        cards=tuple(names.get(index, f"card {index}") for index in mark.gpus),
        path=path,
        points=tuple(points),
    )


def _point(host: Host, ctid: int, load: Load, clients: int, count: int, seed: int, progress: Progress) -> Point:
    with progress.task(f"bench {ctid}: {count} requests, {clients} at once"):
        return point_of(_bench(host, ctid, load, clients, count, seed), clients, count)


def _bench(host: Host, ctid: int, load: Load, clients: int, requests: int, seed: int) -> dict[str, Any]:
    """One run of `vllm bench serve`. Each seed makes prompts of its own."""
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
    words = [str(word) for pair in options.items() for word in pair]
    return call(host, ctid, "bench", *words, timeout=_TIMEOUT)


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
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        what = "there is no record of its profile in it"
        raise BuilderError(what, where=f"container {found.guest.ctid}") from error
    unit = table(call(host, found.guest.ctid, "state", "0"), "unit")
    if unit.get("ActiveState") != "active":
        health.wait(host, found.guest.ctid, profile, progress=progress)
