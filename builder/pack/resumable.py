"""SHA-256 that goes on from where an earlier run stood: between two blocks it is 32 bytes of state (FIPS 180-4, 6.2).

Python's hashlib does not tell that state. libcrypto, which it uses, does: `SHA256_CTX` of openssl/sha.h.
"""

from __future__ import annotations

import ctypes
import hashlib
import struct
import sys
from collections.abc import Sequence

STEP = 4 << 20
"""Bytes from one state that is kept to the next; what is read and hashed at a time, so that a core's cache holds it."""

_STATE = struct.Struct(">8I")
STATE_SIZE = _STATE.size
"""Bytes of a state."""

_INITIAL = _STATE.pack(
    *(0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
)


class _Context(ctypes.Structure):
    _fields_ = (
        ("state", ctypes.c_uint32 * 8),
        ("bits_low", ctypes.c_uint32),
        ("bits_high", ctypes.c_uint32),
        ("data", ctypes.c_uint32 * 16),
        ("pending", ctypes.c_uint),
        ("digest_length", ctypes.c_uint),
    )


class Sum:
    """The sha256 of bytes that come in order, with its state after each `STEP` of them.

    `states` are those of an earlier sum up to where this one is to go on, which is at `size`. Where libcrypto tells no
    states, a sum has the first alone and begins with that.
    """

    def __init__(self, states: Sequence[bytes] = (_INITIAL,)) -> None:
        self.states = list(states if IS_RESUMABLE else states[:1])
        self.size = STEP * (len(self.states) - 1)
        self._digest: _Resumed | hashlib._Hash = (
            _Resumed(self.states[-1], self.size) if IS_RESUMABLE else hashlib.sha256()
        )

    def update(self, data: bytes | memoryview) -> None:
        """Go on with `data`, which is writable when it is a view."""
        while data:
            part = data[: STEP - self.size % STEP]
            self._digest.update(part)
            self.size += len(part)
            data = data[len(part) :]
            if isinstance(self._digest, _Resumed) and self.size % STEP == 0:
                self.states.append(self._digest.state())

    def hexdigest(self) -> str:
        """The sha256 of what came so far, after which nothing may come."""
        return self._digest.hexdigest()


class _Resumed:
    def __init__(self, state: bytes, size: int) -> None:
        self._context = _Context()
        _crypto.SHA256_Init(ctypes.byref(self._context))
        self._context.state[:] = _STATE.unpack(state)
        self._context.bits_high, self._context.bits_low = divmod(8 * size, 1 << 32)

    def update(self, data: bytes | memoryview) -> None:
        place = (ctypes.c_char * len(data)).from_buffer(data) if isinstance(data, memoryview) else data
        _crypto.SHA256_Update(ctypes.byref(self._context), place, ctypes.c_size_t(len(data)))

    def state(self) -> bytes:
        return _STATE.pack(*self._context.state)

    def hexdigest(self) -> str:
        digest = ctypes.create_string_buffer(32)
        _crypto.SHA256_Final(digest, ctypes.byref(self._context))
        return digest.raw.hex()


def _tells_states() -> bool:
    """Whether libcrypto has these functions and gives with them what hashlib gives."""
    try:
        whole = _Resumed(_INITIAL, 0)
        whole.update(bytes(range(64)))
        rest = _Resumed(whole.state(), 64)
        rest.update(b"rest")
        return rest.hexdigest() == hashlib.sha256(bytes(range(64)) + b"rest").hexdigest()
    except AttributeError:
        return False


# What hashlib itself uses, where it uses any: symbols are looked for in what that is linked with, too.
_crypto = ctypes.CDLL(getattr(sys.modules.get("_hashlib"), "__file__", None))
IS_RESUMABLE = _tells_states()
