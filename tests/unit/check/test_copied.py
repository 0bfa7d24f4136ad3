"""The configuration that is commonly copied, item by item: what `builder check` prints of each, and what instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest
from madetemplate import GOOD, LLAMA, SETTINGS, SITE, MadeModel, MadeProfile, Make

from builder import check as checking
from builder.commands.check import show

TORCH = f"{SITE}/torch-2.8.0.dist-info/METADATA"
TRANSFORMERS = f"{SITE}/transformers-4.56.2.dist-info/METADATA"


@dataclass(frozen=True)
class Item:
    """One thing that is copied, and the lines that must be printed of it."""

    lines: tuple[str, str, str]  # what, seen, instead: how they begin
    profile: MadeProfile = GOOD
    files: Mapping[str, str | None] = field(default_factory=dict)


def variable(name: str, value: str, instead: str) -> Item:
    what = "error  profile made: vLLM has no such variable, and ignores it without a word"
    return Item((what, f"seen: {name}={value}", f"instead: {instead}"), GOOD.within(**{name: value}))


ITEMS = {
    "dtype float8": Item(
        (
            "error  profile made: vLLM has no such data type, and ends at once",
            "seen: dtype = float8",
            'instead: dtype = "auto"; FP8 is quantization = "fp8" (weights) and kv-cache-dtype = "fp8" (KV cache)',
        ),
        GOOD.having(dtype="float8"),
    ),
    "VLLM_BLOCK_SIZE": variable("VLLM_BLOCK_SIZE", "16", "block-size among the options"),
    "VLLM_NUM_GPUS": variable("VLLM_NUM_GPUS", "2", "tensor-parallel-size among the options"),
    "VLLM_KV_CACHE_DTYPE": variable("VLLM_KV_CACHE_DTYPE", "fp8", "kv-cache-dtype among the options"),
    "an FP8 KV cache without a backend": Item(
        (
            "error  profile made: vLLM falls back to its V0 engine with XFormers, which fails on this card",
            "seen: vllm 0.10.2, kv-cache-dtype = fp8, VLLM_ATTENTION_BACKEND is not set",
            'instead: VLLM_ATTENTION_BACKEND = "TRITON_ATTN_VLLM_V1" and block-size = 32',
        ),
        GOOD.having(quantization="fp8", kv_cache_dtype="fp8"),
    ),
    "blocks of 16": Item(
        (
            "error  profile made: blocks too small for the backend that an FP8 KV cache needs here",
            "seen: kv-cache-dtype = fp8, VLLM_ATTENTION_BACKEND is not set, block-size = 16",
            'instead: block-size = 32, and VLLM_ATTENTION_BACKEND = "TRITON_ATTN_VLLM_V1"',
        ),
        GOOD.having(kv_cache_dtype="fp8", block_size=16),
    ),
    "blocks of 16, the backend right": Item(
        (
            "error  profile made: the server comes up, and its first completion kills the engine",
            "seen: kv-cache-dtype = fp8, VLLM_ATTENTION_BACKEND=TRITON_ATTN_VLLM_V1, block-size = 16",
            "instead: block-size = 32",
        ),
        GOOD.having(kv_cache_dtype="fp8", block_size=16).within(VLLM_ATTENTION_BACKEND="TRITON_ATTN_VLLM_V1"),
    ),
    "one sequence at a time": Item(
        (
            "warning  profile made: serves one request at a time: no batching",
            "seen: max-num-seqs = 1",
            "instead: leave it out (128 or 256 by default), or 32 to 128",
        ),
        GOOD.having(max_num_seqs=1),
    ),
    "trust_remote_code": Item(
        (
            "warning  profile made: runs whatever Python the model's repository holds",
            "seen: trust-remote-code = true",
            "instead: leave it out: Llama, Qwen2 and ModernBERT are part of vLLM",
        ),
        GOOD.having(trust_remote_code=True),
    ),
    "FlashInfer 0.1.5": Item(
        (
            "error  template: this FlashInfer lacks what vLLM 0.10.2 imports",
            "seen: vllm 0.10.2, flashinfer-python 0.1.5+cu124torch2.4",
            "instead: flashinfer-python 0.3.0 or 0.3.1",
        ),
        files={f"{SITE}/flashinfer-0.1.5+cu124torch2.4.dist-info/METADATA": ""},  # its name before 0.2
    ),
    "FlashInfer 0.1.5 in a folder of its own": Item(
        (
            "error  profile made: this FlashInfer lacks what vLLM 0.10.2 imports",
            "seen: vllm 0.10.2, flashinfer-python 0.1.5",
            "instead: flashinfer-python 0.3.0 or 0.3.1",
        ),
        GOOD.within(PYTHONPATH="/opt/flashinfer"),
        {"opt/flashinfer/flashinfer-0.1.5.dist-info/METADATA": ""},
    ),
    "a nightly torch": Item(
        (
            "error  template: torch is 2.10.0.dev20251001+cu128; vLLM 0.10.2 was built against ==2.8.0",
            f"seen: /{SITE}/torch-2.10.0.dev20251001+cu128.dist-info",
            'instead: Requirements = ["vllm==0.10.2"] alone',
        ),
        files={TORCH: None, f"{SITE}/torch-2.10.0.dev20251001+cu128.dist-info/METADATA": ""},
    ),
    "a nightly torch before the other": Item(
        (
            "error  profile made: torch is 2.10.0.dev20251001+cu128; vLLM 0.10.2 was built against ==2.8.0",
            "seen: /opt/nightly/torch-2.10.0.dev20251001+cu128.dist-info",
            'instead: Requirements = ["vllm==0.10.2"] alone',
        ),
        GOOD.within(PYTHONPATH="/opt/nightly"),
        {"opt/nightly/torch-2.10.0.dev20251001+cu128.dist-info/METADATA": ""},
    ),
    "a nightly torch over the other": Item(
        (
            "error  template: torch is installed twice, 2.10.0.dev20251001+cu128 and 2.8.0: which one counts is chance",
            f"seen: /{SITE}",
            'instead: Requirements = ["vllm==0.10.2"] alone',
        ),
        files={f"{SITE}/torch-2.10.0.dev20251001+cu128.dist-info/METADATA": ""},
    ),
    "transformers 5": Item(
        (
            "error  template: transformers 5 lacks all_special_tokens_extended: vLLM fails to load any tokenizer",
            "seen: vllm 0.10.2, transformers 5.23.0",
            "instead: transformers before 5",
        ),
        files={TRANSFORMERS: None, f"{SITE}/transformers-5.23.0.dist-info/METADATA": ""},
    ),
    "$PATH in /etc/environment": Item(
        (
            "error  template: pam_env expands no $: every login, su and cron job gets that text as its PATH",
            "seen: /etc/environment: PATH=/usr/local/cuda-12.8/bin:$PATH",
            "instead: /etc/profile.d/*.sh for shells, Environment= in the unit, /etc/ld.so.conf.d for libraries",
        ),
        files={"etc/environment": "LANG=C.UTF-8\nPATH=/usr/local/cuda-12.8/bin:$PATH\n"},
    ),
}


@pytest.mark.parametrize("name", ITEMS)
def test_each_item_is_told_with_what_to_write_instead(
    make: Make, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    item = ITEMS[name]
    subject = make(item.files)
    show(subject, [item.profile], checking.run(subject, [item.profile]))
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    at = next((place for place, line in enumerate(lines) if line.startswith(item.lines[0])), None)
    assert at is not None, lines
    assert lines[at + 1].startswith(item.lines[1])
    assert lines[at + 2].startswith(item.lines[2])
    assert len(lines[at + 2]) > len("instead:")


def test_three_servers_at_nine_tenths_of_one_card(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    servers = [replace(GOOD, name=name) for name in ("fp8", "awq", "embed")]
    subject = make()
    assert subject.target is not None
    one_card = replace(subject, target=replace(subject.target, devices=1))
    show(one_card, servers, checking.run(one_card, servers, together=True))
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    at = lines.index("error  3 profiles on 1 card: do not fit: of each card 0.92 may be promised [card-budget]")
    assert lines[at + 1] == "seen: fp8 1 x 0.90, awq 1 x 0.90, embed 1 x 0.90"
    assert lines[at + 2] == "instead: lower their shares, or run fewer at a time"


def test_all_of_it_at_once(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """No item hides another."""
    files: dict[str, str | None] = {}
    options, environment = dict(GOOD.options), dict(SETTINGS)
    apart = ("a nightly torch over the other", "blocks of 16, the backend right")
    items = [item for name, item in ITEMS.items() if name not in apart and "PYTHONPATH" not in item.profile.environment]
    for item in items:
        files |= item.files
        options |= item.profile.options
        environment |= item.profile.environment
    profile = MadeProfile(model=MadeModel(shape=LLAMA), options=options, environment=environment)
    subject = make(files)
    found = checking.run(subject, [profile])
    show(subject, [profile], found)
    said = capsys.readouterr().out
    assert checking.worst(found)
    bad = [finding for finding in found if finding.severity in (checking.Severity.ERROR, checking.Severity.WARNING)]
    assert [finding for finding in bad if not (finding.evidence and finding.mend and finding.source)] == []
    assert [item.lines[0] for item in items if item.lines[0] not in said] == []
