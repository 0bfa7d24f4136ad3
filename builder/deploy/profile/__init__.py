"""Profiles: what a container serves and how; read, made from a container's entry, rendered for the service."""

from builder.deploy.profile import secrets
from builder.deploy.profile.entry import Told, from_entry
from builder.deploy.profile.load import find, load, names
from builder.deploy.profile.model import Bench, Model, Profile
from builder.deploy.profile.render import render

__all__ = ["Bench", "Model", "Profile", "Told", "find", "from_entry", "load", "names", "render", "secrets"]
