"""Profiles from entries of phoenix_lxc_configs.json: every generation, contradictions with both values and the rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from builder.deploy.profile import Profile, from_entry

RECIPE = Path(__file__).parents[4] / "recipes/vllm-blackwell"


def made(entry: dict[str, Any], recipe: Path | None = None) -> tuple[Profile, list[str]]:
    found = from_entry(entry, "demo", recipe)
    assert found is not None
    return found[0], [f"{told.severity}: {told.text}" for told in found[1]]


FIRST = {"gpu_assignment": "0", "vllm_model": "lab/Tiny", "vllm_tensor_parallel_size": 1}

FLAT = {
    "gpu_assignment": "0, 1",
    "zfs_volumes": [{"name": "models", "pool": "p", "size_gb": 9, "mount_point": "/llm_models"}],
    "vllm_model": "lab/Tiny",
    "vllm_served_model_name": "tiny",
    "vllm_port": 8001,
    "vllm_quantization": "fp8",
    "vllm_max_model_len": 4096,
    "vllm_gpu_memory_utilization": 0.8,
    "vllm_tensor_parallel_size": 2,
    "vllm_model_type": "chat",
    "vllm_trust_remote_code": False,
    "vllm_parameters": {"dtype": "auto", "max_model_len": 4096, "gpu_memory_utilization": 0.8, "max_num_seqs": 8},
    "vllm_args": ["--max-model-len", "4096", "--gpu-memory-utilization", "0.80", "--enforce-eager"],
}

NESTED = {
    "gpu_assignment": "0",
    "vllm_engine_config": {
        "ModelConfig": {"model": "lab/Tiny", "trust_remote_code": False, "dtype": "bfloat16", "max_model_len": 4096},
        "CacheConfig": {"quantization": "fp8", "gpu_memory_utilization": 0.7},
        "ParallelConfig": {"tensor_parallel_size": 1},
        "ServerConfig": {"host": "0.0.0.0", "port": 8002, "served_model_name": "tiny"},
    },
}


def test_the_first_generation() -> None:
    profile, told = made(FIRST)
    assert (profile.model.repository, profile.model.path) == ("lab/Tiny", "/models/Tiny")
    assert (profile.served_name, profile.gpus, profile.share, profile.port) == ("lab/Tiny", 1, 0.9, 8000)
    assert told == ["told: gpu_memory_utilization is not said: vLLM's own default, 0.9"]


def test_the_flat_generation_says_the_same_in_several_places() -> None:
    profile, told = made(FLAT)
    assert told == []
    assert profile.model.path == "/llm_models/Tiny"
    assert (profile.served_name, profile.gpus, profile.share, profile.port) == ("tiny", 2, 0.8, 8001)
    assert profile.options == {
        "max-model-len": 4096,
        "enforce-eager": True,
        "quantization": "fp8",
        "tensor-parallel-size": 2,
        "dtype": "auto",
        "max-num-seqs": 8,
    }


def test_the_nested_generation_and_its_open_address() -> None:
    profile, told = made(NESTED)
    assert (profile.served_name, profile.share, profile.port, profile.host) == ("tiny", 0.7, 8002, None)
    assert profile.options == {
        "dtype": "bfloat16",
        "max-model-len": 4096,
        "quantization": "fp8",
        "tensor-parallel-size": 1,
    }
    assert len(told) == 1
    assert told[0].startswith("told: host '0.0.0.0' is left out: it listens on the container's own address")


def test_arguments_come_before_flat_keys_and_those_before_parameters() -> None:
    profile, told = made(
        {
            **FIRST,
            "vllm_gpu_memory_utilization": 0.8,
            "vllm_args": ["--max-model-len=100", "--gpu-memory-utilization", "0.5", "-tp", "1"],
            "vllm_parameters": {"max_model_len": 200, "gpu_memory_utilization": 0.6},
            "vllm_max_model_len": 300,
        }
    )
    assert (profile.options["max-model-len"], profile.share) == (100, 0.5)
    assert told == [
        "contradiction: max-model-len is 100 in vllm_args and 300 in the flat keys: vllm_args decides",
        "contradiction: gpu-memory-utilization is 0.5 in vllm_args and 0.8 in the flat keys: vllm_args decides",
        "contradiction: max-model-len is 100 in vllm_args and 200 in vllm_parameters: vllm_args decides",
        "contradiction: gpu-memory-utilization is 0.5 in vllm_args and 0.6 in vllm_parameters: vllm_args decides",
    ]


def test_a_dtype_that_vllm_does_not_have_is_told_and_left_out() -> None:
    profile, told = made({**FLAT, "vllm_parameters": {"dtype": "float8"}})
    assert "dtype" not in profile.options
    assert told[0].startswith("told: dtype 'float8' is left out, so auto: vLLM takes auto, half, ")


def test_foreign_code_is_not_run() -> None:
    for key, value in (("vllm_trust_remote_code", True), ("vllm_args", ["--trust-remote-code"])):
        profile, told = made({**FLAT, key: value})
        assert "trust-remote-code" not in profile.options
        assert any("trust_remote_code is left out: it runs whatever Python" in line for line in told)


def test_one_request_at_a_time_is_kept_and_told() -> None:
    profile, told = made({**FLAT, "vllm_parameters": {"max_num_seqs": 1}})
    assert profile.options["max-num-seqs"] == 1
    assert any("max_num_seqs 1 is kept, and serves one request at a time" in line for line in told)


def test_the_slow_awq_kernels_are_not_forced() -> None:
    profile, told = made({**FLAT, "vllm_quantization": "awq"})
    assert "quantization" not in profile.options
    assert any("without it vLLM takes awq_marlin" in line for line in told)
    assert made({**FLAT, "vllm_quantization": "awq_marlin"})[0].options["quantization"] == "awq_marlin"


def test_fp8_of_an_awq_model_is_a_contradiction() -> None:
    profile, told = made({**FLAT, "vllm_model": "lab/Tiny-AWQ"})
    assert "quantization" not in profile.options
    assert told == ["contradiction: quantization is 'fp8', and 'lab/Tiny-AWQ' is an AWQ model: the model decides"]


def test_an_fp8_cache_gets_what_it_needs() -> None:
    profile, told = made({**FLAT, "vllm_parameters": {"kv_cache_dtype": "fp8"}})
    assert profile.environment["VLLM_ATTENTION_BACKEND"] == "TRITON_ATTN_VLLM_V1"
    assert profile.options["block-size"] == 32
    assert len(told) == 2
    assert "VLLM_ATTENTION_BACKEND" not in made(FLAT)[0].environment


def test_an_embedding_model_has_a_pooling_runner_and_no_fp8() -> None:
    profile, told = made({**FLAT, "vllm_model_type": "embedding"})
    assert (profile.task, profile.options["runner"]) == ("embedding", "pooling")
    assert "quantization" not in profile.options
    assert told == ["told: quantization 'fp8' is left out: an embedding model has no FP8 form in vLLM"]


def test_fewer_cards_than_its_options_want_is_a_contradiction() -> None:
    profile, told = made({**FLAT, "gpu_assignment": "1"})
    assert (profile.gpus, profile.options["tensor-parallel-size"]) == (1, 1)
    assert told == ["contradiction: gpu_assignment '1' and tensor_parallel_size 2: gpu_assignment decides, so 1"]


def test_a_card_too_many_is_told() -> None:
    profile, told = made({**FLAT, "vllm_tensor_parallel_size": 1})
    assert profile.gpus == 1
    assert told == ["told: gpu_assignment '0, 1': only 1 of its 2 cards are used"]


def test_secrets_of_a_file_are_neither_kept_nor_shown() -> None:
    profile, told = made({**FLAT, "vllm_args": ["--api-key", "s3cret", "--hf-token=hf_s3cret"]})
    assert all("s3cret" not in line for line in told)
    assert "s3cret" not in repr(profile)
    assert [line.split(" is ")[0] for line in told] == [
        "refused: api-key in vllm_args",
        "refused: hf-token in vllm_args",
    ]


def test_values_that_cannot_be_are_left_out_and_told() -> None:
    profile, told = made(
        {**FIRST, "vllm_gpu_memory_utilization": 90, "vllm_port": "80", "vllm_args": ["x"], "vllm_speed": 1}
    )
    assert (profile.share, profile.port) == (0.9, 8000)
    assert [line.partition(",")[0] for line in told] == [
        "refused: vllm_args: 'x' is no option that is known here",
        "refused: 'port' in the flat keys is '80'",
        "refused: 'gpu-memory-utilization' in the flat keys is 90",
        "told: not used: 'vllm_speed'",
        "told: gpu_memory_utilization is not said: vLLM's own default",
    ]


def test_the_environment_is_that_of_the_recipe() -> None:
    environment = made(FLAT, RECIPE)[0].environment
    assert environment["VLLM_CACHE_ROOT"] == "/var/cache/vllm"
    assert environment["VLLM_USE_V1"] == "1"


def test_an_entry_without_a_model_makes_none() -> None:
    for entry in (
        {},
        {"vllm_model": None},
        {"vllm_model": "none"},
        {"features": ["docker"], "vllm_args": ["--port", "1"]},
    ):
        assert from_entry(entry, "demo") is None


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from([*FLAT, *NESTED, *FIRST, "volumes", "mount_points", "vllm_dtype"]), anything, max_size=8
    )
)
def test_no_entry_breaks_it_and_what_is_said_is_printable(entry: dict[str, Any]) -> None:
    found = from_entry(entry, "demo")
    if found is not None:
        assert all(told.text.isprintable() and told.text.isascii() for told in found[1])
        assert 0 <= found[0].share <= 1
        assert 1024 <= found[0].port <= 65535
