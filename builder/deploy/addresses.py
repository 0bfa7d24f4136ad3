"""Hardware addresses for containers whose entry gives none."""

from __future__ import annotations

import hashlib


def mac_for(name: str, ctid: int) -> str:
    """A MAC address, always the same for this name and ctid: unicast and locally administered (IEEE 802, 8.4)."""
    digest = hashlib.sha256(f"builder {ctid} {name}".encode()).digest()
    return ":".join(f"{octet:02X}" for octet in (digest[0] & 0xFC | 0x02, *digest[1:6]))
