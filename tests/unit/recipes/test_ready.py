"""The readiness program of the vLLM templates, against a server that answers as vLLM does."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

READY = Path(__file__).parents[3] / "recipes/vllm-service/usr/lib/vllm/ready.py"
ANSWERS: dict[str, tuple[int, Any]] = {
    "/health": (200, None),
    "/v1/models": (200, {"data": [{"id": "tiny"}]}),
    "/v1/completions": (200, {"usage": {"completion_tokens": 4}}),
    "/v1/embeddings": (200, {"data": [{"embedding": [0.0] * 7}]}),
}


class Server(ThreadingHTTPServer):
    """Answers from a table, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = dict(ANSWERS)
        self.asked: list[tuple[str, str | None]] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, value = self.server.answers[self.path]
        body = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield server
        server.shutdown()


def ready(folder: Path, port: int, settings: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    (folder / "serve.yaml").write_text(f"model: /m\nhost: 0.0.0.0\nport: {port}\n{settings}")
    argv = [sys.executable, "-I", str(READY), str(folder / "serve.yaml")]
    return subprocess.run(argv, capture_output=True, text=True, env=env, timeout=120)


def test_a_chat_model_is_up_after_a_completion(server: Server, tmp_path: Path) -> None:
    done = ready(tmp_path, server.server_port, VLLM_API_KEY="secret")
    assert (done.returncode, done.stdout) == (0, "tiny: completion of 4 tokens\n")
    assert server.asked[-1] == ("/v1/completions", "Bearer secret")


def test_an_embedding_model_is_up_after_an_embedding(server: Server, tmp_path: Path) -> None:
    done = ready(tmp_path, server.server_port, "runner: pooling\n")
    assert (done.returncode, done.stdout) == (0, "tiny: embedding of 7 numbers\n")


def test_an_engine_that_dies_at_the_first_completion_is_not_up(server: Server, tmp_path: Path) -> None:
    server.answers["/v1/completions"] = (500, {"error": "Block size must be at least 32 for fp8"})
    done = ready(tmp_path, server.server_port)
    assert done.returncode == 1
    assert "HTTP 500" in done.stderr
    assert "Block size must be at least 32" in done.stderr


def test_an_answer_without_tokens_is_no_proof(server: Server, tmp_path: Path) -> None:
    server.answers["/v1/completions"] = (200, {"usage": {"completion_tokens": 0}})
    assert ready(tmp_path, server.server_port).returncode == 1


def test_a_server_that_ended_is_not_waited_for(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    done = ready(tmp_path, 9, MAINPID=str(ended.pid))
    assert (done.returncode, done.stderr) == (1, "vLLM ended before it answered\n")
