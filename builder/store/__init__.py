"""Blobs by sha256, fetched and verified; layers by stage key; garbage collection."""

from builder.store.download import Fetched, fetch
from builder.store.layer import Draft, Layer
from builder.store.store import Store, default_root

__all__ = ["Draft", "Fetched", "Layer", "Store", "default_root", "fetch"]
