"""The settings of a profile: every key with its meaning and limits, and what vLLM's own options may be."""

from __future__ import annotations

import math
import re
from typing import Any

from builder.deploy.profile.model import Bench
from builder.recipe.keys import Key, Type, between, matches
from builder.recipe.manual import key_table

NAME = r"[a-z0-9][a-z0-9._-]*"
"""What a profile's name may be."""

profile_name = matches(NAME, "the name of a profile: lower-case letters, digits, '.', '_' and '-'")

PROFILE = (
    Key("Description", Type.TEXT, "What it is for, in one line.", required=True),
    Key(
        "Extends",
        Type.TEXT,
        "Another file of this folder, whose keys hold where this one has none of the same name.",
        check=profile_name,
    ),
    Key("Gpus", Type.INT, "How many cards it takes; 0 serves on the CPU.", default=1, check=between(0, 16)),
    Key("Fallback", Type.TEXT, "The profile to try when this one does not come up.", check=profile_name),
)

MODEL = (
    Key(
        "Repository",
        Type.TEXT,
        "Its name on the model hub; none when the model lies in the template.",
        check=matches(r"[A-Za-z0-9][\w.-]*/[\w.-]+", 'a name such as "Qwen/Qwen2.5-7B-Instruct-AWQ"'),
    ),
    Key(
        "Revision",
        Type.TEXT,
        "Its commit there; when not given, the one that `builder models fetch` has pinned.",
        check=matches("[0-9a-f]{40}", "a commit: 40 hexadecimal digits"),
    ),
    Key(
        "Path",
        Type.TEXT,
        "Its folder in the container.",
        required=True,
        check=matches(r"(/(?!\.{1,2}(/|$))[\w.+@-]+)+", "an absolute path of letters, digits and . _ + @ -"),
    ),
)

BENCH = (
    Key("InputTokens", Type.INT, "Tokens of a request.", default=Bench.input_tokens, check=between(1)),
    Key("OutputTokens", Type.INT, "Tokens of an answer.", default=Bench.output_tokens, check=between(1)),
    Key(
        "Concurrency",
        Type.INTS,
        "Requests at a time, one run for each number.",
        default=list(Bench.concurrency),
        check=lambda value: None if value and min(value) > 0 else "must be numbers from 1 on",
    ),
    Key("Expected", Type.TEXT, "What is expected, in words, for the reader of the table."),
)

TABLES = ("Profile", "Model", "Options", "Environment", "Bench")

_ELSEWHERE = {
    "model": "the model is [Model] Path",
    "model-tag": "the model is [Model] Path",
    "config": "all options stand here",
    "api-key": "a secret does not belong in a profile: `builder deploy --api-key-file FILE`",
    "hf-token": "a secret does not belong in a profile: `builder models fetch --token-file FILE`",
}
_OPTION = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET = re.compile(r"(API_?KEY|TOKEN|SECRET|PASSWORD|PASSWD)$", re.IGNORECASE)
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*")


def option_wrong(name: str, value: Any) -> str | None:
    """What is wrong with one of vLLM's options, None when nothing is that can be known without vLLM."""
    if not _OPTION.fullmatch(name):
        return f"is no option: write it as vLLM does, without the dashes in front: {_kebab(name)!a}"
    if name in _ELSEWHERE:
        return f"does not belong here: {_ELSEWHERE[name]}"
    if not isinstance(value, (str, int, float)):
        return "must be text, a number, true or false"
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    if isinstance(value, str) and (not value or not value.isprintable() or value.startswith("-")):
        return "must be printable text on one line that does not begin with '-'"
    return _OWN[name](value) if name in _OWN else None


def variable_wrong(name: str, value: Any) -> str | None:
    """What is wrong with a variable of the service's environment, None when nothing is."""
    if not _VARIABLE.fullmatch(name):
        return "is no name of a variable: letters, digits and '_', no digit first"
    if _SECRET.search(name):
        return "sounds like a secret, which does not belong in a profile"
    if not isinstance(value, str):
        return "must be text: put it in quotes"
    return None if value.isprintable() else "must be printable text on one line"


def manual() -> str:
    """The tables of keys, as docs/profiles.md has them."""
    titles = {"[Profile]": PROFILE, "[Model]": MODEL, "[Bench]": BENCH}
    return "\n".join(f"### {title}\n\n{key_table(keys)}" for title, keys in titles.items())


def _kebab(name: str) -> str:
    return re.sub(r"[_\s]+", "-", name.strip().lstrip("-").lower())


def _host(value: Any) -> str | None:
    return None if isinstance(value, str) and _HOST.fullmatch(value) else "must be an address or a host name"


def _port(value: Any) -> str | None:
    within = isinstance(value, int) and 1024 <= value <= 65535
    return None if within else "must be from 1024 to 65535, as vLLM wants it"


def _share(value: Any) -> str | None:
    within = not isinstance(value, (bool, str)) and 0 < value <= 1
    return None if within else "must be a share of the card's memory, above 0 and at most 1"


def _size(value: Any) -> str | None:
    within = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    return None if within else "must be a number from 1 on"


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) else "must be text"


_OWN = {
    "host": _host,
    "port": _port,
    "gpu-memory-utilization": _share,
    "tensor-parallel-size": _size,
    "pipeline-parallel-size": _size,
    "served-model-name": _text,
}
"""Checks of the options that the builder itself reads."""
