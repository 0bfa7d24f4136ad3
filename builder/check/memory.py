"""Weights and KV cache against a card's memory, reckoned from the model's shape: an estimate, with its arithmetic.

Counted are the matrices of a decoder or encoder whose layers are attention and a gated MLP; norms and biases are less
than a hundredth of them. Activations and CUDA graphs are not counted, so there is never more room than is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from builder.check.look import UnseenError, View
from builder.check.model import Finding, Severity
from builder.check.rules import unseen

_GATED = ("llama", "mistral", "qwen2", "qwen3", "phi3", "gemma", "gemma2", "granite", "modernbert", "olmo2", "smollm3")
"""Values of model_type whose layers are as counted."""

_ENCODERS = ("modernbert",)
_TIED = ("gemma", "gemma2")  # where config.json does not say otherwise
_BYTES = {"half": 2, "float16": 2, "bfloat16": 2, "float": 4, "float32": 4}
_FP8_CACHE = ("fp8", "fp8_e4m3", "fp8_e5m2")
_NO_WINDOW = ("qwen2", "qwen3")  # their sliding_window counts only with use_sliding_window
_SOURCE = "builder/check/memory.py; vllm/v1/core/kv_cache_utils.py and layers/quantization/fp8.py 0.10.2"
_MIB = 1 << 20
_GIB = 1 << 30


@dataclass(frozen=True)
class Need:
    """What a profile takes of each of its cards, in bytes."""

    linear: float  # parameters of layers
    other: float  # parameters of embedding and output layer
    linear_bytes: float  # of one parameter
    plain_bytes: int  # of one that is not quantized
    is_made_while_loading: bool  # quantized by vLLM from a checkpoint that is not
    cards: int  # that share one copy
    token: float  # bytes of KV cache of a token, on one card; 0 for a model without
    offloaded: float  # bytes of weights of a card that stay in the host's memory

    @property
    def weights(self) -> float:
        return max(0.0, (self.linear * self.linear_bytes + self.other * self.plain_bytes) / self.cards - self.offloaded)

    @property
    def loading(self) -> float:
        """The most that weights take at any time: those to be quantized lie on the card as they are first."""
        if not self.is_made_while_loading:
            return self.weights
        return max(0.0, (self.linear + self.other) * self.plain_bytes / self.cards - self.offloaded)


def fits(view: View) -> Iterator[Finding]:
    """Whether a profile's weights and one request of the longest length fit its share of the target's card."""
    profile, target, subject = view.profile, view.look.subject.target, f"profile {view.profile.name}"
    if not profile.gpus:
        return
    what = "whether weights and KV cache fit the card"
    if target is None:
        yield unseen("card-memory", subject, what, "no [Target] is known")
        return
    try:
        need = _need(view)
    except UnseenError as error:
        yield unseen("card-memory", subject, what, str(error))
        return
    memory = target.memory_mib * _MIB
    share = memory * profile.share
    shown = f"{_weights(need)}; its share {profile.share:.2f} x {target.memory_mib} MiB = {_gib(share)}"
    mend = "a smaller or quantized model, or more cards with tensor-parallel-size"
    if need.weights > share:
        says = f"the weights alone take {_gib(need.weights)} of each card, more than its share"
        yield Finding("card-memory", Severity.ERROR, subject, says, shown, mend, _SOURCE)
        return
    if need.loading > memory:
        says = f"while it is quantized it takes {_gib(need.loading)} of each card, more than there is"
        yield Finding(
            "card-memory", Severity.ERROR, subject, says, shown, f"a checkpoint of that form, or {mend}", _SOURCE
        )
        return
    if not need.token:
        says = f"the weights take {_gib(need.weights)} of each card; there is no KV cache"
        yield Finding("card-memory", Severity.NOTE, subject, says, shown, "", _SOURCE)
        return
    tokens = int((share - need.weights) / need.token)
    shown += f"; {need.token / 1024:g} KiB of KV cache a token"
    try:
        longest = _longest(view)
    except UnseenError as error:
        longest = 0
        yield unseen("card-memory", subject, "whether a request of the longest length fits", str(error))
    if longest > tokens:
        says = (
            f"one request of {longest} tokens wants {_gib(longest * need.token)} of KV cache, and at most {tokens} fit"
        )
        mend = 'a smaller max-model-len, kv-cache-dtype = "fp8", or more cards'
        yield Finding("card-memory", Severity.ERROR, subject, says, shown, mend, _SOURCE)
        return
    requests = f", {tokens / longest:.1f} requests of {longest}" if longest else ""
    says = f"room for at most {tokens} tokens of KV cache{requests}; activations and CUDA graphs take of it"
    yield Finding("card-memory", Severity.NOTE, subject, says, shown, "", _SOURCE)


def _weights(need: Need) -> str:
    layers = f"{need.linear / 1e9:.2f}e9 x {need.linear_bytes:.4g} B in layers"
    told = f"weights ({layers} + {need.other / 1e9:.2f}e9 x {need.plain_bytes} B in embedding and output)"
    told += f" / {need.cards} cards" if need.cards > 1 else ""
    told += f" - {_gib(need.offloaded)} offloaded" if need.offloaded else ""
    while_loading = f", {_gib(need.loading)} while loading" if need.is_made_while_loading else ""
    return f"{told} = {_gib(need.weights)}{while_loading}"


def _need(view: View) -> Need:
    shape = view.shape
    kind = shape.get("model_type")
    if kind not in _GATED:
        raise UnseenError(
            f"weights of model_type {kind!a} are not known from its shape" if kind else "the model's shape is not known"
        )
    if any(key in shape for key in ("num_experts", "num_local_experts", "vision_config")):
        raise UnseenError("experts or a vision tower are not counted")
    width, layers, inner = (_number(shape, key) for key in ("hidden_size", "num_hidden_layers", "intermediate_size"))
    heads = _number(shape, "num_attention_heads")
    groups = _number(shape, "num_key_value_heads", heads)
    head = _number(shape, "head_dim", width // heads)
    embedding = _number(shape, "vocab_size") * width
    is_encoder = kind in _ENCODERS
    is_tied = is_encoder or bool(shape.get("tie_word_embeddings", kind in _TIED))
    plain = _plain(view)
    linear_bytes, is_made = _quantized(view, shape, plain)
    tensor, pipeline = (_option(view, f"{name}-parallel-size", 1) for name in ("tensor", "pipeline"))
    cache = str(view.options.get("kv-cache-dtype", "auto"))
    kept = 1 if cache in _FP8_CACHE else plain
    return Need(
        linear=layers * (2 * width * heads * head + 2 * width * groups * head + 3 * width * inner),
        other=embedding * (1 if is_tied else 2),
        linear_bytes=linear_bytes,
        plain_bytes=plain,
        is_made_while_loading=is_made,
        cards=tensor * pipeline,
        token=0 if is_encoder else 2 * layers / pipeline * max(1, groups // tensor) * head * kept,
        offloaded=_option(view, "cpu-offload-gb", 0) * _GIB,
    )


def _plain(view: View) -> int:
    """Bytes of a weight that is not quantized. vLLM's "auto" makes 16 bits of 32."""
    dtype = view.options.get("dtype", "auto")
    if dtype == "auto":
        return 2
    if not isinstance(dtype, str) or dtype not in _BYTES:
        raise UnseenError(f"dtype {dtype!a} has no known size")
    return _BYTES[dtype]


def _quantized(view: View, shape: Mapping[str, Any], plain: int) -> tuple[float, bool]:
    """Bytes of a weight in a layer, with its group's scale, and whether vLLM quantizes it while loading."""
    asked = view.options.get("quantization")
    told = shape.get("quantization_config")
    if not isinstance(told, Mapping):
        if asked in (None, "fp8"):
            return (1, True) if asked else (plain, False)
        raise UnseenError(f"quantization {asked!a} of a checkpoint without a quantization_config")
    method = told.get("quant_method")
    if method == "fp8":
        return 1, False
    if method in ("awq", "gptq"):
        bits, group = _number(told, "bits") / 8, _number(told, "group_size", 128)
        return bits + (2 + bits) / group, False
    if method == "compressed-tensors":
        groups = told.get("config_groups")
        sizes = {_packed(group) for group in groups.values()} if isinstance(groups, Mapping) else set()
        if len(sizes) == 1:
            return sizes.pop(), False
    raise UnseenError(f"bytes of a weight quantized with {method!a} are not known")


def _packed(group: Any) -> float:
    """Bytes of a weight of compressed-tensors: a scale a group, of one byte for floats (nvfp4), else of two."""
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping):
        raise UnseenError("a quantization_config without weights")
    bits = _number(weights, "num_bits") / 8
    if weights.get("group_size") is None:
        return bits
    return bits + (1 if weights.get("type") == "float" else 2) / _number(weights, "group_size")


def _longest(view: View) -> int:
    """Tokens of the longest request. Raises UnseenError where vLLM decides on it, or some layers keep only a part."""
    shape = view.shape
    uses_window = shape.get("use_sliding_window", shape.get("model_type") not in _NO_WINDOW)
    kinds = shape.get("layer_types")
    is_whole = not kinds or (isinstance(kinds, list) and all(kind == "full_attention" for kind in kinds))
    if (uses_window and shape.get("sliding_window")) or shape.get("attention_chunk_size") or not is_whole:
        raise UnseenError("some layers keep only a window of it")
    asked = view.options.get("max-model-len", shape.get("max_position_embeddings"))
    if not isinstance(asked, int) or isinstance(asked, bool) or asked < 1:
        raise UnseenError("vLLM decides on it" if asked is None else f"max-model-len is {asked!a}")
    return asked


def _number(table: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = table.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UnseenError(f"the model's shape has no {key}" if value is None else f"{key} is {value!a}")
    return value


def _option(view: View, name: str, default: int) -> int:
    value = view.options.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < default:
        raise UnseenError(f"{name} is {value!a}")
    return value


def _gib(number: float) -> str:
    return f"{number / _GIB:.2f} GiB"
