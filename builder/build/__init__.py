"""From recipe and lock to layers and the template: plan (stages to keys) and run (keys to layers)."""

from builder.build.layer import Built
from builder.build.plan import Node, blobs, plan, recipe_digest
from builder.build.run import build, outlook, over, standing
from builder.build.template import Template, current, make

__all__ = [
    "Built",
    "Node",
    "Template",
    "blobs",
    "build",
    "current",
    "make",
    "outlook",
    "over",
    "plan",
    "recipe_digest",
    "standing",
]
