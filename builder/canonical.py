"""Canonical JSON and the digests made from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def encode(value: Any) -> bytes:
    """`value` as JSON with sorted keys, no white space and ASCII only: the same bytes on every machine.

    Takes what JSON takes, with str keys only. Lone surrogates (file names that are not UTF-8) are escaped.
    Raises TypeError for anything else, floats included: their text is not portable.
    """
    _refuse_floats(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")


def digest(value: Any) -> str:
    """The sha256 of `encode(value)`, 64 hex digits."""
    return hashlib.sha256(encode(value)).hexdigest()


def _refuse_floats(value: Any) -> None:
    if isinstance(value, float):
        raise TypeError(f"a float has no canonical form: {value!r}")
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"a key must be text: {key!r}")
            _refuse_floats(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _refuse_floats(item)
