"""A store in a temporary folder, and a web server that misbehaves as told."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from builder.lock.model import Blob
from builder.store import Store

Answer = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Web:
    """Serves `files` by path, with ranges; `script` holds, by path, answers to give first, one a request."""

    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    script: dict[str, list[Answer]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)  # path and Range
    headers: list[dict[str, str]] = field(default_factory=list)

    def put(self, path: str, content: bytes, *answers: Answer) -> str:
        """Serve `content` at `path` after `answers`; its URL."""
        self.files[path] = content
        self.script[path] = list(answers)
        return f"{self.url}/{path}"


class _Handler(BaseHTTPRequestHandler):
    web: Web
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.lstrip("/")
        self.web.asked.append((path, self.headers.get("Range", "")))
        self.web.headers.append(dict(self.headers))
        if self.web.script.get(path):
            self.web.script[path].pop(0)(self)
        elif path not in self.web.files:
            say(404)(self)
        else:
            self._serve(self.web.files[path])

    def _serve(self, content: bytes) -> None:
        wanted = self.headers.get("Range", "")
        start = int(wanted.removeprefix("bytes=").rstrip("-") or 0)
        if start >= len(content) > 0:
            say(416, **{"Content-Range": f"bytes */{len(content)}"})(self)
            return
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:])

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


def say(status: int, body: bytes = b"", **headers: str) -> Answer:
    """Answer with this status; a Content-Length of the body unless told otherwise, none when told ''."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            if value:
                handler.send_header(name, value)
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(body)
        handler.close_connection = True

    return answer


@pytest.fixture
def web() -> Iterator[Web]:
    """A server on a free port of this machine."""
    handler = type("Handler", (_Handler,), {})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        handler.web = Web(f"http://127.0.0.1:{server.server_port}")
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield handler.web
        server.shutdown()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


def blob(content: bytes, *urls: str, name: str = "file") -> Blob:
    """The lock's entry of a file with this content."""
    return Blob(hashlib.sha256(content).hexdigest(), len(content), name, urls)


def files(store: Store) -> list[str]:
    """Every file of the store but locks, by path."""
    return sorted(
        str(path.relative_to(store.root)) for path in store.root.rglob("*") if path.is_file() and path.name != "lock"
    )
