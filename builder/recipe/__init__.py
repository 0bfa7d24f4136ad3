"""Recipes: TOML to immutable, validated objects; variants; JSON Schema; export to mkosi."""

from builder.recipe.load import Resolved, build, load, resolve
from builder.recipe.schema import schema

__all__ = ["Resolved", "build", "load", "resolve", "schema"]
