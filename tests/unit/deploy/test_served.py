"""What a file's containers serve together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from builder.deploy.containers import Loaded
from builder.deploy.containers import load as load_containers
from builder.deploy.model import Container
from builder.deploy.profile.model import Model, Profile
from builder.deploy.served import served
from builder.errors import UsageError


def profile(name: str, gpus: int, share: float) -> Profile:
    return Profile(name, "", Model("", None, "/models/m"), name, "completion", gpus, share, {}, {})


PROFILES = {
    "small": profile("small", 1, 0.1),
    "large": profile("large", 1, 0.8),
    "larger": profile("larger", 1, 0.85),
    "two": profile("two", 2, 0.9),
    "cpu": profile("cpu", 0, 0.0),
}


def named(name: str) -> Profile:
    if name not in PROFILES:
        raise UsageError(f"no profile {name}")
    return PROFILES[name]


def file_of(*servers: tuple[str, tuple[int, ...] | None], onboot: bool = True) -> Loaded:
    return Loaded(
        {
            950 + at: Container(950 + at, f"c{at}", profile=name, gpus=gpus, onboot=onboot)
            for at, (name, gpus) in enumerate(servers)
        }
    )


def told(loaded: Loaded) -> list[tuple[int | None, str, str]]:
    return [(found.ctid, found.severity, found.text) for found in served(loaded, named).findings]


def test_two_that_fit_one_card_are_not_spoken_of() -> None:
    loaded = file_of(("large", (0,)), ("small", (0,)), ("two", (1, 2)), ("cpu", ()))
    assert told(loaded) == []
    assert served(loaded, named).profiles == dict(
        zip(loaded.containers, map(PROFILES.get, ("large", "small", "two", "cpu")), strict=True)
    )


def test_a_card_that_is_promised_too_often_says_to_whom() -> None:
    assert told(file_of(("larger", (0,)), ("small", (0,)))) == [
        (
            None,
            "contradiction",
            "card 0 is promised 0.95 of its memory (0.85 of 950, 0.10 of 951), over 0.92, "
            "and all of them start at boot",
        )
    ]


def test_servers_that_are_started_by_hand_may_take_turns() -> None:
    ((_, severity, text),) = told(file_of(("two", (0, 1)), ("large", (1,)), onboot=False))
    assert severity == "told"
    assert text.startswith("card 1 is promised 1.70 of its memory")
    assert text.endswith("so they cannot all run at once")


def test_one_that_takes_any_card_promises_none() -> None:
    assert told(file_of(("larger", (0,)), ("larger", None), ("larger", (0, 1)))) == []


def test_too_few_cards_are_refused() -> None:
    assert told(file_of(("two", (1,)), ("small", ()))) == [
        (950, "refused", "profile two wants 2 of the host's cards, and it is given 1"),
        (951, "refused", "profile small wants 1 of the host's cards, and it is given none"),
    ]


def test_a_profile_that_there_is_not_is_refused() -> None:
    assert told(file_of(("smal", (0,)))) == [(950, "refused", "no profile smal")]


def test_without_a_recipe_named_profiles_are_not_looked_at() -> None:
    assert served(file_of(("smal", (0,))), None).profiles == {}


@pytest.fixture
def phoenix(tmp_path: Path) -> Path:
    common: dict[str, Any] = {"gpu_assignment": "0", "start_at_boot": True, "vllm_tensor_parallel_size": 1}
    entries = {
        "700": {"name": "a", **common, "vllm_model": "org/a", "vllm_gpu_memory_utilization": 0.85},
        "701": {"name": "b", **common, "vllm_model": "org/b", "vllm_gpu_memory_utilization": 0.1},
        "702": {"name": "c"},
    }
    entries["701"]["vllm_args"] = ["--gpu-memory-utilization", "0.2"]
    path = tmp_path / "phoenix_lxc_configs.json"
    path.write_text(json.dumps({"lxc_configs": entries}), encoding="utf-8")
    return path


def test_entries_make_their_own_profiles(phoenix: Path) -> None:
    found = served(load_containers(phoenix), None)
    assert {ctid: made.share for ctid, made in found.profiles.items()} == {700: 0.85, 701: 0.2}
    (both,) = [one for one in found.findings if one.ctid == 701]
    assert both.severity == "contradiction"
    assert "0.1" in both.text
    assert "0.2" in both.text
    assert any("card 0 is promised 1.05 of its memory" in one.text for one in found.findings)
