"""A profile: one model with one set of vLLM's options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Value = str | int | float | bool
"""A value of one of vLLM's options."""


@dataclass(frozen=True)
class Model:
    """What is served: where it comes from and what shape it has."""

    repository: str  # on the model hub: "Qwen/Qwen2.5-7B-Instruct-AWQ"; "" when it lies in the template
    revision: str | None  # commit; None: `builder models fetch` pins it
    path: str  # in the container: "/models/Qwen2.5-7B-Instruct-AWQ"
    shape: Mapping[str, Any] = field(default_factory=dict)  # as in config.json, for checks without the model


@dataclass(frozen=True)
class Bench:
    """How `bench` loads it, and what is expected."""

    input_tokens: int = 512
    output_tokens: int = 128
    concurrency: tuple[int, ...] = (1, 8, 32)
    expected: str = ""  # in words, for a reader of the table


@dataclass(frozen=True)
class Profile:
    """Everything that `render` needs, but for the container and the secrets."""

    name: str
    description: str
    model: Model
    served_name: str
    task: str  # "completion" or "embedding"
    gpus: int  # cards; 0 serves on the CPU
    share: float  # of each card's whole memory, 0 to 1; rendered as --gpu-memory-utilization
    options: Mapping[str, Value]  # vLLM's options by their long names without dashes in front; no share, no model
    environment: Mapping[str, str]  # for /etc/vllm/env
    fallback: str | None = None  # the profile that is tried when this one does not come up
    port: int = 8000
    host: str | None = None  # address to listen on; None: the container's own, private
    bench: Bench = Bench()
    source: str = ""  # the file, or the entry that it was made from, for messages
