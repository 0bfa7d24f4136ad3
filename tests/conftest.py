"""What makes the tests the same everywhere: on a busy machine, from a terminal, and from a job in the background."""

from __future__ import annotations

import os
import signal

from hypothesis import HealthCheck, settings

# Time says nothing about what is right. In CI the examples are the same in every run.
settings.register_profile(
    "tests", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.load_profile("tests")

# A job in the background has SIGINT ignored, and so would every program have that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
