"""`builder check` on real templates: a small one, and the one that serves."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import HOUSE, Measure, User
from project import STORE, Project, project

from builder import check as checking
from builder import tree
from builder.deploy.profile import names
from builder.store import Store

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

COPIED = """\
[Profile]
Description = "what is commonly copied"
[Model]
Path = "/models/copied"
[Model.Shape]
architectures = ["LlamaForCausalLM"]
model_type = "llama"
hidden_size = 3072
intermediate_size = 8192
num_hidden_layers = 28
num_attention_heads = 24
num_key_value_heads = 8
vocab_size = 128256
max_position_embeddings = 131072
torch_dtype = "bfloat16"
[Options]
served-model-name = "copied"
gpu-memory-utilization = 0.90
quantization = "fp8"
kv-cache-dtype = "fp8"
block-size = 16
max-num-seqs = 1
trust-remote-code = true
"""
ENVIRONMENT = """
[Environment]
VLLM_BLOCK_SIZE = "16"
VLLM_NUM_GPUS = "2"
VLLM_KV_CACHE_DTYPE = "fp8"
"""


@pytest.fixture
def real(root_user: User) -> Project:
    """The project itself with this machine's store."""
    return Project(HOUSE, User(**{**vars(root_user), "env": {**root_user.env, "BUILDER_STORE": str(STORE)}}))


@pytest.fixture
def template(real: Project) -> Path:
    """The real template, built if it was not."""
    return Path(real.json("template", "recipes/vllm-blackwell")["path"])


@pytest.mark.full
def test_every_profile_passes_on_the_real_template(real: Project, template: Path, measure: Measure) -> None:
    Path("/proc/sys/vm/drop_caches").write_text("3")
    started = time.monotonic()
    found = real.json("check", str(template))
    seconds = round(time.monotonic() - started, 1)
    measure("check of every profile, cold page cache", {"seconds": seconds})
    profiles = names(HOUSE / "recipes" / "vllm-blackwell")
    assert found["profiles"] == list(profiles)
    assert found["counts"]["error"] == 0
    engines = {row["subject"]: row for row in found["findings"] if row["rule"] == "engine"}
    assert set(engines) == {f"profile {name} on the simulated card" for name in profiles}
    assert all(row["what"].startswith("V1 engine") for row in engines.values())
    assert all("simulated card" in row["source"] for row in engines.values())
    assert "TritonAttentionBackend" in engines["profile fp8 on the simulated card"]["what"]
    assert "awq_marlin" in engines["profile awq on the simulated card"]["evidence"]
    assert seconds < 90


@pytest.mark.full
def test_what_is_commonly_copied_is_refused_by_rules_and_by_vllm(real: Project, template: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipes" / "vllm-blackwell"
    shutil.copytree(HOUSE / "recipes", tmp_path / "recipes")
    shutil.rmtree(recipe / "profiles")
    (recipe / "profiles").mkdir()
    (recipe / "profiles" / "copied.toml").write_text(COPIED + ENVIRONMENT)
    (recipe / "profiles" / "float8.toml").write_text(COPIED + 'dtype = "float8"\n')
    (recipe / "profiles" / "flashinfer.toml").write_text(
        COPIED + '[Environment]\nVLLM_ATTENTION_BACKEND = "FLASHINFER"\n'
    )
    done = real.builder("check", str(template), "--recipe", str(recipe), "--together", "--json")
    assert done.returncode == 1, done.stderr.decode()
    found = json.loads(done.stdout)["findings"]
    errors = {(row["subject"], row["rule"]) for row in found if row["severity"] == "error"}
    assert {
        ("profile copied", "kv-cache-fp8-backend"),
        ("profile copied", "kv-cache-fp8-small-blocks"),
        ("profile copied", "variable-block-size"),
        ("profile copied", "variable-num-gpus"),
        ("profile copied", "variable-kv-cache-dtype"),
        ("profile copied on the simulated card", "engine-v0"),
        ("profile float8", "dtype"),
        ("profile float8 on the simulated card", "engine-refused"),
        ("profile flashinfer", "flashinfer-missing"),
        ("profile flashinfer on the simulated card", "engine-refused"),
        ("3 profiles on 2 cards", "card-budget"),
    } <= errors
    warnings = {row["rule"] for row in found if row["severity"] == "warning"}
    assert {"max-num-seqs-one", "trust-remote-code", "driver-cache"} <= warnings
    reasons = {row["subject"]: row["evidence"] for row in found if row["rule"] == "engine-refused"}
    assert "invalid choice: 'float8'" in reasons["profile float8 on the simulated card"]


@pytest.mark.full
def test_what_is_commonly_installed_into_the_real_template(template: Path, tmp_path: Path) -> None:
    site = "opt/vllm/lib/python3.11/site-packages"
    for package in ("flashinfer-0.1.5+cu124torch2.4", "torch-2.10.0.dev20251001+cu128", "transformers-5.23.0"):
        (tmp_path / site / f"{package}.dist-info").mkdir(parents=True)
        (tmp_path / site / f"{package}.dist-info" / "METADATA").write_text("")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "environment").write_text("PATH=/usr/local/cuda-12.8/bin:$PATH\n")
    added = {entry.path: entry for entry in tree.scan(tmp_path).entries}
    with checking.of_template(template, None, Store(STORE)) as subject:
        below = subject.tree
        whole = replace(below, entries={**below.entries, **added}, layers=(*below.layers, tmp_path))
        found = checking.run(replace(subject, tree=whole))
    errors = {finding.rule: finding.evidence for finding in found if finding.severity is checking.Severity.ERROR}
    assert errors.keys() == {"flashinfer-version", "package-twice", "etc-environment-dollar"}
    twice = [finding.what for finding in found if finding.rule == "package-twice"]
    assert [what.partition(" is")[0] for what in twice] == ["torch", "transformers"]
    assert errors["etc-environment-dollar"] == "/etc/environment: PATH=/usr/local/cuda-12.8/bin:$PATH"


def test_a_small_template_by_its_layers_and_packed(user: User, tiny: Callable[[User], Path]) -> None:
    here = project(user, Path(tempfile.mkdtemp(dir=user.home)), "tiny", store=tiny(user))
    template = here.json("template", "recipes/tiny")["path"]
    made = here.json("check", "recipes/tiny")
    packed = here.json("check", template)
    alone = here.with_env(BUILDER_STORE=str(here.folder / "empty")).json("check", template)
    assert made["findings"] == packed["findings"] == alone["findings"]
    assert not made["counts"]["error"]
    assert {row["rule"] for row in made["findings"]} == {"vllm", "packed-file", "hygiene-elsewhere", "proxmox-start"}
