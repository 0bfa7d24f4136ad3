"""The real vLLM, on the CPU, from its recipe to a container that answers: deployed, cloned, measured, replaced."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import HOUSE, User
from deploying import Site, site

pytestmark = [pytest.mark.e2e, pytest.mark.lxc, pytest.mark.slow, pytest.mark.timeout(1500)]

ROWS = [(921, "cpu-new", "cpu", 21), (950, "cpu-old", "cpu", 50)]


@pytest.fixture(scope="module")
def place(root_user: User) -> Iterator[Site]:
    with site(root_user, HOUSE, ROWS) as made:
        done = made.builder("template", "recipes/vllm-cpu")
        assert done.returncode == 0, done.stderr
        yield made


def test_two_servers_answer_are_measured_against_each_other_replaced_and_removed(place: Site, tmp_path: Path) -> None:
    said = place.on_host("deploy", "--ctid", "921", "--profile", "cpu")
    assert said.returncode == 0, said.stderr
    assert "completion of" in said.stderr
    place.passes("deploy", "--ctid", "950")
    assert place.running() == ["921", "950"]
    rows = place.json("status")["deployments"]
    assert [(row["ctid"], row["state"], row["drift"]) for row in rows] == [(921, "running", []), (950, "running", [])]

    proof = {row["name"]: row for row in place.json("verify", "921")["rows"]}
    assert {name for name, row in proof.items() if row["state"] == "failed"} == set()
    assert proof["answer"]["state"] == "ok"

    output = tmp_path / "bench"
    measured = ("--against", "950", "--concurrency", "1,4", "--prompts", "8", "--output", str(output))
    told = place.json("bench", "921", "--input-tokens", "32", "--output-tokens", "16", *measured)
    assert {ratio["concurrency"] for ratio in told["ratios"]} == {1, 4}
    assert all(ratio["tokens"] > 0 for ratio in told["ratios"])
    (plot,) = output.glob("*.svg")
    assert ElementTree.parse(plot).getroot().tag.endswith("svg")
    (kept,) = output.glob("*.json")
    assert json.loads(kept.read_text())["ratios"] == told["ratios"]

    (key,) = [path for path in (place.state / "keys").rglob("cpu-old") if path.is_file()]
    foreign = ("--against", f"http://{place.bridge.network}.50:8000", "--against-key-file", str(key))
    load = ("--concurrency", "4", "--prompts", "8", "--output", str(output))
    told = place.json("bench", "921", "--input-tokens", "32", "--output-tokens", "16", *foreign, *load)
    assert [(series["points"][0]["failed"], series["kind"]) for series in told["series"]] == [(0, "completion")] * 2
    assert told["series"][1]["tokenizer"] == told["series"][0]["tokenizer"]
    assert told["ratios"][0]["tokens"] > 0
    assert key.read_text().strip() not in json.dumps(told)

    place.passes("deploy", "--ctid", "921", "--replace")
    assert place.running() == ["931", "950"]
    place.passes("destroy", "cpu-new", "--old", "--yes")
    for name in ("cpu-new", "cpu-old"):
        place.passes("destroy", name, "--yes")
    assert place.json("templates", "gc")["removed"] == [920]
    assert place.containers() == []
