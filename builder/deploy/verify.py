"""What can be proved of a deployment that runs: each row with its evidence, and what could not be seen says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from builder.deploy import adopted, health
from builder.deploy.deployments import Deployment
from builder.deploy.host.base import Host
from builder.deploy.inside import call, plain, reason, table, texts
from builder.errors import BuilderError
from builder.progress import Progress

OK, FAILED, UNCHECKED = "ok", "failed", "not checked"
CLIENTS, SECONDS = 8, 5
"""The short load."""
_INSIDE = ("service", "vLLM", "torch", "FlashInfer", "nvcc", "driver", "CUDA", "GPU", "limits", "caches")
"""Rows that need somebody in the container."""
_WANTED_FILES, _NEEDED_FILES = 65536, 4096
"""Open files: what the unit asks for, which the host may cap, and below what requests fail."""


@dataclass(frozen=True)
class Row:
    """One thing that was looked at."""

    name: str
    state: str  # "ok", "failed" or "not checked"
    evidence: str


def verify(host: Host, found: Deployment, progress: Progress) -> tuple[Row, ...]:
    """Look at everything, one row after the other. Raises LostError when the line drops, nothing else."""
    ctid, on_cpu = found.guest.ctid, not found.mark.gpus
    checks: tuple[tuple[str, Callable[[], Iterator[Row]]], ...] = (
        ("service", partial(_service, host, ctid)),
        ("versions", partial(_versions, host, ctid, on_cpu)),
        ("GPU", partial(_gpu, host, ctid, len(found.mark.gpus))),
        ("models", partial(_models, host, ctid)),
        ("answer", partial(_answer, host, ctid)),
        ("process", partial(_process, host, ctid)),
        ("load", partial(_load, host, ctid)),
    )
    return tuple(_rows(checks, ctid, progress))


def verify_adopted(host: Host, server: adopted.Server, progress: Progress) -> tuple[Row, ...]:
    """What can be seen of a server that the builder did not make: it is asked by HTTP, from the host."""
    checks: tuple[tuple[str, Callable[[], Iterator[Row]]], ...] = (
        ("models", partial(_models_of, host, server)),
        ("answer", partial(_answer_of, host, server)),
        ("load", partial(_load, host, None, server.base, key=server.key)),
    )
    rest = (Row(name, UNCHECKED, adopted.NOT_OURS) for name in _INSIDE)
    return (*rest, *_rows(checks, server.label, progress))


def _rows(
    checks: Sequence[tuple[str, Callable[[], Iterator[Row]]]], label: object, progress: Progress
) -> Iterator[Row]:
    for name, check in checks:
        with progress.task(f"verify {label}: {name}"):
            try:
                found = tuple(check())
            except BuilderError as error:
                found = (Row(name, UNCHECKED, reason(error)),)
        yield from found


def _service(host: Host, ctid: int) -> Iterator[Row]:
    unit = {key: plain(value) for key, value in table(call(host, ctid, "state", "0"), "unit").items()}
    state = f"{unit.get('ActiveState')} ({unit.get('SubState')})"
    restarts = unit.get("NRestarts", "0")
    since = f" since {unit['ActiveEnterTimestamp']}" if unit.get("ActiveEnterTimestamp") else ""
    again = f", begun again {restarts} times" if restarts != "0" else ""
    yield Row("service", OK if unit.get("ActiveState") == "active" else FAILED, state + since + again)


def _versions(host: Host, ctid: int, on_cpu: bool) -> Iterator[Row]:
    told = call(host, ctid, "versions", timeout=300)
    found = {key: plain(value) if value else "" for key, value in told.items()}
    yield Row("vLLM", OK if found.get("vllm") else FAILED, found.get("vllm") or "not installed")
    yield Row("torch", OK if found.get("torch") else FAILED, found.get("torch") or "not installed")
    yield Row("FlashInfer", OK, found.get("flashinfer") or "none in this variant")
    yield Row("nvcc", OK, found.get("nvcc") or "none in this variant")
    if on_cpu:
        yield Row("driver", OK, "none: CPU profile")
        yield Row("CUDA", OK, "none: CPU profile")
        return
    yield _driver(found.get("kernel", ""), found.get("driver", ""))
    cuda, runtime = found.get("cuda", ""), found.get("cudart", "")
    evidence = f"torch is for {cuda or 'no CUDA'}, libcudart is {runtime or 'not found'}"
    yield Row("CUDA", OK if cuda and cuda == runtime else FAILED, evidence)


def _driver(kernel: str, userspace: str) -> Row:
    evidence = f"kernel {kernel or 'not loaded'}, userspace {userspace or 'not found'}"
    if kernel and userspace and kernel != userspace:
        evidence += ": restart the container, it has the libraries of another driver"
    return Row("driver", OK if kernel and kernel == userspace else FAILED, evidence)


def _gpu(host: Host, ctid: int, wanted: int) -> Iterator[Row]:
    if not wanted:
        yield Row("GPU", OK, "none: CPU profile")
        return
    told = call(host, ctid, "gpu", timeout=300)
    cards = [card for card in told.get("cards") or () if isinstance(card, dict)]
    texts = [
        f"{plain(card.get('name'))} {plain(card.get('capability'))} {'computes' if card.get('right') else 'is wrong'}"
        for card in cards
    ]
    right = len(cards) == wanted and all(card.get("right") is True for card in cards)
    evidence = f"as the service's user: {'; '.join(texts) or plain(told.get('why') or 'no card')}"
    if len(cards) != wanted:
        evidence += f"; {len(cards)} of {wanted} cards"
    yield Row("GPU", OK if right else FAILED, evidence)


def _models(host: Host, ctid: int) -> Iterator[Row]:
    told = call(host, ctid, "models", timeout=1800)
    wrong, files = table(told, "wrong"), told.get("files")
    if not files:
        yield Row("models", UNCHECKED, f"no record of its files in {plain(told.get('folder'))}")
        return
    texts = [f"{plain(name)}: {plain(what)}" for name, what in list(wrong.items())[:5]]
    evidence = "; ".join(texts) or f"{plain(files)} files in {plain(told.get('folder'))} as recorded"
    yield Row("models", FAILED if wrong else OK, evidence)


def _answer(host: Host, ctid: int) -> Iterator[Row]:
    try:
        yield Row("answer", OK, str(health.ask(host, ctid)))
    except BuilderError as error:
        yield Row("answer", FAILED, reason(error))


def _models_of(host: Host, server: adopted.Server) -> Iterator[Row]:
    told = call(host, None, "serves", server.base, key=server.key)
    names = ", ".join(plain(name) for name in texts(told, "models"))
    yield Row("models", OK, f"serves {names}") if names else Row("models", FAILED, plain(told.get("said")))


def _answer_of(host: Host, server: adopted.Server) -> Iterator[Row]:
    try:
        yield Row("answer", OK, str(health.ask_other(host, server.base, server.key)))
    except BuilderError as error:
        yield Row("answer", FAILED, reason(error))


def _process(host: Host, ctid: int) -> Iterator[Row]:
    told = call(host, ctid, "process")
    limits = table(told, "limits")
    files, locked = _limit(limits, "Max open files"), _limit(limits, "Max locked memory")
    evidence = f"open files {_amount(files)}, locked memory {_amount(locked)} bytes"
    if files is None:
        yield Row("limits", UNCHECKED, "the limit of open files cannot be read")
    else:
        capped = f"; the unit wants {_WANTED_FILES:,}, the host's hard limit is lower" if files < _WANTED_FILES else ""
        yield Row("limits", OK if files >= _NEEDED_FILES else FAILED, evidence + capped)
    caches = table(told, "caches")
    bad = [f"{plain(path)}: {plain(why)}" for path, why in caches.items() if why]
    whole = f"{', '.join(map(plain, caches))} can be written by {plain(told.get('user'))}"
    yield Row("caches", FAILED if bad else OK, "; ".join(bad) or whole)


def _limit(limits: Mapping[str, Any], name: str) -> float | None:
    """The soft limit; infinite when there is none, None when it cannot be read."""
    value = limits.get(name)
    soft = value[0] if isinstance(value, list) and value else None
    if soft == "unlimited":
        return float("inf")
    return float(soft) if isinstance(soft, str) and soft.isdecimal() else None


def _amount(limit: float | None) -> str:
    return "not read" if limit is None else "unlimited" if limit == float("inf") else f"{limit:,.0f}"


def _load(host: Host, ctid: int | None, *base: str, key: str | None = None) -> Iterator[Row]:
    told = call(host, ctid, "load", str(CLIENTS), str(SECONDS), *base, key=key, timeout=1800)
    try:
        answers, amount, seconds = int(told["answers"]), int(told["amount"]), float(told["seconds"])
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise BuilderError("its answer cannot be read") from error
    errors = table(told, "errors")
    rate = f"{answers / seconds:.1f} answers/s" if seconds > 0 else "no time"
    if told.get("kind") == "completion" and seconds > 0:
        rate += f", {amount / seconds:.0f} tokens/s"
    evidence = f"{CLIENTS} at once for {seconds:.0f} s: {answers} answers, {rate}, {_count(errors)} errors"
    evidence += "".join(f"; {plain(text)}" for text in list(errors)[:3])
    yield Row("load", OK if answers and not errors else FAILED, evidence)


def _count(errors: Mapping[str, Any]) -> int:
    return sum(count for count in errors.values() if isinstance(count, int))
