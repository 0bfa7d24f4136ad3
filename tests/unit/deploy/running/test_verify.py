"""`builder verify CTID`: every row with its evidence."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner, Result

import builder.deploy.host
from builder.commands.verify import verify
from builder.errors import UsageError

from .simulated import Answer, SimulatedChannel, SimulatedHost, failed, recorded, server

CARD = {"name": "NVIDIA GeForce RTX 5060 Ti", "capability": "12.0", "right": True}
CUDA = {
    "vllm": "0.10.2",
    "torch": "2.8.0",
    "flashinfer": "0.3.1",
    "nvcc": None,
    "kernel": "580.76.05",
    "driver": "580.76.05",
    "cuda": "12.8",
    "cudart": "12.8",
}
WHOLE: dict[str, Answer] = {
    "state": recorded("start")[-1],
    "versions": CUDA,
    "gpu": {"cards": [CARD], "why": ""},
    "models": {"folder": "/models/Llama", "files": 7, "wrong": {}},
    "ask": recorded("ask"),
    "process": recorded("process"),
    "load": recorded("load"),
}


def run(changes: dict[str, Answer], *, gpus: tuple[int, ...] = (1,), running: bool = True) -> Result:
    answers: dict[str, list[Answer]] = {key: [answer] for key, answer in {**WHOLE, **changes}.items()}
    host = SimulatedHost([server(921, "fp8", gpus=gpus, running=running)], SimulatedChannel(answers))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder.deploy.host, "open_host", lambda where: host)
        return CliRunner().invoke(verify, ["921", "--json"], standalone_mode=False)


def rows(result: Result) -> dict[str, tuple[str, str]]:
    return {row["name"]: (row["state"], row["evidence"]) for row in json.loads(result.stdout)["rows"]}


def test_a_whole_deployment_passes_with_evidence_in_every_row() -> None:
    result = run({})
    seen = rows(result)
    assert result.return_value == 0
    assert {state for state, _ in seen.values()} == {"ok"}
    assert seen["nvcc"] == ("ok", "none in this variant")
    assert seen["driver"] == ("ok", "kernel 580.76.05, userspace 580.76.05")
    assert seen["GPU"] == ("ok", "as the service's user: NVIDIA GeForce RTX 5060 Ti 12.0 computes")
    assert seen["models"] == ("ok", "7 files in /models/Llama as recorded")
    assert "8 at once for 2 s" in seen["load"][1]
    assert seen["limits"][1].startswith("open files 20,000")
    assert "host's hard limit is lower" in seen["limits"][1]


def test_a_cpu_profile_needs_no_card() -> None:
    seen = rows(run({"versions": recorded("versions"), "gpu": failed("must not be asked")}, gpus=()))
    assert [seen[name] for name in ("driver", "CUDA", "GPU")] == [("ok", "none: CPU profile")] * 3
    assert seen["vLLM"] == ("ok", "0.10.2.post2+cpu")


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("driver", {"versions": {**CUDA, "driver": "575.1"}}, "restart the container"),
        ("driver", {"versions": {**CUDA, "driver": None}}, "userspace not found"),
        ("CUDA", {"versions": {**CUDA, "cudart": "12.6"}}, "libcudart is 12.6"),
        ("vLLM", {"versions": {**CUDA, "vllm": None}}, "not installed"),
        ("GPU", {"gpu": {"cards": [], "why": "no CUDA-capable device"}}, "no CUDA-capable device; 0 of 1 cards"),
        ("GPU", {"gpu": {"cards": [{**CARD, "right": False}], "why": ""}}, "is wrong"),
        ("GPU", {"gpu": {"cards": [CARD, CARD], "why": ""}}, "2 of 1 cards"),
        ("models", {"models": {"folder": "/m", "files": 2, "wrong": {"m/a": "damaged"}}}, "m/a: damaged"),
        ("answer", {"ask": failed("HTTP 500: dead engine")}, "HTTP 500"),
        ("limits", {"process": {"limits": {"Max open files": ["1024", "1024"]}, "caches": {}}}, "open files 1,024"),
        (
            "caches",
            {"process": {"limits": {}, "caches": {"/var/cache/vllm": "Permission denied"}}},
            "Permission denied",
        ),
        ("load", {"load": {**recorded("load"), "errors": {"HTTP 500: x": 3}}}, "3 errors; HTTP 500: x"),
        ("load", {"load": {**recorded("load"), "answers": 0}}, "0 answers"),
        ("service", {"state": recorded("failed")}, "activating (auto-restart)"),
    ],
)
def test_what_is_wrong_fails_its_row_and_the_command(name: str, changes: dict[str, Any], says: str) -> None:
    result = run(changes)
    state, evidence = rows(result)[name]
    assert state == "failed"
    assert says in evidence
    assert result.return_value == 1


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("versions", {"versions": failed("vllm.service does not run")}),
        ("GPU", {"gpu": failed("vllm.service does not run")}),
        ("models", {"models": {"folder": "/m", "files": 0, "wrong": {}}}),
        ("limits", {"process": {"limits": {"Max open files": ["?"]}, "caches": {}}}),
        ("load", {"load": "nonsense"}),
        ("process", {"process": failed("no such file")}),
    ],
)
def test_what_cannot_be_seen_is_not_checked_and_never_ok(name: str, changes: dict[str, Any]) -> None:
    result = run(changes)
    assert rows(result)[name][0] == "not checked"
    assert result.return_value == 0


def test_a_stopped_container_is_wrong_use() -> None:
    assert isinstance(run({}, running=False).exception, UsageError)


def test_a_file_that_is_not_there_is_wrong_use() -> None:
    result = CliRunner().invoke(verify, ["artifacts/none.tar.zst"], standalone_mode=False)
    assert isinstance(result.exception, UsageError)
