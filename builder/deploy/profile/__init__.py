"""Profiles: what a container serves and how; read, made from a container's entry, rendered for the service."""
