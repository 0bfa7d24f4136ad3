"""What is asked of the vLLM inside, and what its answers mean; the sandbox is a function here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from madetemplate import GOOD, LLAMA, SITE, MadeModel, MadeProfile, Make, ids

from builder.check import Finding, Severity, Subject, simulate
from builder.check.look import look, view
from builder.errors import BuilderError
from builder.progress import Silent
from builder.sandbox.spec import Spec
from builder.store import Store

ENGINE = {
    "v1": True,
    "dtype": "bfloat16",
    "quantization": "fp8",
    "kv_cache_dtype": "fp8",
    "block_size": 32,
    "attention": "TritonAttentionBackend",
    "runner": "generate",
    "max_model_len": 8192,
    "max_num_seqs": 64,
    "tensor_parallel_size": 1,
}
Answer = Callable[[Mapping[str, Any]], "Mapping[str, Any] | None"]


class SimulatedSandbox:
    """Stands for the sandbox: keeps what it was asked to run and writes `answer`'s line for each profile."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.specs: list[Spec] = []
        self.requests: list[dict[str, Any]] = []
        self.files: dict[str, Any] = {}

    def __call__(self, spec: Spec) -> None:
        given, results = (bind.source for bind in spec.binds)
        self.specs.append(spec)
        self.requests.append(json.loads((given / "request.json").read_text()))
        self.files |= {
            str(path.relative_to(given)): json.loads(path.read_text())
            for path in given.rglob("*")
            if path.suffix in (".json", ".yaml")
        }
        lines = [self.answer(profile) for profile in self.requests[-1]["profiles"]]
        results.write_text("".join(json.dumps(line) + "\n" for line in lines if line is not None))


def fine(profile: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"name": profile["name"], "engine": ENGINE, "log": ["INFO 01-01 [x.py:1] fine"]}


def decide(subject: Subject, tmp_path: Path, run: Callable[[Spec], None], *profiles: MadeProfile) -> list[Finding]:
    seen = look(subject)
    views = [view(seen, profile) for profile in profiles]
    decided = simulate.engines(views, Store(tmp_path / "store").scratch, Silent(), run)
    return [finding for one in decided for finding in one.findings]


def test_what_vllm_is_given(make: Make, tmp_path: Path) -> None:
    run = SimulatedSandbox(fine)
    profile = GOOD.having(kv_cache_dtype="fp8", block_size=32, enable_prefix_caching=False).within(
        VLLM_ATTENTION_BACKEND="TRITON_ATTN_VLLM_V1"
    )
    decide(make(), tmp_path, run, profile)
    (request,) = run.requests
    assert request["card"] == {"name": "GeForce RTX 5060 Ti", "capability": [12, 0], "memory_mib": 16311}
    (asked,) = request["profiles"]
    assert asked["gpus"] == 1
    assert asked["environment"]["VLLM_ATTENTION_BACKEND"] == "TRITON_ATTN_VLLM_V1"
    assert run.files["0.yaml"] == {
        "model": "/run/builder/check/model-0",
        "kv-cache-dtype": "fp8",
        "block-size": 32,
        "no-enable-prefix-caching": True,
        "gpu-memory-utilization": 0.9,
    }
    assert run.files["model-0/config.json"] == LLAMA
    (spec,) = run.specs
    assert spec.argv[0] == "/opt/vllm/bin/python"
    assert not spec.network
    assert spec.env["HF_HUB_OFFLINE"] == "1"
    assert spec.env["PATH"] == "/opt/vllm/bin:/usr/bin:/bin"


def test_a_good_answer_is_a_note_that_names_the_simulation(make: Make, tmp_path: Path) -> None:
    (finding,) = decide(make(), tmp_path, SimulatedSandbox(fine), GOOD)
    assert finding.severity is Severity.NOTE
    assert finding.subject == "profile made on the simulated card"
    assert "TritonAttentionBackend" in finding.what
    assert "simulated card (GeForce RTX 5060 Ti, 12.0, 16311 MiB); no kernel ran" in finding.source
    assert "shape from the profile's [Model] table" in finding.source


def test_the_templates_own_model_goes_before_the_profiles_shape(make: Make, tmp_path: Path) -> None:
    run = SimulatedSandbox(fine)
    (finding,) = decide(make({"models/made/config.json": "{}"}), tmp_path, run, GOOD)
    assert run.files["0.yaml"]["model"] == "/models/made"
    assert "shape from /models/made/config.json in the template" in finding.source


def test_the_old_engine_is_an_error_with_vllms_own_line(make: Make, tmp_path: Path) -> None:
    line = "WARNING 11-24 17:10:14 [arg_utils.py:1801] --kv-cache-dtype is not supported by the V1 Engine."

    def old(profile: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"name": profile["name"], "engine": {**ENGINE, "v1": False}, "log": [line]}

    (finding,) = decide(make(), tmp_path, SimulatedSandbox(old), GOOD)
    assert (finding.rule, finding.severity) == ("engine-v0", Severity.ERROR)
    assert finding.evidence == "--kv-cache-dtype is not supported by the V1 Engine."


@pytest.mark.parametrize(
    ("error", "log", "seen"),
    [
        (
            {"type": "exit", "text": "status 2"},
            ["usage: x", "vllm serve: error: argument --dtype: bad"],
            "argument --dtype: bad",
        ),
        ({"type": "exit", "text": "vllm serve ends with status 2"}, [], "vllm serve ends with status 2"),
        ({"type": "ValidationError", "text": "1 error\n  does not match"}, [], "1 error does not match"),
    ],
)
def test_a_refusal_is_an_error_with_its_reason(
    make: Make, tmp_path: Path, error: Mapping[str, str], log: list[str], seen: str
) -> None:
    run = SimulatedSandbox(lambda profile: {"name": profile["name"], "error": error, "log": log})
    (finding,) = decide(make(), tmp_path, run, GOOD)
    assert (finding.rule, finding.severity) == ("engine-refused", Severity.ERROR)
    assert seen in finding.evidence


def test_vllms_warnings_are_told_but_for_those_that_say_nothing(make: Make, tmp_path: Path) -> None:
    log = [
        "WARNING 11-24 17:10:15 [_ipex_ops.py:16] Import error msg: No module named 'intel_extension_for_pytorch'",
        "WARNING 11-24 17:10:15 [config.py:1] awq quantization is not fully optimized yet.",
    ]
    run = SimulatedSandbox(lambda profile: {**fine(profile), "log": log})
    found = decide(make(), tmp_path, run, GOOD)
    assert [finding.evidence for finding in found if finding.severity is Severity.WARNING] == [
        "awq quantization is not fully optimized yet."
    ]


def test_a_profile_on_the_cpu_is_no_simulation(make: Make, tmp_path: Path) -> None:
    run = SimulatedSandbox(fine)
    (finding,) = decide(make(), tmp_path, run, replace(GOOD, gpus=0))
    assert run.requests[0]["card"] is None
    assert "gpu-memory-utilization" not in run.files["0.yaml"]
    assert "simulated" not in finding.subject + finding.source


def test_profiles_share_a_process_where_python_finds_the_same(make: Make, tmp_path: Path) -> None:
    run = SimulatedSandbox(fine)
    other = replace(GOOD, name="other").within(PYTHONPATH="/opt/flashinfer")
    decide(make(), tmp_path, run, GOOD, replace(GOOD, name="same"), other, replace(GOOD, name="cpu", gpus=0))
    assert [[profile["name"] for profile in request["profiles"]] for request in run.requests] == [
        ["made", "same"],
        ["other"],
        ["cpu"],
    ]
    assert [spec.env.get("PYTHONPATH") for spec in run.specs] == [None, "/opt/flashinfer", None]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda subject: replace(subject, target=None), "no [Target] is known"),
        (lambda subject: replace(subject, venv="/opt/other"), "no vLLM in /opt/other"),
        (lambda subject: replace(subject, tree=replace(subject.tree, layers=())), "only the list of files"),
    ],
)
def test_what_cannot_be_decided_is_not_checked(
    make: Make, tmp_path: Path, change: Callable[[Subject], Subject], reason: str
) -> None:
    run = SimulatedSandbox(fine)
    (finding,) = decide(change(make()), tmp_path, run, GOOD)
    assert finding.severity is Severity.NOT_CHECKED
    assert reason in finding.evidence
    assert not run.specs


def test_a_model_of_unknown_shape_is_not_checked(make: Make, tmp_path: Path) -> None:
    (finding,) = decide(make(), tmp_path, SimulatedSandbox(fine), replace(GOOD, model=MadeModel(shape={})))
    assert (finding.severity, "shape is not known" in finding.evidence) == (Severity.NOT_CHECKED, True)


def test_a_process_that_died_is_not_checked(make: Make, tmp_path: Path) -> None:
    run = SimulatedSandbox(lambda profile: None if profile["name"] == "made" else fine(profile))
    found = decide(make(), tmp_path, run, GOOD, replace(GOOD, name="other"))
    assert ids(found, Severity.NOT_CHECKED) == ids(found, Severity.NOTE) == {"engine"}


def test_a_line_that_was_cut_off_is_not_checked(make: Make, tmp_path: Path) -> None:
    def run(spec: Spec) -> None:
        results = spec.binds[1].source
        results.write_text(json.dumps(fine({"name": "other"})) + '\n{"name": "made", "eng')

    found = decide(make(), tmp_path, run, GOOD, replace(GOOD, name="other"))
    assert {finding.subject for finding in found if finding.severity is Severity.NOT_CHECKED} == {
        "profile made on the simulated card"
    }


def test_what_another_vllm_refuses_may_be_the_simulations_doing(make: Make, tmp_path: Path) -> None:
    files = {f"{SITE}/vllm-0.10.2.dist-info/METADATA": None, f"{SITE}/vllm-0.14.1.dist-info/METADATA": ""}
    error = {"type": "AttributeError", "text": "no attribute 'VLLM_USE_V1'"}
    run = SimulatedSandbox(lambda profile: {"name": profile["name"], "error": error, "log": []})
    (finding,) = decide(make(files), tmp_path, run, GOOD)
    assert finding.severity is Severity.NOT_CHECKED
    assert "was tried with vLLM >=0.10,<0.11 alone" in finding.evidence


def test_a_sandbox_that_does_not_start_is_not_checked(make: Make, tmp_path: Path) -> None:
    def run(spec: Spec) -> None:
        raise BuilderError("cannot mount", where="stage check")

    (finding,) = decide(make(), tmp_path, run, GOOD)
    assert (finding.severity, finding.evidence) == (Severity.NOT_CHECKED, "stage check: cannot mount")
