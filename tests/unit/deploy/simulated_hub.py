"""A simulated model hub: the part of the hub's HTTP interface that huggingface_hub uses, from files in memory."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "4" * 40
TOKEN = "hf_simulatedtoken"


@dataclass
class SimulatedHub:
    """One repository. Weights (*.safetensors) are in large file storage, on another host as the real ones are."""

    repository: str
    files: dict[str, bytes]
    commit: str = COMMIT
    gated: bool = False
    cuts: dict[str, list[int]] = field(default_factory=dict)  # by file: after how many bytes the line drops, each time
    swapped: dict[str, bytes] = field(default_factory=dict)  # by file: what is sent instead
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)  # path, Range, Authorization
    port: int = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ranges(self, name: str) -> list[str]:
        """What was asked of a file's content, in order: "" is the whole."""
        return [asked for path, asked, _ in self.requests if path.endswith(f"/{name}") and not path.startswith("/api")]

    def sent_to_storage(self) -> list[str | None]:
        """The Authorization headers that the storage's host has seen."""
        return [token for path, _, token in self.requests if path.startswith("/storage/")]

    def info(self) -> dict[str, Any]:
        siblings = []
        for name, content in self.files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": blob}
            if is_large(name):
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 130}
            siblings.append(entry)
        return {"id": self.repository, "modelId": self.repository, "sha": self.commit, "siblings": siblings}


def is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".pth", ".bin"))


@contextmanager
def serving(hub: SimulatedHub) -> Iterator[SimulatedHub]:
    """The hub on a port of this machine for as long as the `with` block lasts."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, with_body: bool) -> None:
            path = self.path.partition("?")[0]
            token = self.headers.get("Authorization")
            hub.requests.append((path, self.headers.get("Range", ""), token))
            if hub.gated and not path.startswith("/storage/") and token != f"Bearer {TOKEN}":
                self.refuse(403, "GatedRepo")
            elif (
                path == f"/api/models/{hub.repository}" or path == f"/api/models/{hub.repository}/revision/{hub.commit}"
            ):
                self.send(200, json.dumps(hub.info()).encode(), with_body)
            elif path.startswith(f"/api/models/{hub.repository}/revision/"):
                self.refuse(404, "RevisionNotFound")
            elif match := re.fullmatch(rf"/(?:storage|{hub.repository}/resolve)/{hub.commit}/(.+)", path):
                if match[1] not in hub.files:
                    self.refuse(404, "EntryNotFound")
                elif is_large(match[1]) and not path.startswith("/storage/"):
                    self.redirect(f"http://localhost:{hub.port}/storage/{hub.commit}/{match[1]}", match[1])
                else:
                    self.file(match[1], with_body)
            else:
                self.refuse(404, "RepoNotFound")

        def file(self, name: str, with_body: bool) -> None:
            content = hub.swapped.get(name, hub.files[name])
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            start = int(asked[1]) if asked else 0
            rest = content[start:]
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(len(rest)))
            self.send_header("ETag", '"tag"')
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            cuts = hub.cuts.get(name)
            if with_body and cuts:
                self.wfile.write(rest[: cuts.pop(0)])
                self.close_connection = True
            elif with_body:
                self.wfile.write(rest)

        def redirect(self, location: str, name: str) -> None:
            self.send_response(302)
            self.send_header("Location", location)
            self.send_header("X-Repo-Commit", hub.commit)
            self.send_header("X-Linked-Size", str(len(hub.files[name])))
            self.send_header("X-Linked-ETag", f'"{hashlib.sha256(hub.files[name]).hexdigest()}"')
            self.send_header("Content-Length", "0")
            self.end_headers()

        def refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", f"no: {code}")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def send(self, status: int, body: bytes, with_body: bool) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
