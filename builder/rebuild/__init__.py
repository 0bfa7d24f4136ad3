"""The same recipe built again with the surroundings varied, and what differs when the bytes do."""

from builder.rebuild.model import CannotVaryError, Outcome, State
from builder.rebuild.run import Job, rebuild, reference
from builder.rebuild.variations import VARIATIONS

__all__ = ["VARIATIONS", "CannotVaryError", "Job", "Outcome", "State", "rebuild", "reference"]
