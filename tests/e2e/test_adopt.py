"""A server in a container that the builder did not make: remembered, looked at and asked, and never changed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from conftest import User
from container import Bridge, with_subids
from deploying import SIMULATED, Site, site

pytestmark = [pytest.mark.e2e, pytest.mark.lxc]

KEY = "sk-of-the-foreign-server"
PROGRAM = '''
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    """Answers as a simulated vLLM does, without /health."""

    def answer(self, value, status=200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path != "/v1/models":
            self.answer({}, 404)
        elif self.headers.get("Authorization") != "Bearer KEY":
            self.answer({"error": "Unauthorized"}, 401)
        else:
            self.answer({"data": [{"id": "foreign-model"}]})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer({"usage": {"completion_tokens": asked["max_tokens"]}})

    def log_message(self, *values):
        pass

ThreadingHTTPServer(("ADDRESS", 8000), Handler).serve_forever()
'''


@pytest.fixture(scope="module")
def place(root_user: User) -> Iterator[Site]:
    with site(root_user, SIMULATED, [(921, "sim-fp8", "good", 21)]) as made:
        done = made.builder("template", "recipes/simulated-vllm")
        assert done.returncode == 0, done.stderr
        yield made


def make_foreign(place: Site, ctid: int) -> Path:
    """A running container made by hand: the files of the template 920, one program, an address in its configuration."""
    folder, bridge = place.lxc / str(ctid), place.bridge
    (folder / "rootfs").mkdir(parents=True)
    subprocess.run(["cp", "-a", "--reflink=auto", f"{place.lxc}/920/rootfs/.", f"{folder}/rootfs"], check=True)
    address = f"{bridge.network}.50"
    program = PROGRAM.replace("KEY", KEY).replace("ADDRESS", address)
    (folder / "rootfs/opt/serve.py").write_text(program)
    (folder / "config").write_text(config(folder, bridge, address))
    argv = ["lxc-start", "-P", str(place.lxc), "-n", str(ctid), "-o", str(folder / "log"), "-l", "ERROR"]
    done = subprocess.run([*with_subids(place.folder.parent / "subids"), *argv], capture_output=True, text=True)
    assert done.returncode == 0, (folder / "log").read_text()
    return folder


def config(folder: Path, bridge: Bridge, address: str) -> str:
    return f"""\
lxc.include = /usr/share/lxc/config/common.conf
lxc.include = /usr/share/lxc/config/userns.conf
lxc.idmap = u 0 100000 65536
lxc.idmap = g 0 100000 65536
lxc.apparmor.profile = unconfined
lxc.uts.name = hand-made
lxc.rootfs.path = dir:{folder}/rootfs
lxc.init.cmd = /usr/bin/python3 /opt/serve.py
lxc.net.0.type = veth
lxc.net.0.link = {bridge.name}
lxc.net.0.flags = up
lxc.net.0.ipv4.address = {address}/24
"""


def files(folder: Path) -> dict[str, str]:
    """Every file of a container with its content's sum."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(path): sha256(path.read_bytes()).hexdigest() for path in found if "/rootfs/proc/" not in str(path)}


def test_a_foreign_server_is_adopted_looked_at_and_left_as_it_is(place: Site, tmp_path: Path) -> None:
    place.passes("deploy", "--ctid", "921")
    folder = make_foreign(place, 950)
    before, pid = files(folder), place.inside(950, "stat", "-c", "%Y", "/proc/1").stdout
    key = tmp_path / "key"
    key.write_text(KEY)
    key.chmod(0o600)

    refused = place.on_host("adopt", "950")
    assert refused.returncode == 1
    assert "HTTP 401" in refused.stderr
    wrong = place.on_host("adopt", "950", "--port", "8001")
    assert wrong.returncode == 1
    assert "refused" in wrong.stderr
    assert place.json("status")["deployments"][-1]["ctid"] == 921

    said = place.passes("adopt", "950", "--api-key-file", str(key))
    assert f"hand-made: container 950 serves foreign-model at http://{place.bridge.network}.50:8000" in said
    rows = {row["ctid"]: row for row in place.json("status")["deployments"]}
    assert [(ctid, row["adopted"], row["health"]["state"]) for ctid, row in rows.items()] == [
        (921, False, "ok"),
        (950, True, "ok"),
    ]
    assert rows[950]["health"]["said"] == "foreign-model answers"
    assert (rows[950]["drift"], rows[950]["unchecked"]) == ([], "not the builder's")

    proof = {row["name"]: (row["state"], row["evidence"]) for row in place.json("verify", "950")["rows"]}
    assert [proof[name][0] for name in ("models", "answer", "load")] == ["ok"] * 3
    assert proof["GPU"] == ("not checked", "not the builder's")

    for command in ("destroy", "logs", "rollback"):
        done = place.on_host(command, "950", *(("--yes",) if command == "destroy" else ()))
        assert done.returncode == 2, done.stderr
    assert files(folder) == before
    assert place.inside(950, "stat", "-c", "%Y", "/proc/1").stdout == pid
    texts = [path.read_text() for path in place.state.rglob("*") if path.is_file() and path.suffix != ".key"]
    assert not any(KEY in text for text in texts)

    subprocess.run(["lxc-stop", "-P", str(place.lxc), "-n", "950", "-k"], check=True)
    (row,) = place.json("status", "950")["deployments"]
    assert (row["state"], row["health"]["state"]) == ("stopped", "not running")
    assert json.loads(place.passes("adopt", "950", "--forget", "--json")) == {"forgotten": 950}
    assert not list((place.state / "adopted").rglob("950*"))
    assert files(folder) == before
