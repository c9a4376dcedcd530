"""Sums of the sketches of many windows by row, added a chunk at a time: what `merge` keeps while it reads.

A row is one sketch of the answer, say the latency of one group. Invariants:
- the order of chunks, and of sketches within them, changes no sum;
- memory is that of the occupied places of the rows, and at most _PENDING_CELLS more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fleet_protocol.embedding_sums import MAX_SUM
from fleet_server.telemetry_store.sketches import (
    Ints,
    SparseCounts,
    decode_sparse_many,
    decode_sums_many,
    encode_sparse_many,
    encode_sums_many,
    sum_by_group,
)

_PENDING_CELLS = 2**21


class SketchSums:
    """Sums per row of sparse counts over `places` places."""

    def __init__(self, *, places: int, max_count: int) -> None:
        self._places, self._max_count = places, max_count
        self._parts: list[tuple[Ints, Ints, Ints]] = []
        self._cells = self._settled = 0

    def add(self, blobs: Sequence[bytes], rows: Sequence[int]) -> tuple[int, ...]:
        """Add the sketches of wire bytes `[n]` to their rows; returns which of them could not be read."""
        if not blobs:
            return ()
        decoded = decode_sparse_many(blobs, self._places, max_count=self._max_count)
        part = sum_by_group(decoded, np.asarray(rows, dtype=np.int64))
        self._parts.append(part)
        self._cells += len(part[0])
        if self._cells > self._settled + _PENDING_CELLS:
            self._parts = [self._total()]
            self._cells = self._settled = len(self._parts[0][0])
        return decoded.refused

    def encoded(self, rows: int) -> list[bytes]:
        """The wire bytes of rows 0 to `rows` - 1."""
        owners, places, counts = self._total()
        return encode_sparse_many(
            SparseCounts(size=rows, width=self._places, owners=owners, places=places, counts=counts, refused=())
        )

    def _total(self) -> tuple[Ints, Ints, Ints]:
        if len(self._parts) == 1:
            return self._parts[0]
        rows, places, counts = (
            np.concatenate([np.zeros(0, dtype=np.int64), *(part[of] for part in self._parts)]) for of in range(3)
        )
        together = SparseCounts(
            size=len(rows), width=self._places, owners=np.arange(len(rows)), places=places, counts=counts, refused=()
        )
        return sum_by_group(together, rows)


@dataclass(slots=True)
class _Embedding:
    sums: Ints
    samples: int = 0
    parts: int = 0


class EmbeddingSums:
    """Sums per row of embedding sums, those of the most features: others of the row are refused."""

    def __init__(self, *, max_sum: int) -> None:
        self._max_sum = max_sum
        self._rows: dict[int, _Embedding] = {}

    def add(self, blobs: Sequence[bytes], samples: Sequence[int], rows: Sequence[int]) -> list[int]:
        """Add sums of wire bytes `[n]` over so many samples to their rows; returns the row of each that is refused.

        Sums over no samples, and samples without sums, contradict themselves and are refused too.
        """
        decoded = decode_sums_many(blobs, max_sum=self._max_sum)
        refused: list[int] = []
        by_width: dict[int, list[int]] = {}
        for at, width in enumerate(decoded.widths.tolist()):
            if width and samples[at]:
                by_width.setdefault(width, []).append(at)
            else:
                refused.append(rows[at])
        for width, found in sorted(by_width.items()):
            found.sort(key=lambda at: rows[at])
            of_row = np.asarray([rows[at] for at in found])
            present, starts = np.unique(of_row, return_index=True)
            values = decoded.values[decoded.starts[found][:, None] + np.arange(width)]
            summed = np.add.reduceat(values, starts, axis=0)
            bounds = [*starts.tolist(), len(found)]
            for number, row in enumerate(present.tolist()):
                of_part = found[bounds[number] : bounds[number + 1]]
                part = _Embedding(summed[number], sum(samples[at] for at in of_part), len(of_part))
                refused += [row] * self._keep(row, part)
        return refused

    def _keep(self, row: int, part: _Embedding) -> int:
        """Add a part to its row; returns how many sketches lost their place by it."""
        known = self._rows.setdefault(row, part)
        if known is part:
            return 0
        if len(known.sums) == len(part.sums):
            known.sums = np.clip(known.sums + part.sums, -MAX_SUM, MAX_SUM)
            known.samples += part.samples
            known.parts += part.parts
            return 0
        if len(known.sums) > len(part.sums):
            return part.parts
        self._rows[row] = part
        return known.parts

    def encoded(self) -> dict[int, tuple[int, bytes]]:
        """(samples, wire bytes) of the rows that have any."""
        answer: dict[int, tuple[int, bytes]] = {}
        by_width: dict[int, list[int]] = {}
        for row, known in self._rows.items():
            by_width.setdefault(len(known.sums), []).append(row)
        for rows in by_width.values():
            blobs = encode_sums_many(np.clip(np.stack([self._rows[row].sums for row in rows]), -MAX_SUM, MAX_SUM))
            answer.update((row, (self._rows[row].samples, blob)) for row, blob in zip(rows, blobs, strict=True))
        return answer
