"""From recipe and lock to layers and the template: plan (stages to keys) and run (keys to layers)."""

from builder.build.plan import EMPTY_STACK, Node, blobs, plan, recipe_digest, stack_digest
from builder.build.run import Built, build, outlook, over, standing
from builder.build.template import Template, current, make

__all__ = [
    "EMPTY_STACK",
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
    "stack_digest",
    "standing",
]
