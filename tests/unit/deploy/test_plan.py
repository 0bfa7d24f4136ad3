"""All decisions of a deploy are made before the first change, and what is wrong is told then."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from builder.deploy import containers, plan
from builder.deploy.gpu.model import Promise
from builder.deploy.host.base import Capabilities, Storage
from builder.deploy.journal import Journal, folder_of
from builder.deploy.model import Container, Guest, Mark
from builder.deploy.plan import Plan, Wish
from builder.deploy.shell import Done, Shell
from builder.errors import BuilderError, UsageError
from builder.progress import Silent
from builder.recipe import load
from builder.stage import KINDS

HOUSE = Path(__file__).parents[3]
DIGEST = "ab" * 32


class SimulatedChannel:
    """A machine without cards: every question ends with 1."""

    name = "simulated"

    def run(self, argv: Sequence[str], **options: Any) -> Done:
        return Done(tuple(argv), 1, b"", b"")


@dataclass
class SimulatedHost:
    """Only looks are asked of it."""

    given: Sequence[Guest] = ()
    wrong: tuple[str, ...] = ()
    uploaded: str | None = None
    name: str = "simulated"
    capabilities: Capabilities = field(default_factory=lambda: Capabilities(True, True, False))
    shell: Shell = field(default_factory=lambda: Shell(SimulatedChannel()))

    def guests(self) -> tuple[Guest, ...]:
        return tuple(self.given)

    def guest(self, ctid: int) -> Guest | None:
        return next((guest for guest in self.given if guest.ctid == ctid), None)

    def problems(self, container: Container) -> tuple[str, ...]:
        return self.wrong

    def find_upload(self, name: str, sha256: str) -> str | None:
        return self.uploaded

    def storages(self) -> tuple[Storage, ...]:
        return ()


def guest(ctid: int, name: str, role: str = "server", digest: str = DIGEST, **more: Any) -> Guest:
    mark = Mark("r0", name, role, digest, "vllm-cpu_1_amd64", made=f"2026-01-01T00:00:{ctid % 60:02}+00:00")
    return Guest(ctid, name, template=role == "template", description=mark.line(), **more)


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUILDER_STATE", str(tmp_path / "state"))


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "vllm-cpu_1_amd64.tar.zst"
    path.write_bytes(b"")
    empty: dict[str, Any] = {"stages": [], "skipped": {}, "frames": []}
    names = {"name": "vllm-cpu", "version": "1", "variant": "", "format": 1, "sha256": DIGEST}
    of_each = {"type": "file", "mode": "0644", "uid": 0, "gid": 0}
    manifest = {**empty, **names, "files": [{"path": "a", "size": 5 << 30, **of_each}, {"path": "b", **of_each}]}
    (tmp_path / "vllm-cpu_1_amd64.manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "SHA256SUMS").write_text(f"{DIGEST}  {path.name}\n")
    return path


def make(template: Path, host: Any, ctid: int = 921, **more: Any) -> Plan:
    overrides = {"name": "cpu", "ip": "dhcp", **more.pop("overrides", {})}
    recipe = load(HOUSE / "recipes/vllm-cpu", KINDS)
    wish = Wish(ctid, recipe, "cpu", template, overrides, **{"check": False, **more})
    return plan.make(wish, containers.Loaded(), host, Silent())


def test_on_an_empty_host_the_template_is_920_and_holds_what_is_in_it(template: Path) -> None:
    made = make(template, SimulatedHost())
    assert (made.template.ctid, made.container.ctid, made.volume, made.replaces) == (920, 921, None, None)
    assert made.template.root_gib == 8
    assert made.container.network.mac is not None
    assert made.container.profile == "cpu"


def test_what_a_check_calls_an_error_is_refused_first(template: Path) -> None:
    with pytest.raises(BuilderError) as caught:
        make(template, SimulatedHost(), check=True)
    said = str(caught.value)
    assert said.startswith("check: ")
    assert "template: a container does not start, which `pct create` does not notice" in said
    assert said.endswith(f"see `builder check {template}`, or give --no-check")


def test_the_plan_survives_its_journal(template: Path) -> None:
    made = make(template, SimulatedHost([guest(921, "cpu", running=True)]), replace=True, fallback="cpu")
    assert Plan.of(json.loads(json.dumps(made.request()))) == made


def test_a_template_of_this_digest_is_used_again(template: Path) -> None:
    assert make(template, SimulatedHost([guest(925, "t", "template")])).template.ctid == 925


def test_another_digest_takes_the_next_free_id(template: Path) -> None:
    host = SimulatedHost([guest(920, "t", "template", "cd" * 32), Guest(923, "somebody's")])
    assert make(template, host).template.ctid == 924


def test_a_foreign_container_is_refused_by_name(template: Path) -> None:
    with pytest.raises(UsageError, match=r"container 921 \(theirs\): exists, and the builder did not make it"):
        make(template, SimulatedHost([Guest(921, "theirs")]))
    with pytest.raises(UsageError, match="no deployment 'cpu' to replace"):
        make(template, SimulatedHost([Guest(921, "theirs")]), replace=True)


def test_a_deployment_is_refused_with_the_way_to_replace_it(template: Path) -> None:
    with pytest.raises(UsageError, match="deployed already; give --replace"):
        make(template, SimulatedHost([guest(921, "cpu")]))


def test_a_template_is_neither_replaced_nor_destroyed_for_its_id(template: Path) -> None:
    with pytest.raises(UsageError, match=r"is a template that the builder made; take another --ctid"):
        make(template, SimulatedHost([guest(921, "t", "template")]))


def test_a_second_deployment_of_one_name_is_refused(template: Path) -> None:
    with pytest.raises(UsageError, match=r"container 922: cpu is deployed already; give --replace, another --name"):
        make(template, SimulatedHost([guest(922, "cpu")]))


def test_the_one_that_runs_is_replaced_under_a_free_id(template: Path) -> None:
    host = SimulatedHost([guest(921, "cpu"), guest(930, "cpu", running=True, config={"onboot": "1"})])
    made = make(template, host, replace=True)
    assert made.replaces is not None
    assert (made.replaces.ctid, made.replaces.running, made.replaces.onboot) == (930, True, True)
    assert made.container.ctid == 931
    host.given = [guest(930, "cpu", running=True)]
    assert make(template, host, replace=True).container.ctid == 921


def test_what_runs_that_have_not_ended_take_is_not_free(template: Path) -> None:
    request = {"source": {"digest": "cd" * 32}, "template": {"ctid": 920}, "container": {"ctid": 930}}
    folder = folder_of("simulated", 950)
    folder.mkdir(parents=True)
    Journal(folder).begin("r9", request, "2026-01-01T00:00:00+00:00")
    made = make(template, SimulatedHost([guest(921, "cpu", running=True)]), replace=True)
    assert (made.template.ctid, made.container.ctid) == (923, 931)
    Journal(folder).end("rolled back")
    made = make(template, SimulatedHost([guest(921, "cpu", running=True)]), replace=True)
    assert (made.template.ctid, made.container.ctid) == (920, 930)


@pytest.mark.parametrize(
    "config",
    [
        {"net0": "name=eth0,bridge=vmbr0,ip=10.0.0.21/24,gw=10.0.0.1"},
        {"builder.json": '{"settings": {"container": {"network": {"ip": "10.0.0.21/24"}}}}'},
    ],
)
def test_an_address_that_another_one_runs_with_is_refused(template: Path, config: dict[str, str]) -> None:
    wanted = {"ip": "10.0.0.21/24", "gateway": "10.0.0.1"}
    other = Guest(950, "theirs", running=True, config=config)
    with pytest.raises(UsageError, match=r"its address 10\.0\.0\.21 is that of 950 \(theirs\); give --ip another"):
        make(template, SimulatedHost([other]), overrides=wanted)
    make(template, SimulatedHost([replace(other, running=False)]), overrides=wanted)
    make(template, SimulatedHost([other]), overrides={**wanted, "ip": "10.0.0.2/24"})
    own = guest(921, "cpu", running=True, config=config)
    assert make(template, SimulatedHost([own]), overrides=wanted, replace=True).container.ctid == 930


def test_all_that_is_wrong_is_told_in_one_error(template: Path) -> None:
    with pytest.raises(BuilderError, match=r"container 921 on simulated: no bridge; no room"):
        make(template, SimulatedHost(wrong=("no bridge", "no room")))


def test_a_root_disk_that_is_too_small_is_told_with_the_size_that_is_not(template: Path) -> None:
    with pytest.raises(UsageError, match=r"4 GiB is too small .* needs 8 GiB; give RootGiB = 8 or more"):
        make(template, SimulatedHost(), overrides={"root_gib": 4})


def test_a_template_whose_sums_disagree_is_refused(template: Path) -> None:
    (template.parent / "SHA256SUMS").write_text(f"{'0' * 64}  {template.name}\n")
    with pytest.raises(BuilderError, match="do not agree on its sha256; run `builder verify"):
        make(template, SimulatedHost())


def test_a_model_that_is_not_on_the_host_is_told_with_the_way_to_it(
    template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = replace(plan.profiles.load(HOUSE / "recipes/vllm-blackwell", "awq"), gpus=0)
    monkeypatch.setattr(plan.profiles, "load", lambda folder, name: profile)
    fetch = "is not in {}/Qwen2.5-7B-Instruct-AWQ on the host: `builder models fetch awq --to {}` there"
    for models, says in (
        (None, fetch.format(*["/srv/models"] * 2)),
        (("/tank/m:/models",), fetch.format(*["/tank/m"] * 2)),
        (("/tank/m:/elsewhere",), "no folder of the host is mounted there"),
    ):
        with pytest.raises(BuilderError, match=re.escape(says)):
            make(template, SimulatedHost(), overrides={"models": models})


def test_what_would_have_no_effect_is_refused(template: Path) -> None:
    with pytest.raises(UsageError, match=r"--gpus: profile cpu uses no cards; leave it out"):
        make(template, SimulatedHost(), overrides={"gpus": (0,)})
    make(template, SimulatedHost(), overrides={"gpus": ()})
    plain = SimulatedHost(capabilities=Capabilities(True, False, False))
    with pytest.raises(UsageError, match=r"--storage: plain LXC has no storages; leave it out"):
        make(template, plain, overrides={"storage": "local"})


def test_cards_that_only_the_fallback_uses_are_looked_for(template: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {name: plan.profiles.load(HOUSE / "recipes/vllm-cpu", "cpu") for name in ("cpu", "card")}
    found["card"] = replace(found["card"], name="card", gpus=1, share=0.5)
    monkeypatch.setattr(plan.profiles, "load", lambda folder, name: found[name])
    with pytest.raises(BuilderError, match=r"profile cpu for container 921: wants a card, and the host has none"):
        make(template, SimulatedHost(), fallback="card")


def test_cards_of_deploys_under_way_are_promised_once() -> None:
    begun = [
        {"container": {"ctid": 921, "name": "a", "gpus": [0, 1]}, "profile": {"share": 0.9}},
        {"container": {"ctid": 922, "name": "b", "gpus": [1]}, "profile": {"share": 0.5}},
        {"container": {"ctid": 923, "name": "c", "gpus": None}, "profile": {"share": 0.5}},
        {},
    ]
    known = Promise(1, 922, "b", 0.5, True, "its mark")
    found = plan._with_begun([known], begun)
    assert [(each.card, each.ctid, each.share) for each in found] == [(1, 922, 0.5), (0, 921, 0.9), (1, 921, 0.9)]
