"""What the rules say about profiles: the good one passes, and each rule has one that breaks it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import pytest
from madetemplate import AWQ, CARD, GOOD, MODERNBERT, SITE, MadeModel, MadeProfile, Make, ids, judged

from builder.check import Severity, rules

FLASHINFER = {f"{SITE}/flashinfer_python-0.3.1.dist-info/METADATA": ""}
NVCC = {"usr/bin/nvcc": ""}
SAMPLER = {f"{SITE}/flashinfer/data/aot/sampling/sampling.so": ""}
FP8 = GOOD.having(quantization="fp8", kv_cache_dtype="fp8", block_size=32)
TRITON = FP8.within(VLLM_ATTENTION_BACKEND="TRITON_ATTN_VLLM_V1")
EMBED = replace(GOOD.shaped(MODERNBERT).having(runner="pooling"), task="embedding")
NVFP4 = GOOD.shaped({"model_type": "llama", "quantization_config": {"format": "nvfp4-pack-quantized"}})
PAIR = replace(GOOD, gpus=2).having(tensor_parallel_size=2)

Files = Mapping[str, "str | None"]
BREAKING: Mapping[str, tuple[MadeProfile | None, Files]] = {
    "dtype": (GOOD.having(dtype="float8"), {}),
    "kv-cache-fp8-backend": (FP8, {}),
    "kv-cache-fp8-block-size": (TRITON.having(block_size=16), {}),
    "kv-cache-fp8-small-blocks": (FP8.having(block_size=16), {}),
    "attention-backend-name": (GOOD.within(VLLM_ATTENTION_BACKEND="FLASHINFER_VLLM_V1"), {}),
    "attention-backend-encoder": (EMBED.within(VLLM_ATTENTION_BACKEND="TRITON_ATTN_VLLM_V1"), {}),
    "max-num-seqs-one": (GOOD.having(max_num_seqs=1), {}),
    "trust-remote-code": (GOOD.having(trust_remote_code=True), {}),
    "quantization-awq": (GOOD.shaped(AWQ).having(quantization="awq"), {}),
    "quantization-of-checkpoint": (GOOD.shaped(AWQ).having(quantization="fp8"), {}),
    "nvfp4-with-flashinfer": (NVFP4, FLASHINFER),
    "api-key-in-options": (GOOD.having(api_key="secret"), {}),
    "listens-everywhere": (replace(GOOD, host="0.0.0.0"), {}),
    "custom-all-reduce": (PAIR, {}),
    "variable-block-size": (GOOD.within(VLLM_BLOCK_SIZE="16"), {}),
    "variable-num-gpus": (GOOD.within(VLLM_NUM_GPUS="2"), {}),
    "variable-kv-cache-dtype": (GOOD.within(VLLM_KV_CACHE_DTYPE="fp8"), {}),
    "engine-v1-not-forced": (GOOD.without("VLLM_USE_V1"), {}),
    "driver-cache": (GOOD.without("CUDA_CACHE_PATH"), {}),
    "library-path": (GOOD.within(LD_LIBRARY_PATH="/usr/local/cuda/lib64"), {}),
    "flashinfer-version": (None, {f"{SITE}/flashinfer_python-0.1.5.dist-info/METADATA": ""}),
    "flashinfer-version-new": (None, {f"{SITE}/flashinfer_python-0.4.0.dist-info/METADATA": ""}),
    "flashinfer-missing": (FP8.within(VLLM_ATTENTION_BACKEND="FLASHINFER"), {}),
    "flashinfer-sampler-no-nvcc": (GOOD.without("VLLM_USE_FLASHINFER_SAMPLER"), {**FLASHINFER, **SAMPLER}),
    "flashinfer-sampler-compiles": (GOOD.without("VLLM_USE_FLASHINFER_SAMPLER"), {**FLASHINFER, **NVCC}),
    "transformers-5": (
        None,
        {f"{SITE}/transformers-4.56.2.dist-info/METADATA": None, f"{SITE}/transformers-5.0.0.dist-info/METADATA": ""},
    ),
    "etc-environment-dollar": (None, {"etc/environment": "PATH=/usr/local/cuda-12.8/bin:$PATH\n"}),
}
PASSING = {
    "plain": (GOOD, {}),
    "fp8": (TRITON, {}),
    "awq": (GOOD.shaped(AWQ), {}),
    "embed": (EMBED, {}),
    "nvfp4": (NVFP4, {}),
    "two cards": (PAIR.having(disable_custom_all_reduce=True), {}),
    "FlashInfer's attention": (FP8.within(VLLM_ATTENTION_BACKEND="FLASHINFER"), FLASHINFER),
    "FlashInfer's sampler": (GOOD.without("VLLM_USE_FLASHINFER_SAMPLER"), {**FLASHINFER, **NVCC, **SAMPLER}),
    "on the CPU": (replace(GOOD, gpus=0, environment={}), {}),
    "options with underscores": (replace(GOOD, options={"max_model_len": 8192}), {}),
}


@pytest.mark.parametrize("name", PASSING)
def test_a_good_profile_passes_without_a_word(make: Make, name: str) -> None:
    profile, files = PASSING[name]
    subject = make(files)
    assert not judged(subject, profile)
    assert not judged(subject)


ALONG = {"kv-cache-fp8-small-blocks": "kv-cache-fp8-backend"}
"""Rules that hold only where another one does."""


@pytest.mark.parametrize("rule", [rule.id for rule in rules.rules()])
def test_each_rule_has_something_that_breaks_it(make: Make, rule: str) -> None:
    profile, files = BREAKING[rule]
    found = [finding for finding in judged(make(files), profile) if finding.rule != ALONG.get(rule)]
    assert ids(found) == {rule}
    (finding,) = found
    assert finding.severity is not Severity.NOT_CHECKED
    assert finding.mend
    assert finding.source
    assert finding.evidence


def test_evidence_names_what_was_seen(make: Make) -> None:
    (finding,) = judged(make(), TRITON.having(block_size=16))
    assert finding.evidence == "kv-cache-dtype = fp8, VLLM_ATTENTION_BACKEND=TRITON_ATTN_VLLM_V1, block-size = 16"
    assert finding.subject == "profile made"
    (finding,) = judged(make({"etc/environment": "# $PATH\nLANG=C\nPATH=/cuda:$PATH\n"}))
    assert finding.evidence == "/etc/environment: PATH=/cuda:$PATH"


def test_a_block_size_that_is_left_out_is_vllms_sixteen(make: Make) -> None:
    options = {name: value for name, value in TRITON.options.items() if name != "block-size"}
    assert ids(judged(make(), replace(TRITON, options=options))) == {"kv-cache-fp8-block-size"}


def test_rules_about_the_card_are_not_checked_until_it_is_known(make: Make) -> None:
    (finding,) = judged(make(target=None), FP8)
    assert (finding.rule, finding.severity) == ("kv-cache-fp8-backend", Severity.NOT_CHECKED)
    assert finding.evidence == "no [Target] is known"
    assert not judged(make(target=None), GOOD)  # its other conditions do not hold: nothing is open
    assert not judged(make(target=replace(CARD, compute_capability="9.0")), FP8)


def test_rules_about_the_model_are_not_checked_until_its_shape_is_known(make: Make) -> None:
    unknown = replace(GOOD, model=MadeModel(shape={})).having(quantization="fp8")
    (finding,) = judged(make(), unknown)
    assert (finding.rule, finding.severity) == ("quantization-of-checkpoint", Severity.NOT_CHECKED)
    assert "no [Model.Shape] in the profile, no config.json here" in finding.evidence
    assert not judged(make(), unknown.having(quantization="gptq"))


def test_the_config_in_the_template_counts_before_the_profiles_shape(make: Make) -> None:
    fp8 = GOOD.having(quantization="fp8")
    subject = make({"models/made/config.json": json.dumps(AWQ)})
    assert ids(judged(subject, fp8), Severity.ERROR) == {"quantization-of-checkpoint"}
    listed = judged(replace(subject, tree=replace(subject.tree, layers=())), fp8)
    assert "quantization-of-checkpoint" in ids(listed, Severity.NOT_CHECKED)
    assert "config.json is no JSON object" in judged(make({"models/made/config.json": "{"}), fp8)[0].evidence


def test_a_variable_that_vllm_does_not_know(make: Make) -> None:
    (finding,) = judged(make(), GOOD.within(VLLM_ATTENTION_BACKENDS="FLASH_ATTN"))
    assert (finding.rule, finding.severity) == ("unknown-variable", Severity.ERROR)
    assert finding.mend == "did you mean VLLM_ATTENTION_BACKEND?"
    assert finding.source == "vllm/envs.py of the template"


def test_a_variable_of_the_unit_is_checked_too(make: Make) -> None:
    drop_in = {"etc/systemd/system/vllm.service.d/more.conf": '[Service]\nEnvironment="VLLM_NONSENSE=1" LANG=C\n'}
    (finding,) = judged(make(drop_in), GOOD)
    assert finding.evidence == "VLLM_NONSENSE=1"


def test_variables_are_told_from_a_list_where_vllms_own_cannot_be_read(make: Make) -> None:
    subject = make({f"{SITE}/vllm/envs.py": None})
    assert not judged(subject, GOOD.within(VLLM_SKIP_P2P_CHECK="1"))
    (finding,) = judged(subject, GOOD.within(VLLM_NONSENSE="1"))
    assert finding.source == "the variables of vLLM 0.10.2"


def test_variables_of_another_vllm_are_not_judged_by_that_list(make: Make) -> None:
    files = {
        f"{SITE}/vllm/envs.py": "",
        f"{SITE}/vllm-0.10.2.dist-info/METADATA": None,
        f"{SITE}/vllm-0.11.0.dist-info/METADATA": "",
    }
    (finding,) = judged(make(files), replace(GOOD, environment={**GOOD.environment, "VLLM_NEW": "1"}))
    assert (finding.rule, finding.severity) == ("unknown-variable", Severity.NOT_CHECKED)
    assert "VLLM_NEW" in finding.what


def test_a_dollar_of_the_unit(make: Make) -> None:
    drop_in = {"etc/systemd/system/vllm.service.d/cuda.conf": "[Service]\nEnvironment=PATH=/usr/local/cuda/bin:$PATH\n"}
    (finding,) = judged(make(drop_in), GOOD)
    assert (finding.rule, finding.evidence) == ("environment-dollar", "PATH=/usr/local/cuda/bin:$PATH")


def test_nothing_expands_a_dollar(make: Make) -> None:
    (finding,) = judged(make(), GOOD.within(PATH="/opt/bin:$PATH"))
    assert (finding.rule, finding.severity) == ("environment-dollar", Severity.ERROR)


@pytest.mark.parametrize(
    "profile", [replace(GOOD, gpus=2), GOOD.having(tensor_parallel_size=2), GOOD.having(pipeline_parallel_size=4)]
)
def test_parallel_sizes_take_the_profiles_cards(make: Make, profile: MadeProfile) -> None:
    assert "parallel-size" in ids(judged(make(), profile), Severity.ERROR)


def test_flashinfer_counts_only_on_the_profiles_path(make: Make) -> None:
    files = {"opt/flashinfer/flashinfer_python-0.3.1.dist-info/METADATA": ""}
    plain = GOOD.without("VLLM_USE_FLASHINFER_SAMPLER")
    assert not judged(make(files), plain)
    assert ids(judged(make(files), plain.within(PYTHONPATH="/opt/flashinfer"))) == {"flashinfer-sampler-no-nvcc"}


def test_a_version_that_only_the_profile_sees(make: Make) -> None:
    subject = make({"opt/old/flashinfer_python-0.1.5.dist-info/METADATA": ""})
    assert not judged(subject)
    assert not judged(subject, GOOD)
    (finding,) = judged(subject, GOOD.within(PYTHONPATH="/opt/old"))
    assert (finding.rule, finding.subject) == ("flashinfer-version", "profile made")


def test_a_file_that_is_only_listed_is_not_checked(make: Make) -> None:
    subject = make({"etc/environment": "PATH=/cuda:$PATH\n"})
    (finding,) = judged(replace(subject, tree=replace(subject.tree, layers=())))
    assert (finding.rule, finding.severity) == ("etc-environment-dollar", Severity.NOT_CHECKED)
    assert "only the list of files" in finding.evidence


def test_the_list_of_variables_is_that_of_the_data_files_version() -> None:
    assert rules.table("vllm-variables.toml")["Version"] == "0.10.2"
    assert "VLLM_USE_V1" in rules.table("vllm-variables.toml")["Names"]
