"""The program that looks at the service from inside: the key stays there, and it ends with its reader."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from builder.deploy import inside
from builder.deploy.usage import _SCRIPT, read
from builder.errors import BuilderError

from .simulated import Answer, SimulatedChannel, SimulatedHost, failed, server

PROGRAM = Path(str(resources.files("builder").joinpath("data/inside.py")))
KEY = "sk-of-this-test"


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program as a module, for a service whose files lie in a folder of the test."""
    spec = importlib.util.spec_from_file_location("inside_program", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, file in (("ENVIRONMENT", "env"), ("SETTINGS", "serve.yaml"), ("RECORD", "builder.json")):
        monkeypatch.setattr(module, name, tmp_path / file)
    (tmp_path / "env").write_text(f"HF_HUB_OFFLINE=1\nVLLM_API_KEY='{KEY}'\nHF_TOKEN=\n")
    return module


class Vllm(BaseHTTPRequestHandler):
    """Answers as vLLM's API does, where the key is right."""

    def do_GET(self) -> None:
        self.answer({"data": [{"id": "tiny"}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/v1/embeddings":
            self.answer({"data": [{"embedding": [0.5] * 8}]})
        else:
            self.answer({"usage": {"completion_tokens": asked["max_tokens"]}})

    def answer(self, value: Any) -> None:
        right = self.headers.get("Authorization") == f"Bearer {KEY}"
        body = json.dumps(value if right else {"error": "Unauthorized"}).encode()
        self.send_response(200 if right else 401)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *values: Any) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Vllm) as served:
        threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True).start()
        yield served.server_port
        served.shutdown()


@pytest.fixture
def service(program: ModuleType, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program beside a service with this process's number and the key in its environment."""
    (tmp_path / "serve.yaml").write_text(f"model: /models/tiny\nhost: 0.0.0.0\nport: {port}\n")
    monkeypatch.setattr(program, "environment", lambda pid: {"VLLM_API_KEY": KEY})
    monkeypatch.setattr(program, "unit", lambda: {"ActiveState": "active", "MainPID": str(os.getpid())})
    return program


def test_the_log_shows_no_secret_and_no_colours(program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"\x1b[1;36m(APIServer pid=1)\x1b[0;0m key {KEY} was given\n\n  File x\n"
    monkeypatch.setattr(program, "run", lambda *argv: text)
    assert program.log("id") == ["(APIServer pid=1) key *** was given", "  File x"]


def test_a_secret_that_systemd_unquotes_is_not_shown_either(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "env").write_text('VLLM_API_KEY="sk\\$\\"x"\n')
    monkeypatch.setattr(program, "run", lambda *argv: 'key sk$"x was given\n')
    assert program.log("id") == ["key *** was given"]


def test_a_service_that_never_ran_has_no_log(program: ModuleType) -> None:
    assert program.log("") == []


@pytest.mark.parametrize(("more", "kind", "amount"), [("", "completion", 8), ("runner: pooling\n", "embedding", 8)])
def test_an_answer_is_asked_for_with_the_key(service: ModuleType, more: str, kind: str, amount: int) -> None:
    service.SETTINGS.write_text(service.SETTINGS.read_text() + more)
    answer = service.ask()
    assert (answer["model"], answer["kind"], answer["amount"]) == ("tiny", kind, amount)
    assert KEY not in json.dumps(answer)


def test_a_refused_key_is_an_error_that_does_not_show_it(service: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "environment", lambda pid: {"VLLM_API_KEY": "another"})
    seen = service.look()["health"]
    assert seen["ok"] is False
    assert "401" in seen["said"]
    assert "another" not in json.dumps(seen)


def test_the_load_counts_answers_and_errors(service: ModuleType) -> None:
    seen = service.load("3", "0.2")
    assert seen["answers"] >= 3
    assert seen["amount"] == 16 * seen["answers"]
    assert seen["errors"] == {}


def test_look_hashes_the_files_of_the_record(service: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"")
    service.RECORD.write_text(json.dumps({"files": {str(file): "x", str(tmp_path / "gone"): "y"}}))
    hashes = service.look()["files"]
    assert hashes[str(file)].startswith("e3b0c44298fc")
    assert hashes[str(tmp_path / "gone")] is None


@pytest.mark.skipif(sys.version_info < (3, 11), reason="containers have 3.11 or later")
def test_unreadable_settings_are_told_beside_what_else_was_seen(service: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "serve.yaml").write_text("model: /models/tiny\nx\n")
    (tmp_path / "builder.json").write_text(json.dumps({"files": {str(tmp_path / "serve.yaml"): "0"}}))
    found = service.look()
    assert found["files"] != {}
    assert found["health"]["ok"] is False
    assert "serve.yaml cannot be read" in found["health"]["said"]


def test_model_files_are_compared_with_the_sums_beside_their_folder(service: ModuleType, tmp_path: Path) -> None:
    model = tmp_path / "models" / "tiny"
    model.mkdir(parents=True)
    (model / "config.json").write_bytes(b"")
    (model / "weights").write_bytes(b"changed")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    sums = "".join(f"{empty}  tiny/{name}\n" for name in ("config.json", "weights", "gone"))
    (tmp_path / "models" / "tiny.sha256").write_text(sums)
    service.SETTINGS.write_text(f"model: {model}\n")
    assert service.models()["wrong"] == {"tiny/weights": "damaged", "tiny/gone": "No such file or directory"}
    assert service.models()["files"] == 3


def test_a_child_ends_when_nobody_reads_any_more(program: ModuleType) -> None:
    read_end, write_end = os.pipe()
    child = subprocess.Popen(["sleep", "60"])
    threading.Timer(0.2, os.close, (read_end,)).start()
    with pytest.raises(SystemExit):
        program.end_with_reader(child, write_end)
    os.close(write_end)
    assert child.returncode == -15


def test_the_answer_is_alone_on_standard_output() -> None:
    argv = [sys.executable, "-I", "-", "load", "x", "y"]
    done = subprocess.run(argv, input=inside.program(None), capture_output=True, timeout=120)
    assert done.returncode == 1
    assert done.stdout == b""
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("said", "says"),
    [
        (failed("container '921' not running!", 255), "container '921' not running!"),
        (failed("", 3), "exit 3, and nothing was said"),
        (failed("\x1b[31mred\nlast \x07line"), "last \N{REPLACEMENT CHARACTER}line"),
        ("{" + " " * (1 << 20) + "}", "too long"),
        ("null", "no object"),
        ("[" * 200_000, "cannot be read"),
    ],
)
def test_what_a_container_says_instead_of_an_answer_is_an_error(said: Answer, says: str) -> None:
    host = SimulatedHost([server(921, "fp8")], SimulatedChannel({"look": [said]}))
    with pytest.raises(BuilderError) as caught:
        inside.call(host, 921, "look")
    assert says in str(caught.value)
    assert str(caught.value).isprintable()


def test_the_script_for_the_cards_finds_a_process_and_its_control_group(tmp_path: Path) -> None:
    stand_in = tmp_path / "nvidia-smi"
    stand_in.write_text(
        "#!/bin/sh\ncase $1 in\n"
        "*utilization*) echo '00000000:01:00.0, 42';;\n"
        f"*) echo '00000000:01:00.0, {os.getpid()}, 512'; echo '00000000:01:00.0, 999999999, 1';;\nesac\n"
    )
    stand_in.chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-c", _SCRIPT], env=env, capture_output=True, text=True)
    busy, used = read(done.stdout)
    assert done.returncode == 0, done.stderr
    assert busy == {"0000:01:00.0": 42}
    assert sum(used.values()) == 512


def fed(command: str, *arguments: str, key: str | None) -> subprocess.CompletedProcess[bytes]:
    """The program as a host runs it: by a Python that has nothing but its own library."""
    argv = [sys.executable, "-I", "-S", "-", command, *arguments]
    return subprocess.run(argv, input=inside.program(key), capture_output=True, timeout=120)


def test_another_server_is_asked_with_its_key_by_any_python(port: int) -> None:
    base = f"http://127.0.0.1:{port}"
    told = json.loads(fed("serves", base, key=KEY).stdout)
    assert told == {"ok": True, "said": "tiny answers", "models": ["tiny"]}
    answer = json.loads(fed("ask", base, key=KEY).stdout)
    assert (answer["model"], answer["kind"], answer["amount"]) == ("tiny", "completion", 8)
    load = json.loads(fed("load", "2", "0.2", base, key=KEY).stdout)
    assert load["answers"] >= 2
    refused = json.loads(fed("serves", base, key="another").stdout)
    assert refused["ok"] is False
    assert "401" in refused["said"]


def test_a_key_may_hold_any_letter(port: int) -> None:
    key = "".join(map(chr, range(0x21, 0x7F)))
    told = json.loads(fed("serves", f"http://127.0.0.1:{port}", key=key).stdout)
    assert "401" in told["said"]


class Embeds(Vllm):
    """Has no completions, as vLLM with a pooling model."""

    def do_POST(self) -> None:
        if self.path == "/v1/embeddings":
            super().do_POST()
        else:
            self.send_error(400, "The model does not support Completions API")


class Elsewhere(BaseHTTPRequestHandler):
    """Sends everybody to another server."""

    to = ""

    def do_GET(self) -> None:
        self.send_response(302)
        self.send_header("Location", f"{self.to}{self.path}")
        self.end_headers()

    def log_message(self, *values: Any) -> None:
        pass


class Babbles(BaseHTTPRequestHandler):
    """Speaks no HTTP."""

    def handle(self) -> None:
        self.request.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


def test_what_another_server_gives_is_found_out() -> None:
    with serving(Embeds) as base:
        answer = json.loads(fed("ask", base, key=KEY).stdout)
    assert (answer["kind"], answer["amount"]) == ("embedding", 8)


def test_the_key_follows_no_redirect(port: int) -> None:
    handler = type("ElsewhereHere", (Elsewhere,), {"to": f"http://127.0.0.1:{port}"})
    with serving(handler) as base:
        told = json.loads(fed("serves", base, key=KEY).stdout)
    assert told["ok"] is False
    assert "302" in told["said"]


def test_what_is_no_http_is_no_server() -> None:
    with serving(Babbles) as base:
        told = json.loads(fed("serves", base, key=KEY).stdout)
    assert told["ok"] is False


def test_no_answer_shows_the_key_of_another_server() -> None:
    host = SimulatedHost([], SimulatedChannel({"host serves": [{"said": f"no {KEY}"}], "host ask": [failed(KEY)]}))
    assert inside.call(host, None, "serves", "http://h:1", key=KEY) == {"said": "no ***"}
    with pytest.raises(BuilderError) as caught:
        inside.call(host, None, "ask", "http://h:1", key=KEY)
    assert KEY not in str(caught.value)
    assert not any(KEY in line for line in host.channel.ran)
    assert all(KEY.encode() in text for text in host.channel.fed)
