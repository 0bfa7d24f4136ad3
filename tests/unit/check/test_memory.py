"""Weights and KV cache against the card: the arithmetic, and what cannot be reckoned."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from madetemplate import CARD, GOOD, MadeModel, MadeProfile, Make

from builder.check import Finding, Severity, Subject, memory
from builder.check.look import look, view
from builder.check.tree import Tree
from builder.deploy import profile as profiles
from builder.recipe.model import Target

RECIPE = Path(__file__).parents[3] / "recipes" / "vllm-blackwell"
LLAMA_3B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": True,
}
LLAMA_8B = {**LLAMA_3B, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
LLAMA_8B |= {"num_attention_heads": 32, "tie_word_embeddings": False}


def fits(profile: Any, target: Target | None = CARD) -> Finding | None:
    subject = Subject("made", Tree({}), target)
    return next(memory.fits(view(look(subject), profile)), None)


def shaped(shape: dict[str, Any] = LLAMA_3B, **options: Any) -> MadeProfile:
    return GOOD.shaped(shape).having(**{"max_model_len": 8192, **options})


def what(profile: Any, severity: Severity, target: Target | None = CARD) -> str:
    finding = fits(profile, target)
    assert finding is not None
    assert (finding.rule, finding.severity) == ("card-memory", severity), finding
    return f"{finding.what} {finding.evidence}"


@pytest.mark.parametrize(
    ("name", "weights", "token", "tokens"),
    [
        ("awq", 5.19, 56, 141472),
        ("fp8", 3.36, 56, 205538),
        ("fp8-fast", 3.36, 112, 102769),
        ("fp8-tp2", 1.68, 28, 473971),
        ("nvfp4", 5.61, 64, 142910),
    ],
)
def test_every_profile_of_the_recipe(name: str, weights: float, token: int, tokens: int) -> None:
    told = what(profiles.load(RECIPE, name), Severity.NOTE)
    assert f"= {weights} GiB" in told
    assert f"{token} KiB of KV cache a token" in told
    assert f"at most {tokens} tokens" in told


def test_a_model_of_embeddings_has_no_cache() -> None:
    assert "the weights take 0.28 GiB of each card; there is no KV cache" in what(
        profiles.load(RECIPE, "embed"), Severity.NOTE
    )


def test_weights_above_the_share() -> None:
    assert "the weights alone take 14.96 GiB of each card, more than its share" in what(
        shaped(LLAMA_8B), Severity.ERROR
    )
    assert "/ 2 cards = 7.48 GiB" in what(replace(shaped(LLAMA_8B, tensor_parallel_size=2), gpus=2), Severity.NOTE)


def test_what_is_quantized_while_loading_lies_on_the_card_whole_first() -> None:
    small = replace(CARD, memory_mib=12288)
    assert "while it is quantized it takes 14.96 GiB" in what(
        shaped(LLAMA_8B, quantization="fp8"), Severity.ERROR, small
    )
    ready = {**LLAMA_8B, "quantization_config": {"quant_method": "fp8"}}
    assert "while loading" not in what(shaped(ready), Severity.NOTE, small)


def test_one_request_that_does_not_fit() -> None:
    told = what(shaped(max_model_len=131072), Severity.ERROR)
    assert "one request of 131072 tokens wants 14.00 GiB of KV cache" in told
    what(shaped(max_model_len=131072, kv_cache_dtype="fp8", quantization="fp8"), Severity.NOTE)


def test_the_models_own_length_counts_where_none_is_given() -> None:
    assert "one request of 131072 tokens" in what(GOOD.shaped(LLAMA_3B), Severity.ERROR)


def test_a_model_that_keeps_a_window_is_not_refused_for_its_length() -> None:
    profile = shaped({**LLAMA_3B, "sliding_window": 4096}, max_model_len=131072)
    unseen, note = memory.fits(view(look(Subject("made", Tree({}), CARD)), profile))
    assert (unseen.severity, unseen.evidence) == (Severity.NOT_CHECKED, "some layers keep only a window of it")
    assert (note.severity, "requests of" in note.what) == (Severity.NOTE, False)


@pytest.mark.parametrize(
    "shape",
    [
        {"model_type": "qwen2", "sliding_window": 131072},
        {"model_type": "qwen2", "sliding_window": 131072, "use_sliding_window": False},
        {"layer_types": ["full_attention"] * 28},
        {"sliding_window": None},
    ],
)
def test_a_window_that_is_not_used(shape: dict[str, Any]) -> None:
    assert "one request of 131072 tokens" in what(shaped({**LLAMA_3B, **shape}, max_model_len=131072), Severity.ERROR)


@pytest.mark.parametrize(
    ("options", "reason"), [({"max_model_len": "8k"}, "max-model-len is '8k'"), ({}, "vLLM decides on it")]
)
def test_a_length_that_is_not_known_is_not_checked(options: dict[str, Any], reason: str) -> None:
    profile = GOOD.shaped({**LLAMA_3B, "max_position_embeddings": None}).having(**options)
    assert reason in what(profile, Severity.NOT_CHECKED)


def test_offloaded_weights_are_not_on_the_card() -> None:
    assert "- 4.00 GiB offloaded = 10.96 GiB" in what(shaped(LLAMA_8B, cpu_offload_gb=4), Severity.NOTE)


def test_a_server_on_the_cpu_takes_no_card() -> None:
    assert fits(replace(shaped(), gpus=0)) is None


@pytest.mark.parametrize(
    ("shape", "options", "reason"),
    [
        ({}, {}, "shape is not known"),
        ({**LLAMA_3B, "model_type": "mamba"}, {}, "model_type 'mamba'"),
        ({**LLAMA_3B, "num_local_experts": 8}, {}, "experts"),
        ({**LLAMA_3B, "vocab_size": None}, {}, "no vocab_size"),
        ({**LLAMA_3B, "hidden_size": "3072"}, {}, "hidden_size is '3072'"),
        (LLAMA_3B, {"quantization": "bitsandbytes"}, "bitsandbytes"),
        (LLAMA_3B, {"dtype": "float8"}, "dtype 'float8'"),
        (LLAMA_3B, {"tensor_parallel_size": "2"}, "tensor-parallel-size is '2'"),
        ({**LLAMA_3B, "quantization_config": {"quant_method": "mxfp4"}}, {}, "mxfp4"),
        ({**LLAMA_3B, "quantization_config": {"quant_method": "awq"}}, {}, "no bits"),
    ],
)
def test_what_cannot_be_reckoned_is_not_checked(shape: dict[str, Any], options: dict[str, Any], reason: str) -> None:
    assert reason in what(shaped(shape, **options), Severity.NOT_CHECKED)


def test_no_card_no_answer() -> None:
    assert "no [Target] is known" in what(shaped(), Severity.NOT_CHECKED, None)


def test_a_config_in_the_template_counts_before_the_profiles_shape(make: Make) -> None:
    subject = make({"opt/models/it/config.json": json.dumps(LLAMA_8B)})
    profile = replace(shaped(), model=MadeModel("/opt/models/it", LLAMA_3B))
    (finding,) = memory.fits(view(look(subject), profile))
    assert finding.severity is Severity.ERROR


VALUES = st.one_of(st.none(), st.integers(-2, 1 << 20), st.text(max_size=4), st.booleans(), st.lists(st.integers()))
METHODS = st.sampled_from(["awq", "gptq", "fp8", "compressed-tensors", 1, None])
GROUPS = st.dictionaries(st.text(max_size=2), st.one_of(VALUES, st.builds(lambda one: {"weights": one}, VALUES)))
CONFIG = st.fixed_dictionaries(
    {"quant_method": METHODS},
    optional={"bits": VALUES, "group_size": VALUES, "config_groups": st.one_of(VALUES, GROUPS)},
)
OPTIONS = ["dtype", "quantization", "tensor_parallel_size", "max_model_len", "cpu_offload_gb", "kv_cache_dtype"]


@given(
    st.dictionaries(st.sampled_from(sorted(LLAMA_3B)), VALUES, max_size=1),
    st.one_of(VALUES, CONFIG),
    st.dictionaries(st.sampled_from(OPTIONS), VALUES, max_size=2),
)
def test_any_shape_gives_one_finding(shape: dict[str, Any], config: Any, options: dict[str, Any]) -> None:
    found = fits(shaped({**LLAMA_3B, **shape, "quantization_config": config}, **options))
    assert found is not None
    assert found.rule == "card-memory"
