"""Runs one command over a stack of layers, with no network and nothing of the host but what it is given."""

from builder.sandbox.engine import attend, run
from builder.sandbox.spec import Bind, Limits, Spec

__all__ = ["Bind", "Limits", "Spec", "attend", "run"]
