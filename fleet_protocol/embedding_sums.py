"""Sums of random Fourier features on the wire: whole numbers, so that merging is exact in any order and on any CPU.

A sample's feature is `FEATURE_SCALE * cos(w.x + b)`, rounded to a whole number, in a bundle's reference too: at four
steps the rounding adds a hundredth to the variance of the cosine, and most sums of a window take one byte each. On the
wire a sum is a zigzag LEB128 varint (the encoding of Protocol Buffers' sint64), all of them one after the other.

Invariants: merging is addition; bytes depend on the sums only; no decoded sum exceeds MAX_SUM in size.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fleet_protocol.errors import SketchError
from fleet_protocol.varint import append_varint, decode_varints

FEATURE_SCALE = 4
"""Steps from 0 to the cosine's 1."""
MAX_FEATURES = 4096
MAX_SUM = 2**48

Sums = NDArray[np.int64]


def encode_sums(sums: Sums) -> bytes:
    """Bytes of the sums `[features]`; empty for none.

    >>> encode_sums(np.array([0, -1, 1, 64])).hex()
    '0001028001'
    """
    out = bytearray()
    for value in sums.tolist():
        append_varint(out, value * 2 if value >= 0 else -value * 2 - 1)
    return bytes(out)


def decode_sums(data: bytes) -> Sums:
    """The sums `[features]` of `data`, of as many features as it holds.

    Raises SketchError when the bytes are torn, hold more than MAX_FEATURES numbers or a sum beyond MAX_SUM.
    """
    if not data:
        return np.zeros(0, dtype=np.int64)
    folded = decode_varints(data)
    if len(folded) > MAX_FEATURES:
        raise SketchError(f"{len(folded)} embedding sums exceed the limit of {MAX_FEATURES}")
    sums: Sums = (folded >> 1) ^ -(folded & 1)
    if np.abs(sums).max() > MAX_SUM:
        raise SketchError(f"an embedding sum exceeds the limit of {MAX_SUM}")
    return sums
