"""`builder bench`: vLLM's own numbers, honestly set side by side."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from builder.commands import bench as command
from builder.deploy import plot
from builder.deploy.bench import Load, fit_together, load_of, path_of, point_of
from builder.deploy.bench import Result as Measured
from builder.deploy.bench import Series as Measurements
from builder.deploy.deployments import Deployment
from builder.deploy.model import Guest, jsonable
from builder.deploy.profile.model import Bench, Model, Profile
from builder.errors import BuilderError, UsageError

from .simulated import Answer, SimulatedChannel, SimulatedHost, failed, recorded, server

CPU = Profile("cpu", "", Model("", None, "/opt/models/tiny-llama"), "tiny", "completion", 0, 0.0, {}, {})
LOOK = {**recorded("look"), "record": {"profile": jsonable(replace(CPU, bench=Bench(64, 32, (1, 8))))}}
UP, DOWN = recorded("start")[-1], {"unit": {"ActiveState": "inactive", "InvocationID": "old"}, "log": []}


def answers(**changes: list[Answer]) -> dict[str, list[Answer]]:
    whole: dict[str, list[Answer]] = {
        "look": [LOOK],
        "state": [UP],
        "ask": [recorded("ask")],
        "proof": [recorded("proof")],
        "bench": [recorded("bench")],
    }
    return {**{key.replace("_", " ").strip(): value for key, value in changes.items()}, **whole}


def run(
    guests: list[Guest], given: dict[str, list[Answer]], *words: str, folder: Path
) -> tuple[Result, SimulatedChannel]:
    channel = SimulatedChannel(given)
    host = SimulatedHost(guests, channel)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "open_host", lambda where: host)
        patch.setattr("builder.deploy.health.time.sleep", lambda seconds: None)
        result = CliRunner().invoke(command.bench, [*words, "--output", str(folder)], standalone_mode=False)
    return result, channel


def services(channel: SimulatedChannel) -> list[str]:
    """What was stopped, started and measured, in order."""
    lines = [line for line in channel.inside() if " systemctl " in line or " bench " in line]
    return list(dict.fromkeys(line.partition(" --dataset")[0] for line in lines))


def test_a_measurement_is_what_vllm_wrote() -> None:
    point = point_of(recorded("bench"), 8, 16)
    told = recorded("bench")["result"]
    assert (point.failed, point.tokens_per_second) == (0, told["output_throughput"])
    assert point.ttft_ms == (told["p50_ttft_ms"], told["p90_ttft_ms"], told["p99_ttft_ms"])
    assert len(point.tpot_ms) == len(point.itl_ms) == len(point.latency_ms) == 3


def test_an_embedding_has_the_tokens_that_it_reads_and_the_time_of_a_request() -> None:
    point = point_of(recorded("bench-embedding"), 8, 16)
    assert point.tokens_per_second == recorded("bench-embedding")["result"]["total_token_throughput"]
    assert (point.ttft_ms, len(point.latency_ms)) == ((), 3)


@pytest.mark.parametrize(
    "told", [{}, {"kind": "completion", "result": {}}, {"kind": "completion", "result": {"completed": "x"}}]
)
def test_a_result_of_another_form_is_an_error(told: dict[str, Any]) -> None:
    with pytest.raises(BuilderError, match="cannot be read"):
        point_of(told, 1, 1)


def test_the_path_taken_is_read_from_the_servers_own_log() -> None:
    path = dict(path_of(recorded("proof")["log"]))
    assert path["attention"] == "Torch SDPA backend"
    assert path["quantization"] == "None"
    assert path["KV cache"] == "auto"
    fp8 = dict(
        path_of(
            [
                "INFO 11-24 [cuda.py:1] Using Triton backend on V1 engine.",
                "INFO [core.py:76] Initializing a V1 LLM engine (v0.10.2) with: quantization=fp8, kv_cache_dtype=fp8,",
            ]
        )
    )
    assert (fp8["attention"], fp8["quantization"], fp8["KV cache"]) == ("Triton backend", "fp8", "fp8")


def test_the_load_is_the_profiles_unless_given() -> None:
    host = SimulatedHost([server(921, "fp8")], SimulatedChannel({"look": [LOOK]}))
    found = Deployment(host.given[0], host.given[0].mark)  # type: ignore[arg-type]
    assert load_of(host, found) == Load((1, 8), 64, 32)
    assert load_of(host, found, concurrency=(4,), prompts=9) == Load((4,), 64, 32, 9)
    host.channel.answers["look"] = [{"record": {"profile": {"bench": {"concurrency": "x"}}}}]
    assert load_of(host, found) == Load((1, 8, 32), 512, 128)


def test_table_json_and_plot(tmp_path: Path) -> None:
    result, channel = run([server(921, "fp8")], answers(), "921", "--prompts", "16", folder=tmp_path)
    assert result.return_value == 0, result.exception
    assert "attention Torch SDPA backend" in result.stdout
    rate = recorded("bench")["result"]["output_throughput"]
    assert f"{rate:,.1f}" in result.stdout
    (told,) = tmp_path.glob("bench-921-*.json")
    made = json.loads(told.read_text())
    assert [point["concurrency"] for point in made["series"][0]["points"]] == [1, 8]
    ElementTree.parse(told.with_suffix(".svg"))
    lines = [line for line in channel.inside() if " bench " in line]
    assert [line.split("--max-concurrency ")[1].split()[0] for line in lines] == ["8", "1", "8"]  # warm-up first
    seeds = [line.split("--seed ")[1].split()[0] for line in lines]
    assert len(set(seeds)) == 3
    assert services(channel) == ["921 bench"]


def test_two_that_fit_both_stay_up_and_the_ratio_is_shown(tmp_path: Path) -> None:
    slow = recorded("bench")
    slow["result"]["output_throughput"] /= 2
    guests = [server(921, "fp8", gpus=(1,), share=0.9), server(950, "awq", gpus=(0,), share=0.8)]
    given = answers(_950_bench=[slow])
    result, channel = run(guests, given, "921", "--against", "950", "--prompts", "16", "--json", folder=tmp_path)
    told = json.loads(result.stdout)
    assert [ratio["tokens"] for ratio in told["ratios"]] == [2.0, 2.0]
    assert told["alone"] is False
    assert services(channel) == ["921 bench", "950 bench"]
    of = {ctid: [line[4:] for line in channel.inside() if line.startswith(f"{ctid} bench")] for ctid in (921, 950)}
    assert of[921] == of[950]


def test_a_measurement_that_is_too_short_is_made_again_with_more_requests_for_both(tmp_path: Path) -> None:
    short, long = recorded("bench"), recorded("bench")
    short["result"].update(duration=0.5, completed=16)
    long["result"].update(duration=6.0, completed=192)
    guests = [server(921, "fp8"), server(950, "awq")]
    given = answers() | {"921 bench": [short, short, long], "950 bench": [short, long], "bench": [long]}
    words = ("921", "--against", "950", "--concurrency", "1", "--json")
    result, channel = run(guests, {**given}, *words, folder=tmp_path)
    counts = [line.split("--num-prompts ")[1].split()[0] for line in channel.inside() if " bench " in line]
    assert counts == ["1", "16", "192", "1", "192"]
    seeds = [line.split("--seed ")[1].split()[0] for line in channel.inside() if " bench " in line]
    assert len(set(seeds[:3])) == 3
    assert [series["points"][0]["requests"] for series in json.loads(result.stdout)["series"]] == [192, 192]


SHARING = [server(921, "fp8", gpus=(0,), share=0.9), server(950, "awq", gpus=(0,), share=0.8)]


def test_of_two_that_do_not_fit_one_is_stopped_and_what_ran_runs_again(tmp_path: Path) -> None:
    begun: dict[str, list[Answer]] = {
        "950 state": [DOWN, DOWN, DOWN, {"unit": {"ActiveState": "active", "InvocationID": "new"}, "log": []}],
        "921 state": [UP],
    }
    result, channel = run(
        SHARING, {**begun, **answers()}, "921", "--against", "950", "--prompts", "16", folder=tmp_path
    )
    assert result.return_value == 0, result.exception
    assert "one was stopped while the other was measured" in result.stdout
    assert services(channel) == [
        "950 systemctl stop vllm.service",
        "921 bench",
        "921 systemctl stop vllm.service",
        "950 systemctl restart --no-block vllm.service",
        "950 bench",
        "921 systemctl start --no-block vllm.service",
    ]
    assert channel.inside()[-2:] == ["950 systemctl stop vllm.service", "921 systemctl start --no-block vllm.service"]


@pytest.mark.parametrize("stops", [failed("no connection"), KeyboardInterrupt()])
def test_whatever_ends_it_what_ran_runs_again(stops: Answer, tmp_path: Path) -> None:
    given: dict[str, list[Answer]] = {"950 state": [DOWN], "921 state": [UP], **answers(), "bench": [stops]}
    result, channel = run(SHARING, given, "921", "--against", "950", folder=tmp_path)
    assert result.exception is not None or result.return_value != 0
    assert channel.inside()[-2:] == ["950 systemctl stop vllm.service", "921 systemctl start --no-block vllm.service"]


def test_shares_count_only_on_common_cards() -> None:
    def deployment(gpus: tuple[int, ...], share: float) -> Deployment:
        guest = server(921, "x", gpus=gpus, share=share)
        assert guest.mark is not None
        return Deployment(guest, guest.mark)

    assert fit_together(deployment((0,), 0.9), deployment((1,), 0.9))
    assert fit_together(deployment((0,), 0.8), deployment((0,), 0.12))
    assert not fit_together(deployment((0, 1), 0.8), deployment((1,), 0.2))


def test_failed_requests_fail_the_command_and_say_why(tmp_path: Path) -> None:
    part = recorded("bench")
    part["result"]["completed"] = 14
    part["errors"] = {"Internal Server Error": 2}
    result, _ = run([server(921, "fp8")], answers() | {"bench": [part]}, "921", "--prompts", "16", folder=tmp_path)
    assert result.return_value == 1
    assert "Internal Server Error (2 times)" in result.stdout


@pytest.mark.parametrize(
    "words", [("921", "--concurrency", "0"), ("921", "--concurrency", "1,x"), ("921", "--against", "fp8")]
)
def test_wrong_use(words: tuple[str, ...], tmp_path: Path) -> None:
    result, _ = run([server(921, "fp8")], answers(), *words, folder=tmp_path)
    assert isinstance(result.exception, UsageError)


def measured(scale: Callable[[int], float], name: str = "fp8") -> Measured:
    base = point_of(recorded("bench"), 1, 16)
    points = tuple(replace(base, concurrency=1 << n, tokens_per_second=scale(n)) for n in range(4))
    series = Measurements(name, 921, name, "r", "d", "tiny", "completion", (), (), points)
    return Measured(
        "2026-11-24T17:00:00+00:00", "pct", 1, Load((1,), 64, 32), (series, replace(series, ctid=950)), (), False
    )


def test_the_plot_shows_both_series_with_units() -> None:
    text = plot.svg(measured(lambda n: 100.0 * n + 1))
    root = ElementTree.fromstring(text)
    words = " ".join(root.itertext())
    for what in ("tokens/s", "time to the first token, ms", "clients at once", "fp8 (921)", "fp8 (950)"):
        assert what in words
    assert text.count("<polyline") == 2 * (1 + 2 + 2)
    assert "prefers-color-scheme: dark" in text


def test_names_in_a_plot_are_text() -> None:
    ElementTree.fromstring(plot.svg(measured(float, '</text><script>alert("x")</script>')))


def test_an_embeddings_plot_has_the_time_of_a_request() -> None:
    point = point_of(recorded("bench-embedding"), 8, 16)
    series = Measurements("embed", 951, "embed", "r", "d", "granite", "embedding", (), (), (point,))
    text = plot.svg(Measured("2026-11-24", "pct", 1, Load((8,), 64, 32), (series,), (), False))
    assert "time of a request, ms" in text
    assert "first token" not in text


@given(st.floats(min_value=0, max_value=1e12))
def test_ticks_are_few_round_and_reach_over_the_highest(most: float) -> None:
    marks = plot.ticks(most)
    assert marks[0] == 0
    assert 2 <= len(marks) <= 9
    assert marks[-1] >= most * (1 - 1e-9)
