"""Talks to a server such as vLLM, from wherever it runs: needs Python 3.10 alone.

`builder.deploy.inside` feeds it together with `inside.py` to a Python that knows nothing of this package.
"""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import time
import urllib.error
import urllib.request
from typing import Any

KEY: str | None = None
"""The API key of another server than that of the container, set by whoever feeds this: arguments can be seen by all."""
ERRORS = (OSError, ValueError, LookupError, TypeError, http.client.HTTPException)
"""What talking to a server may raise, whatever it says."""


def why(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code}: {error.read(300).decode(errors='replace')}"
    return str(error) or type(error).__name__


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key goes to no other server."""

    def redirect_request(self, *given: Any, **more: Any) -> None:
        return None


class Server:
    """An API such as vLLM has."""

    def __init__(self, base: str, key: str | None, kind: str = "completion") -> None:
        self.base, self.key, self.kind = base, key, kind
        self._open = urllib.request.build_opener(urllib.request.ProxyHandler({}), NoRedirect()).open

    def call(self, path: str, body: dict[str, Any] | None = None, timeout: float = 1700) -> Any:
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        data = None if body is None else json.dumps(body).encode()
        with self._open(urllib.request.Request(self.base + path, data, headers), timeout=timeout) as answer:
            text = answer.read(1 << 24)
        return json.loads(text) if text else None

    def models(self) -> list[dict[str, Any]]:
        return [dict(entry) for entry in self.call("/v1/models", timeout=30)["data"]]

    def model(self) -> str:
        return str(self.models()[0]["id"])

    def ask(self, model: str, text: str, tokens: int = 8) -> int:
        """The tokens of a completion, or the numbers of an embedding. Raises OSError and LookupError."""
        if self.kind == "embedding":
            answer = self.call("/v1/embeddings", {"model": model, "input": text})
            return len(answer["data"][0]["embedding"])
        body = {"model": model, "prompt": text, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
        return int(self.call("/v1/completions", body)["usage"]["completion_tokens"])

    def health(self) -> dict[str, Any]:
        """What /health, where there is one, and /v1/models say."""
        try:
            try:
                self.call("/health", timeout=5)
            except urllib.error.HTTPError as error:
                if error.code != 404:
                    raise
            return {"ok": True, "said": f"{self.model()} answers"}
        except ERRORS as error:
            return {"ok": False, "said": why(error)}


def other(base: str) -> Server:
    """Another server. What it gives is tried: embeddings, when it refuses a completion as none of its tasks."""
    server = Server(base, KEY)
    try:
        server.ask(server.model(), "The", 1)
    except urllib.error.HTTPError as error:
        if error.code not in (400, 404, 405, 422, 501):
            raise
        server.kind = "embedding"
    return server


def serves(base: str) -> dict[str, Any]:
    """Whether another server is well, and the names of its models."""
    server = Server(base, KEY)
    found = server.health()
    return {**found, "models": [str(entry["id"]) for entry in server.models()] if found["ok"] else []}


def ask(server: Server) -> dict[str, Any]:
    """One real completion or embedding."""
    model = server.model()
    start = time.monotonic()
    amount = server.ask(model, "The capital of France is")
    return {"model": model, "kind": server.kind, "amount": amount, "seconds": time.monotonic() - start}


def load(server: Server, number: int, duration: float) -> dict[str, Any]:
    """A number of clients at once for so many seconds; what went wrong is counted by its text."""
    model = server.model()
    end = time.monotonic() + duration

    def client(who: int) -> tuple[int, int, list[str]]:
        answers, amount, errors = 0, 0, []
        while time.monotonic() < end:
            try:
                amount += server.ask(model, f"Client {who} asks question {answers}:", 16)
                answers += 1
            except ERRORS as error:
                errors.append(why(error)[:200])
                time.sleep(0.2)
        return answers, amount, errors

    start = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(number) as pool:
        ended = list(pool.map(client, range(number)))
    errors: dict[str, int] = {}
    for text in (text for _, _, texts in ended for text in texts):
        errors[text] = errors.get(text, 0) + 1
    return {
        "kind": server.kind,
        "answers": sum(answers for answers, _, _ in ended),
        "amount": sum(amount for _, amount, _ in ended),
        "errors": errors,
        "seconds": time.monotonic() - start,
    }
