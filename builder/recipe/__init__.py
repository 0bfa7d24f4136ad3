"""Recipes: TOML to immutable, validated objects; variants; JSON Schema; export to mkosi."""

from builder.recipe.load import Resolved, build, load, named_files, resolve
from builder.recipe.manual import manual
from builder.recipe.mkosi import export_mkosi
from builder.recipe.schema import schema

__all__ = ["Resolved", "build", "export_mkosi", "load", "manual", "named_files", "resolve", "schema"]
