"""`builder status`: health, drift and cards, and what could not be seen is never OK."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from builder.commands import status as command
from builder.deploy import drift
from builder.deploy.host.config import options
from builder.deploy.model import Container, Device, Guest, Mark, Network, Settings, jsonable
from builder.deploy.shell import LostError
from builder.deploy.usage import read
from builder.errors import BuilderError

from .simulated import Answer, SimulatedChannel, SimulatedHost, failed, mark, recorded, server

CONTAINER = Container(921, "fp8", network=Network(ip="10.0.0.21/24", gateway="10.0.0.1", mac="bc:24:11:00:09:21"))
RAW = ("lxc.mount.entry: /srv/models models none ro,bind,optional,create=dir",)


def settings(**changes: Any) -> Settings:
    made = mark("fp8", **changes)
    tags = ("builder", "builder-fp8", f"sha256-{made.digest[:16]}")
    return Settings(CONTAINER, tags, made.line(), (Device("/dev/nvidia1"),), RAW)


def as_configured(wanted: Settings, **changes: str) -> Guest:
    """The guest that Proxmox has after `pct set` with these settings, then changed by hand."""
    words = options(wanted)
    config = {word[2:]: value for word, value in zip(words[::2], words[1::2], strict=True) if word != "--description"}
    return replace(server(921, "fp8", config={**config, **changes}), raw=RAW)


def looked(record: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    return {**recorded("look"), "record": record, **changes}


def run(guests: list[Guest], answers: dict[str, list[Answer]], *words: str, monkeypatch: pytest.MonkeyPatch) -> Result:
    host = SimulatedHost(guests, SimulatedChannel(answers))
    monkeypatch.setattr(command, "open_host", lambda where: host)
    return CliRunner().invoke(command.status, list(words), standalone_mode=False)


def rows(result: Result) -> dict[int, dict[str, Any]]:
    return {row["ctid"]: row for row in json.loads(result.stdout)["deployments"]}


def test_what_is_as_it_was_deployed_is_ok_and_has_no_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = settings()
    record = {"settings": jsonable(wanted), "files": {"/etc/vllm/serve.yaml": "aa"}}
    answer = looked(record, files={"/etc/vllm/serve.yaml": "aa"})
    result = run([as_configured(wanted)], {"look": [answer]}, "--json", monkeypatch=monkeypatch)
    row = rows(result)[921]
    assert result.return_value == 0
    assert row["health"] == {"state": "ok", "said": "tiny answers"}
    assert (row["drift"], row["unchecked"], row["profile"], row["digest"]) == ([], "", "cpu", "ab" * 32)


def test_what_was_replaced_names_what_serves_now(monkeypatch: pytest.MonkeyPatch) -> None:
    guests = [server(921, "fp8", running=False), server(930, "fp8"), server(950, "awq", running=False)]
    result = run(guests, {"look": [looked()]}, "921", monkeypatch=monkeypatch)
    assert result.stdout.splitlines()[-1] == "921 was replaced: 930 serves fp8 now"
    result = run(guests, {"look": [looked()]}, "--json", monkeypatch=monkeypatch)
    assert {ctid: row["successor"] for ctid, row in rows(result).items()} == {921: 930, 930: None, 950: None}


def test_changes_by_hand_are_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = settings()
    record = {"settings": jsonable(wanted), "files": {"/etc/vllm/serve.yaml": "aa", "/etc/vllm/env": "bb"}}
    answer = looked(record, files={"/etc/vllm/serve.yaml": "cc", "/etc/vllm/env": None})
    guest = as_configured(wanted, memory="8192", dev1="/dev/nvidia0,mode=0666")
    result = run([replace(guest, raw=())], {"look": [answer]}, monkeypatch=monkeypatch)
    text = " ".join(result.stdout.split())
    for what in (
        "memory is 8192, deployed with 16384",
        "dev1 was added: /dev/nvidia0,mode=0666",
        "the line lxc.mount.entry: /srv/models",
        "/etc/vllm/serve.yaml was changed",
        "/etc/vllm/env is gone",
    ):
        assert what in text


def test_the_order_and_case_of_a_network_card_are_no_drift() -> None:
    wanted = settings()
    net = "bridge=vmbr0,name=eth0,type=veth,ip=10.0.0.21/24,gw=10.0.0.1,hwaddr=bc:24:11:00:09:21,firewall=0"
    assert drift.of_host(as_configured(wanted, net0=net), wanted, proxmox=True) == ()
    other = drift.of_host(as_configured(wanted, net0=net.replace("vmbr0", "vmbr1")), wanted, proxmox=True)
    assert [text[:7] for text in other] == ["net0 is"]


def test_plain_lxc_is_compared_by_its_own_keys() -> None:
    wanted = replace(settings(), devices=())
    config = {"lxc.uts.name": "fp8", "lxc.net.0.link": "br1", "lxc.cgroup2.memory.max": str(16384 << 20)}
    guest = replace(server(921, "fp8", config=config), raw=RAW)
    assert drift.of_host(guest, wanted, proxmox=False) == ("bridge is br1, deployed with vmbr0",)


def test_what_cannot_be_seen_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    guests = [server(921, "fp8"), server(950, "awq", running=False), server(951, "embed"), server(952, "old")]
    answers: dict[str, list[Answer]] = {
        "921 look": [failed("lxc-attach: failed to get init pid")],
        "951 look": [looked()],
        "952 look": [looked({"settings": {"version": 9}})],
    }
    result = run(guests, answers, "--json", monkeypatch=monkeypatch)
    seen = rows(result)
    assert seen[921]["health"] == {"state": "not checked", "said": "lxc-attach: failed to get init pid"}
    assert seen[950]["health"]["state"] == "not running"
    assert seen[951]["unchecked"] == "there is no record of a deploy in the container"
    assert "another version" in seen[952]["unchecked"]
    assert all(row["unchecked"] for row in seen.values())


@pytest.mark.parametrize(
    ("unit", "health", "says", "code"),
    [
        ({"ActiveState": "active"}, {"ok": False, "said": "HTTP 401: no"}, "failed: HTTP 401: no", 1),
        ({"ActiveState": "active"}, None, "failed: no answer", 1),
        ({"ActiveState": "failed", "Result": "oom-kill", "ExecMainStatus": "9"}, None, "failed: oom-kill", 1),
        (
            {"ActiveState": "activating", "SubState": "auto-restart", "Result": "exit-code"},
            None,
            "failed: exit-code",
            1,
        ),
        ({"ActiveState": "activating", "SubState": "start-post"}, None, "starting: waits for its first answer", 0),
        ({"ActiveState": "inactive"}, None, "not running: vllm.service is inactive", 0),
        ({}, None, "not checked: systemd does not say", 0),
    ],
)
def test_health_by_the_state_of_the_service(
    unit: dict[str, str], health: Any, says: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run([server(921, "fp8")], {"look": [looked(unit=unit, health=health)]}, monkeypatch=monkeypatch)
    assert says in result.stdout
    assert result.return_value == code


def test_a_later_template_of_the_recipe_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def template(ctid: int, digest: str, recipe: str, made: str) -> Guest:
        line = mark("t", role="template", digest=digest * 32, recipe=recipe, made=made).line()
        return Guest(ctid, "t", template=True, description=line, config={})

    guests = [
        server(921, "fp8"),
        template(920, "ab", "vllm-cpu_0.10.2-1_amd64", "2026-11-01"),
        template(923, "cd", "vllm-cpu_0.10.2-2_amd64", "2026-11-20"),
        template(924, "ef", "smoke_9_amd64", "2026-11-23"),
    ]
    result = run(guests, {"look": [looked()]}, "--json", monkeypatch=monkeypatch)
    assert rows(result)[921]["newer"] == "vllm-cpu_0.10.2-2_amd64"


CARDS = """\
NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.76.05  Release Build
== card
Model:  NVIDIA GeForce RTX 5060 Ti
Bus Location:  0000:01:00.0
Device Minor:  0
== card
Model:  NVIDIA GeForce RTX 5060 Ti
Bus Location:  0000:02:00.0
Device Minor:  1
== nodes
/dev/nvidia0 c3
== userspace
== memory
00000000:01:00.0, 16311, 12845, 12.0, [N/A]
00000000:02:00.0, 16311, 3, 12.0, [N/A]
"""
USE = """\
00000000:01:00.0, 87
00000000:02:00.0, 0
== processes
00000000:01:00.0 4711 12000 0::/lxc/950/ns/system.slice/vllm.service
00000000:01:00.0 4712 500 0::/lxc/960/ns/user.slice
00000000:01:00.0 99 300 0::/user.slice/user-0.slice
"""


def test_cards_name_their_holders_and_foreign_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = Guest(960, "comfy", running=True, config={"dev0": "/dev/nvidia0"})
    idle = Guest(961, "jellyfin", running=True, config={}, raw=("lxc.mount.entry: /dev/nvidia1 dev/nvidia1 none bind",))
    guests = [server(950, "awq", gpus=(0,), share=0.8), foreign, idle]
    answers: dict[str, list[Answer]] = {"look": [looked()], "host sh -c": [CARDS, USE]}
    result = run(guests, answers, monkeypatch=monkeypatch)
    text = " ".join(result.stdout.split())
    assert "950 awq (12,000 MiB); 960 comfy (500 MiB, foreign)" in text
    assert "processes of the host (300 MiB)" in text
    assert "961 jellyfin (not seen, foreign)" in text
    assert "87 %" in text
    assert "12,845 of 16,311 MiB" in text


def test_use_that_cannot_be_read_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: dict[str, list[Answer]] = {"look": [looked()], "host sh -c": [CARDS, failed("no nvidia-smi on the host")]}
    result = run([server(950, "awq", gpus=(0,))], answers, monkeypatch=monkeypatch)
    assert "use of the cards: not checked: no nvidia-smi on the host" in result.stdout
    assert "950 awq (not seen)" in result.stdout


def test_containers_of_plain_lxc_are_found_too() -> None:
    _, used = read("== processes\n00000000:01:00.0 1 10 12:cpu:/lxc.payload.921/system.slice 0::/lxc.payload.921\n")
    assert used == {("0000:01:00.0", 921): 10}


def test_a_dropped_line_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run([server(921, "fp8")], {"look": [LostError("the line dropped")]}, monkeypatch=monkeypatch)
    assert isinstance(result.exception, LostError)


def test_an_id_that_is_no_deployment_is_wrong_use(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run([server(921, "fp8"), Guest(100, "db")], {}, "100", monkeypatch=monkeypatch)
    assert isinstance(result.exception, BuilderError)
    assert result.exception.exit_code == 2


def test_names_from_containers_cannot_steer_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = looked(health={"ok": True, "said": "\x1b[2Jgone\n\rover"})
    result = run([server(921, "fp8")], {"look": [hostile]}, monkeypatch=monkeypatch)
    assert "\x1b" not in result.stdout
    assert "\r" not in result.stdout


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("nesting", "yes"),
        ("nesting", 1),
        ("memory_mib", "\x1b[2J"),
        ("name", 5),
        ("network", {"ip": "\x1b[2J"}),
        ("network", 3),
        ("raw", [1]),
        ("models", "ab"),
    ],
)
def test_a_record_that_somebody_in_the_container_wrote_does_no_harm(
    key: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = jsonable(settings())
    wanted["container"][key] = value
    guests = [as_configured(settings()), server(922, "awq")]
    answers: dict[str, list[Answer]] = {"921 look": [looked({"settings": wanted})], "922 look": [looked()]}
    result = run(guests, answers, monkeypatch=monkeypatch)
    assert result.exception is None, result.exc_info
    assert "\x1b" not in result.stdout
    assert "922" in result.stdout


def test_a_record_with_another_mark_is_drift() -> None:
    wanted = settings(run="other")
    assert "the mark in its description is another than that in its record" in drift.of_host(
        as_configured(settings()), wanted, proxmox=True
    )
    assert Mark.find(wanted.description) != Mark.find(settings().description)
