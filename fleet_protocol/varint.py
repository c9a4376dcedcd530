"""Sparse counts as bytes: what histograms and bin sketches send.

A run of unsigned LEB128 varints. A number above 0 is the count of the next place; a 0 says that places are empty, and
the number after it how many. Occupied places stand side by side in most sketches, so each costs its count and no more.
Only integers, so every CPU writes the same bytes.

Invariants: no decoded count exceeds MAX_COUNT, so that nothing a sender claims can wrap a sum around; the last place
that is told is occupied.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fleet_protocol.errors import SketchError

Counts = NDArray[np.int64]

MAX_COUNT = 2**48
"""Occurrences in one place: a million devices of a thousand a second reach it after three days."""

_MAX_VARINT_BYTES = 9  # 63 bits: a count is an int64


def encode_sparse(counts: Counts) -> bytes:
    """Bytes of a dense, non-negative int64 array `[n]`; empty when all are 0.

    >>> encode_sparse(np.array([3, 1, 0, 0, 2, 0])).hex()
    '0301000202'
    """
    out = bytearray()
    expected = 0
    places = np.flatnonzero(counts)
    for place, count in zip(places.tolist(), counts[places].tolist(), strict=True):
        if count < 0:
            raise SketchError(f"count {count} at place {place} is negative")
        if place > expected:
            out.append(0)
            append_varint(out, place - expected)
        append_varint(out, count)
        expected = place + 1
    return bytes(out)


def append_varint(out: bytearray, value: int) -> None:
    """Append an unsigned LEB128 varint."""
    rest = value
    while rest >= 0x80:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)


def decode_sparse(data: bytes, size: int) -> Counts:
    """The dense int64 array `[size]` of `data`.

    Raises SketchError when the bytes are torn, a count is above MAX_COUNT, or a place lies outside `size`.
    """
    counts = np.zeros(size, dtype=np.int64)
    if not data:
        return counts
    values = decode_varints(data)
    is_gap = values == 0
    is_length = np.concatenate(([False], is_gap[:-1]))
    if (is_gap & is_length).any():
        raise SketchError("sparse counts skip 0 places")
    is_count = ~(is_gap | is_length)
    if not is_count[-1]:
        raise SketchError("sparse counts end with empty places")
    steps = np.where(is_length, np.minimum(values, size), is_count)
    places = np.cumsum(steps)[is_count] - 1
    if places[-1] >= size:
        raise SketchError(f"a sparse count lies outside its {size} places")
    found = values[is_count]
    if found.max() > MAX_COUNT:
        raise SketchError(f"a sparse count of {found.max()} exceeds the limit of {MAX_COUNT}")
    counts[places] = found
    return counts


def decode_varints(data: bytes) -> Counts:
    """The numbers `[n]` of varints one after the other, below 2**63. Raises SketchError when the bytes are torn."""
    raw = np.frombuffer(data, dtype=np.uint8)
    ends = np.flatnonzero(raw < 0x80)
    if len(ends) == 0 or ends[-1] != len(raw) - 1:
        raise SketchError("sparse counts end in the middle of a number")
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > _MAX_VARINT_BYTES:
        raise SketchError(f"a number in sparse counts has more than {_MAX_VARINT_BYTES} bytes")
    shifts = 7 * (np.arange(len(raw)) - np.repeat(starts, lengths))
    parts = (raw & 0x7F).astype(np.int64) << shifts
    return np.add.reduceat(parts, starts)
