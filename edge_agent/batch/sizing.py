"""How many rows share one run, and how many are read at a time: decided from what runs have cost so far.

Invariants: a size is tried only on rows that have to be scored anyway, so that searching is never wasted; after
`ROUNDS` runs of every size worth trying the answer stays. What a run costs is told in CPU time of its thread,
which other processes disturb less than the clock.
"""

from __future__ import annotations

import itertools
import threading
from statistics import median

MAX_BATCH_ROWS = 1024
"""Larger batches only leave the caches: no model measured here was faster with them."""
ROUNDS = 5
WORSE = 1.15
"""A size this much dearer per row than the best, twice in a row, ends the search for larger ones."""
BETTER = 0.97
"""A larger batch has to be this much cheaper per row, for the memory it takes."""

FIRST_CHUNK_ROWS = 64
MAX_CHUNK_ROWS = 16_384
CHUNK_BYTES = 4 * 1024 * 1024
SHORT_CHUNK_S = 0.1
LONG_CHUNK_S = 0.5


class BatchSizeSearch:
    """Which power of two up to `limit` costs least per row. Used by several threads at once."""

    def __init__(self, *, limit: int = MAX_BATCH_ROWS, fixed: int | None = None) -> None:
        self._fixed = fixed
        self._sizes = [1 << power for power in range(max(limit, 1).bit_length())]
        self._costs: dict[int, list[float]] = {}
        self._lock = threading.Lock()
        self._best = fixed or 1

    @property
    def best(self) -> int:
        """The best size so far."""
        return self._best

    def next(self, available_rows: int) -> int:
        """How many of the rows at hand the next run should take."""
        if self._fixed is not None:
            return min(self._fixed, available_rows)
        with self._lock:
            for size in self._sizes:  # the small ones first: they tell when larger ones are not worth trying
                if size <= available_rows and len(self._costs.get(size, ())) < ROUNDS:
                    return size
            return min(self._best, available_rows)

    def record(self, rows: int, cpu_s: float) -> None:
        """A run of `rows` rows took `cpu_s` of its thread. Sizes that are not searched are ignored."""
        if self._fixed is not None or rows not in self._sizes:
            return
        with self._lock:
            costs = self._costs.setdefault(rows, [])
            if len(costs) < ROUNDS:
                costs.append(cpu_s / rows)
                self._sizes, self._best = decide(self._sizes, self._costs)


def decide(sizes: list[int], costs: dict[int, list[float]]) -> tuple[list[int], int]:
    """(the sizes still worth trying, the best of those tried) from the seconds per row of every size's runs.

    A size's first run is left out once there are others: it pays for memory that the next ones find ready.
    """
    per_row = {size: median(runs[1:] or runs) for size, runs in sorted(costs.items())}
    best = min(per_row, default=1)
    for size, cost in per_row.items():
        if cost < per_row[best] * BETTER:
            best = size
    settled = [size for size, runs in sorted(costs.items()) if len(runs) >= ROUNDS]
    for smaller, larger in itertools.pairwise(settled):
        if smaller > best and min(per_row[smaller], per_row[larger]) > per_row[best] * WORSE:
            return [size for size in sizes if size <= larger], best
    return sizes, best


def largest_chunk(row_bytes: int) -> int:
    """The most rows of `row_bytes` that are read at a time: a power of two."""
    fitting = max(1, CHUNK_BYTES // max(1, row_bytes))
    return min(MAX_CHUNK_ROWS, 1 << (fitting.bit_length() - 1))


def next_chunk_rows(rows: int, *, took_s: float, limit: int) -> int:
    """How many rows to read next when `rows` took `took_s`: more while quick, less while slow.

    Short enough to stop soon and lose little, long enough to cost little around the runs.
    """
    if took_s < SHORT_CHUNK_S:
        return min(rows * 2, limit)
    return max(1, rows // 2) if took_s > LONG_CHUNK_S else rows
