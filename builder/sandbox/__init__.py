"""Runs one command over a stack of layers, with no network and nothing of the host but what it is given."""

from builder.sandbox.engine import attend, run
from builder.sandbox.spec import Bind, Limits, Spec
from builder.sandbox.stop import Stop, StoppedError

__all__ = ["Bind", "Limits", "Spec", "Stop", "StoppedError", "attend", "run"]
