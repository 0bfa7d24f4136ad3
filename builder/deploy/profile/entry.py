"""A profile made of the vLLM keys of an entry of phoenix_lxc_configs.json, all its generations.

The same thing is often said in several places of an entry. What vLLM was started with there decides: the later shape's
vllm_engine_config, then vllm_args, then the flat keys, then vllm_parameters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from builder.deploy.profile.load import shared_environment
from builder.deploy.profile.model import Model, Profile, Value
from builder.deploy.profile.settings import option_wrong

TOLD = "told"
CONTRADICTION = "contradiction"
REFUSED = "refused"


@dataclass(frozen=True)
class Told:
    """One thing to be known about how a profile was made."""

    severity: str  # "told": changed, and why; "contradiction": a rule decided; "refused": a value is left out
    text: str  # one printable line


@dataclass(frozen=True)
class _Source:
    """One place of an entry that sets options."""

    title: str
    options: Mapping[str, Any]  # by vLLM's own names


@dataclass
class _Draft:
    """A profile in the making."""

    options: dict[str, Value]
    environment: dict[str, str]
    findings: list[Told] = field(default_factory=list)

    def tell(self, text: str, severity: str = TOLD) -> None:
        self.findings.append(Told(severity, text))


_FLAT = {
    "vllm_model": "model",
    "vllm_served_model_name": "served-model-name",
    "vllm_port": "port",
    "vllm_quantization": "quantization",
    "vllm_max_model_len": "max-model-len",
    "vllm_gpu_memory_utilization": "gpu-memory-utilization",
    "vllm_tensor_parallel_size": "tensor-parallel-size",
    "vllm_trust_remote_code": "trust-remote-code",
    "vllm_dtype": "dtype",
    "vllm_kv_cache_dtype": "kv-cache-dtype",
    "vllm_max_num_seqs": "max-num-seqs",
    "vllm_max_num_batched_tokens": "max-num-batched-tokens",
}
_OTHER = ("vllm_args", "vllm_parameters", "vllm_engine_config", "vllm_model_type")
_SHORT = {"-tp": "tensor-parallel-size", "-pp": "pipeline-parallel-size", "-q": "quantization"}
_TEXTS = ("model", "served-model-name")
_DTYPES = ("auto", "half", "float16", "bfloat16", "float", "float32")
_FP8 = ("fp8", "fp8_e4m3", "fp8_e5m2")
_SECRET = re.compile(r"(key|token|secret|password)$")
_DEFAULT_SHARE = 0.9


def from_entry(
    entry: Mapping[str, Any], name: str, recipe_dir: Path | None = None
) -> tuple[Profile, tuple[Told, ...]] | None:
    """The profile that an entry's own keys describe, and what is to be said of it; None when it serves no model.

    The service's environment is that of the recipe's profiles/common.toml. Values that differ are told with both and
    the rule that decides; so is what vLLM 0.10.2 does not take on these cards, or serves badly, and what became of it.
    """
    draft = _Draft({}, dict(shared_environment(recipe_dir)) if recipe_dir else {})
    draft.options = _decided(draft, tuple(_sources(draft, entry)))
    model = draft.options.pop("model", None)
    if not isinstance(model, str) or model in ("", "none"):
        return None
    _tell_unused(draft, entry)
    _mend_task(draft, entry)
    _mend_values(draft, model)
    gpus = _cards(draft, entry)
    share = draft.options.pop("gpu-memory-utilization", None)
    if share is None and gpus:
        draft.tell(f"gpu_memory_utilization is not said: vLLM's own default, {_DEFAULT_SHARE}")
    served, port = draft.options.pop("served-model-name", model), draft.options.pop("port", Profile.port)
    profile = Profile(
        name=name,
        description=f"made of the vllm keys of container {name}",
        model=_model(model, entry),
        served_name=str(served),
        task="embedding" if draft.options.get("runner") == "pooling" else "completion",
        gpus=gpus,
        share=float(share or _DEFAULT_SHARE) if gpus else 0.0,
        options=draft.options,
        environment=draft.environment,
        port=int(port),
        source=f"the vllm keys of container {name}",
    )
    return profile, tuple(draft.findings)


def _sources(draft: _Draft, entry: Mapping[str, Any]) -> Iterator[_Source]:
    """Where the entry sets options, what decides first."""
    nested = entry.get("vllm_engine_config")
    for section, values in nested.items() if isinstance(nested, dict) else ():
        if isinstance(values, dict):
            title = f"vllm_engine_config.{_shown(section)}"
            yield _Source(title, {_kebab(key): value for key, value in values.items()})
    arguments = entry.get("vllm_args")
    if isinstance(arguments, list):
        yield _Source("vllm_args", dict(_arguments(draft, arguments)))
    yield _Source("the flat keys", {option: entry[key] for key, option in _FLAT.items() if key in entry})
    parameters = entry.get("vllm_parameters")
    if isinstance(parameters, dict):
        yield _Source("vllm_parameters", {_kebab(key): value for key, value in parameters.items()})


def _arguments(draft: _Draft, items: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Options from a list of arguments; a flag without a value is true."""
    at = 0
    while at < len(items):
        word = str(items[at])
        at += 1
        flag, equals, value = word.partition("=")
        option = _SHORT.get(flag) or (_kebab(flag) if flag.startswith("--") else None)
        if option is None:
            draft.tell(f"vllm_args: {_shown(word)} is no option that is known here, and left out", REFUSED)
        elif equals:
            yield option, value
        elif at < len(items) and not re.match(r"-[A-Za-z-]", str(items[at])):
            yield option, items[at]
            at += 1
        else:
            yield option, True


def _decided(draft: _Draft, sources: Sequence[_Source]) -> dict[str, Value]:
    """Each option once: the first source that has it decides, and others that differ are told."""
    found: dict[str, Value] = {}
    origin: dict[str, str] = {}
    for source in sources:
        for option, raw in source.options.items():
            if _SECRET.search(option):
                draft.tell(f"{option} in {source.title} is a secret, and left out: give --api-key-file", REFUSED)
                continue
            value = _value(option, raw)
            if value is None or (option == "quantization" and value == "none"):
                continue
            wrong = None if option in ("model", "served-model-name", "host") else option_wrong(option, value)
            if wrong:
                draft.tell(f"{_shown(option)} in {source.title} is {_shown(raw)}, left out: it {wrong}", REFUSED)
            elif option not in found:
                found[option], origin[option] = value, source.title
            elif found[option] != value:
                both = f"{_shown(found[option])} in {origin[option]} and {_shown(value)} in {source.title}"
                draft.tell(f"{option} is {both}: {origin[option]} decides", CONTRADICTION)
    return found


def _value(option: str, raw: Any) -> Any:
    """A value as its type: numbers in text are numbers. None means not given."""
    if raw is None or raw == "":
        return None
    if option in _TEXTS:
        return str(raw)
    if isinstance(raw, str):
        text = raw.strip()
        if re.fullmatch(r"[+-]?[0-9]{1,18}", text):
            return int(text)
        if re.fullmatch(r"[+-]?[0-9]*\.[0-9]+([eE][+-]?[0-9]+)?", text):
            return float(text)
        return text
    return raw


def _tell_unused(draft: _Draft, entry: Mapping[str, Any]) -> None:
    unused = [_shown(key) for key in entry if key.startswith("vllm_") and key not in (*_FLAT, *_OTHER)]
    if unused:
        draft.tell(f"not used: {', '.join(unused)}")


def _mend_task(draft: _Draft, entry: Mapping[str, Any]) -> None:
    """`runner` says what is served; `task` is its older form, and the entry has a key of its own."""
    options = draft.options
    kind = entry.get("vllm_model_type")
    task = options.pop("task", None)
    if kind in ("embedding", "embed") or task in ("embed", "embedding"):
        options["runner"] = "pooling"
    elif kind not in (None, "chat", "completion", "generate"):
        draft.tell(f"vllm_model_type is {_shown(kind)}: taken as completion", REFUSED)
    if options.get("runner") != "pooling":
        return
    for option in ("quantization", "kv-cache-dtype"):
        if options.get(option) in _FP8:
            draft.tell(
                f"{option} {_shown(options.pop(option))} is left out: an embedding model has no FP8 form in vLLM"
            )


def _mend_values(draft: _Draft, model: str) -> None:
    """What vLLM 0.10.2 refuses or serves badly, by what works instead."""
    options = draft.options
    dtype = options.get("dtype", "auto")
    if dtype not in _DTYPES:
        draft.tell(
            f"dtype {_shown(options.pop('dtype'))} is left out, so auto: vLLM takes {', '.join(_DTYPES)}; FP8 is "
            "quantization fp8 (weights) and kv-cache-dtype fp8"
        )
    if options.pop("trust-remote-code", None) not in (None, False):
        draft.tell("trust_remote_code is left out: it runs whatever Python the model's repository holds")
    if options.get("quantization") == "awq":
        del options["quantization"]
        draft.tell("quantization 'awq' is left out: it forces slow kernels; without it vLLM takes awq_marlin")
    if options.get("quantization") == "fp8" and "awq" in model.lower():
        del options["quantization"]
        draft.tell(f"quantization is 'fp8', and {_shown(model)} is an AWQ model: the model decides", CONTRADICTION)
    if options.get("max-num-seqs") == 1:
        draft.tell("max_num_seqs 1 is kept, and serves one request at a time: leave it out, or take 32 to 128")
    if options.get("kv-cache-dtype") in _FP8:
        _serve_fp8_cache(draft)
    if "host" in options:
        host = options.pop("host")
        draft.tell(
            f"host {_shown(host)} is left out: it listens on the container's own address, unless --listen is given"
        )


def _serve_fp8_cache(draft: _Draft) -> None:
    """An FP8 KV cache wants a backend that can read it, and that one blocks of 32."""
    if "VLLM_ATTENTION_BACKEND" not in draft.environment:
        draft.environment["VLLM_ATTENTION_BACKEND"] = "TRITON_ATTN_VLLM_V1"
        draft.tell(
            "kv_cache_dtype fp8 gets VLLM_ATTENTION_BACKEND=TRITON_ATTN_VLLM_V1: without it vLLM fails on these cards"
        )
    size = draft.options.get("block-size", 16)
    if isinstance(size, int) and size < 32:
        draft.options["block-size"] = 32
        draft.tell(f"block_size is 32 instead of {size}: with an FP8 KV cache the first completion kills the engine")


def _cards(draft: _Draft, entry: Mapping[str, Any]) -> int:
    """How many cards it takes; the number that the entry gives the container is a limit."""
    assigned = entry.get("gpu_assignment")
    indices = set(re.findall(r"[0-9]+", str(assigned)))
    wanted = draft.options.get("tensor-parallel-size", 1)
    count = wanted if isinstance(wanted, int) else 1
    if assigned is None:
        return count
    if count > max(len(indices), 1):
        limit = max(len(indices), 1)
        draft.options["tensor-parallel-size"] = limit
        what = f"gpu_assignment {_shown(assigned)} and tensor_parallel_size {count}: gpu_assignment decides, so {limit}"
        draft.tell(what, CONTRADICTION)
        count = limit
    if not indices:
        draft.tell(f"gpu_assignment is {_shown(assigned)}: it serves on the CPU")
        return 0
    if len(indices) > count:
        draft.tell(f"gpu_assignment {_shown(assigned)}: only {count} of its {len(indices)} cards are used")
    return count


def _model(name: str, entry: Mapping[str, Any]) -> Model:
    """A repository's model lies where the entry mounts models; a path is where it says."""
    if name.startswith("/"):
        return Model(repository="", revision=None, path=name.rstrip("/"))
    return Model(repository=name, revision=None, path=f"{_mount(entry)}/{PurePosixPath(name).name}")


def _mount(entry: Mapping[str, Any]) -> str:
    for key, inner in (("mount_points", "container_path"), ("zfs_volumes", "mount_point"), ("volumes", "mount_point")):
        mounts = entry.get(key)
        for mount in mounts if isinstance(mounts, list) else ():
            target = mount.get(inner) if isinstance(mount, dict) else None
            if isinstance(target, str) and "model" in target and re.fullmatch(r"(/[\w.-]+)+/?", target):
                return target.rstrip("/")
    return "/models"


def _kebab(name: object) -> str:
    return str(name).strip().lstrip("-").replace("_", "-").lower()


def _shown(value: object) -> str:
    """A value of the file on one line: printable ASCII, not endless."""
    text = f"{value!a}"
    return text if len(text) <= 80 else f"{text[:77]}..."
