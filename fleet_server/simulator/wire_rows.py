"""Sketches of many windows as wire bytes, encoded together: the same bytes as one by one.

`fleet_protocol.varint` writes one sketch in a loop over its cells; here a million windows are written by array.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
_GROUP_BITS = 7
_MAX_BYTES = 9


def encode_dense_rows(counts: Ints) -> list[bytes]:
    """Each row of `counts` `[n, places]`, none negative, as `fleet_protocol.varint.encode_sparse` writes it."""
    rows, places = np.nonzero(counts)
    return encode_sparse_rows(rows, places, counts[rows, places], size=len(counts))


def encode_sparse_rows(rows: Ints, places: Ints, counts: Ints, *, size: int) -> list[bytes]:
    """The same from the occupied cells `[cells]`, sorted by row, then place; `size` rows."""
    gaps = np.diff(places, prepend=-1) - 1
    first = np.diff(rows, prepend=-1) != 0
    gaps[first] = places[first]
    sizes = 1 + 2 * (gaps > 0)
    ends = np.cumsum(sizes)
    numbers = np.zeros(int(ends[-1]) if len(ends) else 0, dtype=np.int64)
    numbers[ends - 1] = counts
    numbers[ends[gaps > 0] - 2] = gaps[gaps > 0]
    return _varint_rows(numbers, np.bincount(rows, weights=sizes, minlength=size).astype(np.int64))


def encode_sums_rows(sums: Ints) -> list[bytes]:
    """Each row of `sums` `[n, features]` as `fleet_protocol.embedding_sums.encode_sums` writes it."""
    folded = np.where(sums >= 0, 2 * sums, -2 * sums - 1)
    return _varint_rows(folded.ravel(), np.full(len(sums), sums.shape[1], dtype=np.int64))


def _varint_rows(values: Ints, per_row: Ints) -> list[bytes]:
    """`values` as unsigned LEB128 varints, `per_row` of them to a row."""
    lengths = np.ones(len(values), dtype=np.int64)
    for extra in range(1, _MAX_BYTES):
        longer = values >= (1 << _GROUP_BITS * extra)
        if not longer.any():
            break
        lengths += longer
    ends = np.cumsum(lengths)
    out = np.empty(int(ends[-1]) if len(ends) else 0, dtype=np.uint8)
    starts = ends - lengths
    for place in range(int(lengths.max(initial=1))):
        here = np.flatnonzero(lengths > place)
        part = values[here] >> _GROUP_BITS * place & 0x7F
        out[starts[here] + place] = part | np.where(lengths[here] > place + 1, 0x80, 0)
    row_ends = np.concatenate(([0], ends))[np.cumsum(per_row)].tolist()
    whole, start, encoded = out.tobytes(), 0, []
    for end in row_ends:
        encoded.append(whole[start:end])
        start = end
    return encoded
