"""Hashed LXC templates from recipes and locks."""
