"""How a run that failed is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder.sandbox import Limits, Spec
from builder.sandbox.engine import failure

SPEC = Spec("wheels", ("uv", "pip", "install", "a b"), limits=Limits(memory_mib=512, seconds=60))


def test_exit_status_with_the_last_lines_and_the_log() -> None:
    error = failure(SPEC, {"exit": 2}, b"1\n2\n\n3\n4\n5\n", Path("/store/log"))
    assert str(error) == ("stage wheels: uv pip install 'a b': exit 2: 2 | 3 | 4 | 5; all output is in /store/log")


def test_without_output_and_log_the_line_is_short() -> None:
    assert str(failure(SPEC, {"exit": 1}, b"")) == "stage wheels: uv pip install 'a b': exit 1"


def test_signals_have_names() -> None:
    assert "killed by SIGKILL" in str(failure(SPEC, {"signal": 9}, b""))
    assert "killed by signal 60" in str(failure(SPEC, {"signal": 60}, b""))


def test_limits_say_what_was_used_and_which_key_raises_them() -> None:
    memory = str(failure(SPEC, {"limit": "memory", "used": 1024}, b""))
    assert memory.endswith("used 1024 MiB, over its limit of 512 MiB; raise MemoryMiB of the stage")
    assert str(failure(SPEC, {"limit": "time", "used": 60}, b"")).endswith(
        "ran for 60 s, its limit; raise TimeoutSeconds of the stage"
    )


@pytest.mark.parametrize(
    "said",
    [
        b"curl: (6) Could not resolve host: pypi.org",
        b"Temporary failure resolving 'deb.debian.org'",
        b"[Errno -3] Temporary failure in name resolution",
        b"connect: Network is unreachable",
        b"error: failed to lookup address information: Name or service not known",
    ],
)
def test_a_stage_that_wants_the_network_is_told_that_there_is_none(said: bytes) -> None:
    assert "stages have no network: lock the input instead" in str(failure(SPEC, {"exit": 1}, said))
    networked = Spec("lock", ("uv",), network=True)
    assert "stages have no network" not in str(failure(networked, {"exit": 1}, said))


def test_a_long_command_is_cut() -> None:
    assert len(str(failure(Spec("x", ("sh", "-c", "y" * 5000)), {"exit": 1}, b""))) < 220


def test_odd_bytes_do_no_harm() -> None:
    assert "\ufffd" in str(failure(SPEC, {"exit": 1}, b"\xff\x00\n"))
