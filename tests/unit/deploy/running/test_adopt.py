"""`builder adopt`, and what status, verify and bench make of a server that the builder did not make."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import builder.deploy.host
from builder.commands import adopt, bench, status, verify
from builder.deploy import adopted
from builder.deploy.model import Guest
from builder.errors import BuilderError, UsageError

from .simulated import Answer, SimulatedChannel, SimulatedHost, failed, recorded, server

KEY = "sk-of-the-awq-server"
NET = {"net0": "name=eth0,bridge=vmbr0,gw=10.0.0.1,ip=10.0.0.150/24,type=veth", "dev0": "/dev/nvidia0"}
AWQ = Guest(950, "qwen-awq", running=True, config=NET)
SERVES: dict[str, Any] = {"ok": True, "said": "qwen answers", "models": ["qwen"]}
ASKED = {"model": "qwen", "kind": "completion", "amount": 8, "seconds": 0.2}
Run = Callable[..., Result]


class Place:
    """A host with guests and answers, and this machine's records."""

    def __init__(self, folder: Path, guests: list[Guest], answers: dict[str, list[Answer]]) -> None:
        self.folder, self.guests = folder, guests
        self.channel = SimulatedChannel({"host serves": [SERVES], "host ask": [ASKED], **answers})
        self.key = folder / "awq.key"
        self.key.write_text(f"{KEY}\n")
        self.key.chmod(0o600)

    @property
    def state(self) -> Path:
        return self.folder / "state" / "adopted" / "simulated"

    def run(self, command: Any, *words: str) -> Result:
        host = SimulatedHost(self.guests, self.channel)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("BUILDER_STATE", str(self.folder / "state"))
            for module in (adopt, bench, status):
                patch.setattr(module, "open_host", lambda where: host)
            patch.setattr(builder.deploy.host, "open_host", lambda where: host)
            return CliRunner().invoke(command, list(words), standalone_mode=False)

    def adopt(self, *words: str) -> Result:
        return self.run(adopt.adopt, "950", "--api-key-file", str(self.key), *words)

    def told(self, command: Any, *words: str) -> Any:
        result = self.run(command, *words, "--json")
        assert result.exception is None, result.exception
        return json.loads(result.stdout)


@pytest.fixture
def new(tmp_path: Path) -> Callable[..., Place]:
    def make(*guests: Guest, **answers: list[Answer]) -> Place:
        return Place(tmp_path, list(guests) or [AWQ], {key.replace("_", " ").strip(): a for key, a in answers.items()})

    return make


def test_a_server_is_remembered_once_it_has_answered(new: Callable[..., Place]) -> None:
    place = new()
    result = place.adopt()
    assert result.exception is None, result.exception
    assert result.stdout == ("qwen-awq: container 950 serves qwen at http://10.0.0.150:8000, asked from simulated\n")
    kept = place.state / "950.json"
    assert json.loads(kept.read_text())["base"] == "http://10.0.0.150:8000"
    assert KEY not in kept.read_text()
    key = place.state / "950.key"
    assert (key.read_text(), key.stat().st_mode & 0o777) == (f"{KEY}\n", 0o600)
    assert place.channel.ran == ["host serves http://10.0.0.150:8000"]
    assert KEY.encode() in place.channel.fed[0]


def test_what_does_not_answer_is_refused(new: Callable[..., Place]) -> None:
    place = new(host_serves=[{"ok": False, "said": f"HTTP 401: {KEY} is wrong"}])
    result = place.adopt("--port", "9000")
    assert isinstance(result.exception, BuilderError)
    assert "http://10.0.0.150:9000 does not serve: HTTP 401" in str(result.exception)
    assert KEY not in str(result.exception)
    assert not place.state.exists()


@pytest.mark.parametrize(
    ("guest", "says"),
    [
        (Guest(951, "other", running=True), "is not there"),
        (Guest(950, "qwen-awq", config=NET), "is stopped"),
        (server(950, "fp8"), "is the builder's own"),
        (Guest(950, "qwen-awq", running=True, config={"net0": "name=eth0,ip=dhcp"}), "give --address"),
        (Guest(950, "qwen-awq", running=True, config={}), "give --address"),
    ],
)
def test_what_cannot_be_adopted(guest: Guest, says: str, new: Callable[..., Place]) -> None:
    place = new(guest)
    result = place.adopt()
    assert isinstance(result.exception, UsageError)
    assert says in str(result.exception)
    assert place.channel.ran == []


@pytest.mark.parametrize(
    ("config", "words", "base"),
    [
        ({"net0": "name=eth0,ip=dhcp"}, ("--address", "10.9.9.9", "--port", "81"), "http://10.9.9.9:81"),
        ({}, ("--address", "fd00::50"), "http://[fd00::50]:8000"),
        ({}, ("--address", "awq.lan"), "http://awq.lan:8000"),
        ({"lxc.net.0.ipv4.address": "10.0.0.51/24 10.0.0.255"}, (), "http://10.0.0.51:8000"),
    ],
)
def test_where_it_answers(config: dict[str, str], words: tuple[str, ...], base: str, new: Callable[..., Place]) -> None:
    place = new(Guest(950, "qwen-awq", running=True, config=config))
    assert place.told(adopt.adopt, "950", *words)["base"] == base


@pytest.mark.parametrize("address", ["http://h", "a b", "-x", "h/path", "u@h", ""])
def test_what_is_no_address(address: str, new: Callable[..., Place]) -> None:
    place = new(Guest(950, "qwen-awq", running=True, config={}))
    assert isinstance(place.run(adopt.adopt, "950", "--address", address).exception, UsageError)
    assert place.channel.ran == []


def test_a_key_that_others_may_read_is_refused(new: Callable[..., Place]) -> None:
    place = new()
    place.key.chmod(0o644)
    assert isinstance(place.adopt().exception, UsageError)


def test_what_is_forgotten_is_gone_with_its_key(new: Callable[..., Place]) -> None:
    place = new()
    place.adopt()
    assert place.run(adopt.adopt, "950", "--forget").exception is None
    assert list(place.state.iterdir()) == []
    assert isinstance(place.run(adopt.adopt, "950", "--forget").exception, UsageError)


def test_adopting_again_without_a_key_leaves_none(new: Callable[..., Place]) -> None:
    place = new()
    place.adopt()
    assert place.told(adopt.adopt, "950")["key"] is False
    assert [path.name for path in place.state.iterdir()] == ["950.json"]


def test_status_shows_it_as_adopted_with_health_and_without_drift(new: Callable[..., Place]) -> None:
    place = new(AWQ, server(921, "fp8"), look=[recorded("look")])
    place.adopt()
    rows = {row["ctid"]: row for row in place.told(status.status)["deployments"]}
    assert list(rows) == [921, 950]
    row = rows[950]
    assert (row["adopted"], row["state"], row["gpus"]) == (True, "running", [0])
    assert row["health"] == {"state": "ok", "said": "qwen answers"}
    assert (row["drift"], row["unchecked"]) == ([], "not the builder's")
    text = " ".join(place.run(status.status, "950").stdout.split())
    assert "ok: qwen answers adopted not checked: not the builder's" in text
    assert "921" not in text
    assert not any(line.startswith("950 ") for line in place.channel.ran)


@pytest.mark.parametrize(
    ("guests", "answers", "health", "code"),
    [
        ([AWQ], {"ok": False, "said": "Connection refused"}, "failed: Connection refused", 1),
        ([AWQ], failed("python3: command not found", 127), "not checked: python3: command not found", 0),
        ([Guest(950, "qwen-awq", config=NET)], SERVES, "not running: the container is stopped", 0),
        ([Guest(950, "comfy", running=True)], SERVES, "not running: this container is comfy, adopted was qwen-awq", 0),
        ([Guest(100, "db")], SERVES, "not running: there is no such container any more", 0),
    ],
)
def test_health_by_http(
    guests: list[Guest], answers: Answer, health: str, code: int, new: Callable[..., Place]
) -> None:
    place = new()
    place.adopt()
    place.guests, place.channel.answers["host serves"] = guests, [answers]
    result = place.run(status.status)
    assert health in result.stdout
    assert result.return_value == code


def test_an_id_that_the_builder_has_by_now_is_its_own(new: Callable[..., Place]) -> None:
    place = new(look=[recorded("look")])
    place.adopt()
    place.guests = [server(950, "fp8")]
    (row,) = place.told(status.status)["deployments"]
    assert (row["name"], row["adopted"]) == ("fp8", False)


def test_verify_sees_what_http_shows_and_no_more(new: Callable[..., Place]) -> None:
    place = new(host_load=[recorded("load")])
    place.adopt()
    told = place.told(verify.verify, "950")
    rows = {row["name"]: (row["state"], row["evidence"]) for row in told["rows"]}
    assert told["adopted"] is True
    assert rows["models"] == ("ok", "serves qwen")
    assert rows["answer"] == ("ok", "qwen, completion of 8 tokens in 0.20 s")
    assert rows["load"][0] == "ok"
    rest = {row for name, row in rows.items() if name not in ("models", "answer", "load")}
    assert rest == {("not checked", "not the builder's")}
    assert {"service", "vLLM", "driver", "GPU", "limits"} < set(rows)
    assert not any(line.startswith("950 ") for line in place.channel.ran)


def test_a_server_that_does_not_answer_fails_its_rows(new: Callable[..., Place]) -> None:
    place = new(host_load=[failed("HTTP 503: dead")])
    place.adopt()
    place.channel.answers["host ask"] = [failed("HTTP 503: dead")]
    result = place.run(verify.verify, "950", "--json")
    rows = {row["name"]: row["state"] for row in json.loads(result.stdout)["rows"]}
    assert (rows["answer"], rows["load"]) == ("failed", "not checked")
    assert result.return_value == 1


def test_its_own_commands_leave_it_alone(new: Callable[..., Place]) -> None:
    place = new()
    place.adopt()
    result = place.run(bench.bench, "950", "--output", str(place.folder / "out"))
    assert isinstance(result.exception, UsageError)
    assert "--against 950" in str(result.exception)


MEASURED: dict[str, list[Answer]] = {
    "look": [recorded("look")],
    "state": [recorded("start")[-1]],
    "proof": [recorded("proof")],
    "921_ask": [{**ASKED, "model": "tiny"}],
    "921_ask_http": [ASKED],
    "921_bench": [recorded("bench")],
}


def measure(place: Place, against: str, *words: str) -> Any:
    folder = str(place.folder / "out")
    base = ("921", "--against", against, "--concurrency", "1,8", "--prompts", "16", "--output", folder)
    return place.told(bench.bench, *base, *words)


def slow() -> dict[str, Any]:
    found = recorded("bench")
    found["result"]["output_throughput"] /= 2
    return {**found, "result": {**found["result"], "model_id": "qwen"}}


def bench_answers(foreign: list[Answer]) -> dict[str, list[Answer]]:
    return {"921_bench-other": foreign, "921_ask_http": [ASKED], **MEASURED}


def test_an_adopted_server_is_measured_by_the_client_of_the_other_with_the_same_load(
    new: Callable[..., Place],
) -> None:
    place = new(AWQ, server(921, "fp8", gpus=(0,), share=0.9), **bench_answers([slow()]))
    place.adopt()
    told = measure(place, "950")
    assert [ratio["tokens"] for ratio in told["ratios"]] == [2.0, 2.0]
    one, other = told["series"]
    assert (other["ctid"], other["name"], other["model"]) == (950, "qwen-awq", "qwen")
    assert (other["base"], other["tokenizer"]) == ("http://10.0.0.150:8000", "/opt/models/tiny-llama")
    assert (one["base"], other["digest"], other["path"]) == ("", "", [])
    ran = [line for line in place.channel.ran if " bench" in line]
    options = [line.partition(" --dataset")[2] for line in ran]
    assert options[:3] == options[3:]
    assert [line.split(" --dataset")[0] for line in ran[3:]] == ["921 bench-other http://10.0.0.150:8000"] * 3
    assert not any("systemctl" in line for line in place.channel.ran)
    assert not any(line.startswith("950 ") for line in place.channel.ran)
    assert told["alone"] is False
    assert "950 was never stopped: both servers were up all the time, and both hold card 0" in told["notes"]
    assert any("by the tokenizer /opt/models/tiny-llama in container 921" in note for note in told["notes"])
    assert KEY not in json.dumps(told) + " ".join(place.channel.ran)
    assert all(Path(path).exists() for path in told["files"])


def test_a_server_by_its_address(new: Callable[..., Place]) -> None:
    place = new(server(921, "fp8", gpus=(0,)), **bench_answers([slow()]))
    told = measure(place, "http://10.0.0.150:8000/", "--against-key-file", str(place.key))
    assert told["series"][1]["ctid"] is None
    assert "bench-921-10.0.0.150_8000-" in told["files"][0]
    assert told["files"][0].endswith(".json")
    assert any("nobody knows whether they share a card" in note for note in told["notes"])
    result = place.run(
        bench.bench, "921", "--against", "http://h:1", "--prompts", "16", "--output", str(place.folder / "out")
    )
    assert "foreign (h:1), not the builder's: qwen, completion" in result.stdout
    assert "921/h:1" in result.stdout
    assert "h:1 was never stopped" in result.stdout


def test_completions_are_not_measured_against_embeddings(new: Callable[..., Place]) -> None:
    answers = {**bench_answers([slow()]), "921_ask_http": [{**ASKED, "kind": "embedding"}]}
    place = new(server(921, "fp8"), **answers)
    result = place.run(bench.bench, "921", "--against", "http://h:1", "--output", str(place.folder / "out"))
    assert "h:1 gives embeddings, 921 completions" in str(result.exception)
    assert not any(" bench" in line for line in place.channel.ran)


def test_a_server_that_refuses_the_key_is_named_before_anything_is_measured(new: Callable[..., Place]) -> None:
    place = new(server(921, "fp8"), **{**bench_answers([slow()]), "921_ask_http": [failed("HTTP 401: Unauthorized")]})
    result = place.run(bench.bench, "921", "--against", "http://h:1", "--output", str(place.folder / "out"))
    assert str(result.exception) == "http://h:1: HTTP 401: Unauthorized, asked from container 921"
    assert not any(" bench" in line for line in place.channel.ran)


@pytest.mark.parametrize(
    "words",
    [
        ("--against", "ftp://h:1"),
        ("--against", "http://u:p@h:1"),
        ("--against", "http://h:1/v1"),
        ("--against", "http://h:1", "--alone"),
        ("--against", "950", "--against-key-file", "KEY"),
        ("--against-key-file", "KEY"),
        ("--against", "950"),
    ],
)
def test_wrong_use(words: tuple[str, ...], new: Callable[..., Place]) -> None:
    place = new(AWQ, server(921, "fp8"), look=[recorded("look")])
    given = [str(place.key) if word == "KEY" else word for word in words]
    result = place.run(bench.bench, "921", *given, "--output", str(place.folder / "out"))
    assert isinstance(result.exception, UsageError)


def test_a_record_that_cannot_be_read_is_named(new: Callable[..., Place]) -> None:
    place = new()
    place.adopt()
    (place.state / "950.json").write_text('{"ctid": 950}')
    result = place.run(status.status)
    assert "950.json" in str(result.exception)
    assert isinstance(result.exception, BuilderError)


def test_the_key_is_not_in_a_servers_repr() -> None:
    assert KEY not in repr(adopted.Server("http://h:1", KEY))
