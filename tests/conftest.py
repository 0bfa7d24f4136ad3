"""What makes the tests the same everywhere: on a busy machine, from a terminal, and from a job in the background; and
which of them may run at the same time (``pytest -n 2``)."""

from __future__ import annotations

import os
import signal
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# Time says nothing about what is right. In CI the examples are the same in every run.
settings.register_profile(
    "tests", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.load_profile("tests")

# A job in the background has SIGINT ignored, one of nohup(1) SIGHUP; so would all have that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)


class Scheduling(LoadScopeScheduling):
    """End-to-end tests with LXC run one after the other, and so do those without it: each look for what the others
    of their kind leave on the machine. A file of unit tests goes to whoever is free, after those.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return _kind(self.config.rootpath / file) if file.startswith("tests/e2e/") else file


@cache
def _kind(file: Path) -> str:
    return "lxc" if "pytest.mark.lxc" in file.read_text() else "no lxc"


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    config.option.loadscopereorder = False
    return Scheduling(config, log)
