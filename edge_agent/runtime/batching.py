"""Which waiting calls share one run, how their arrays become one and their outputs several again: no I/O, no locks.

Invariants:
1. Calls share a run only when their inputs are alike: the same names and element types, and the same shapes but for
   the first axis, which is the rows of the call, the same number in each of its inputs.
2. Rows keep their order: call by call, and within a call as it sent them. `split` undoes `concatenate`.
3. `BatchSizer` only ever answers sizes between one row and its largest; given the same measurements it answers the
   same sizes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

Likeness = tuple[tuple[str, str, tuple[int, ...]], ...]
"""What the inputs of calls that may share a run have in common: name, element type and shape of one row."""

EXPLORE_EVERY = 64
"""One batch in this many is of another size than the best one, to see whether that is still the best."""
TRUSTED_RUNS = 2
"""A size is compared with others after this many runs: the first one may have paid for memory."""
SMALLER_WITHIN = 1.05
"""A smaller batch is taken over one that is not at least 5 % faster per row: its calls end earlier."""
_WEIGHT = 0.2
_OUTLIER = 2.0


def likeness_of(arrays: Mapping[str, NDArray[Any]]) -> tuple[Likeness | None, int]:
    """(what makes calls alike, rows) of a call's prepared inputs; (None, 1) when its run cannot be shared."""
    rows = 0
    likeness = []
    for name, array in sorted(arrays.items()) if len(arrays) > 1 else arrays.items():
        shape = array.shape
        if not shape or (rows and shape[0] != rows):
            return None, 1
        rows = shape[0]
        likeness.append((name, array.dtype.str, shape[1:]))
    return (tuple(likeness), rows) if rows else (None, 1)


def concatenate(calls: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """The inputs of one run for calls that are alike, in their order."""
    return {name: np.concatenate([call[name] for call in calls]) for name in calls[0]}


def split(outputs: Mapping[str, NDArray[Any]], rows: Iterable[int]) -> list[dict[str, NDArray[Any]]]:
    """Each call's outputs of a shared run, `rows` of them per call, in order.

    Copies: they cost 0.15 us more per call than views (measured with 16 calls of 12 values, beside some 30 us for
    having waited), and a caller that keeps its answer does not keep those of everybody else in memory.
    """
    answers = []
    start = 0
    for count in rows:
        end = start + count
        answers.append({name: array[start:end].copy() for name, array in outputs.items()})
        start = end
    return answers


class BatchSizer:
    """Learns which batch size takes the least time per row, from the runs that it is told of.

    Sizes fall into classes 1, 2, 3-4, 5-8, … rows. Some models gain nothing from batching (most small convolutions),
    others several times (dense ones, which read their weights once per run); what waiting and waking cost on this
    machine counts as well, since the times are those for which a lane was taken.
    """

    __slots__ = ("_largest", "_per_row_us", "_runs", "_since_explored", "_turn")

    def __init__(self, *, largest: int) -> None:
        if largest < 1:
            raise ValueError(f"largest is {largest}: a batch has at least one row")
        self._largest = largest
        classes = _class_of(largest) + 1
        self._per_row_us = [0.0] * classes
        self._runs = [0] * classes
        self._since_explored = 0
        self._turn = 0

    def size_for(self, waiting_rows: int) -> int:
        """The most rows that the next run should have, when `waiting_rows` could be in it."""
        possible = _class_of(max(1, min(waiting_rows, self._largest)))
        for size_class in range(possible + 1):
            if self._runs[size_class] < TRUSTED_RUNS:
                return self._rows_of(size_class)
        best = self._best_of(possible)
        self._since_explored += 1
        if possible and self._since_explored >= EXPLORE_EVERY:
            self._since_explored = 0
            self._turn += 1
            others = [size_class for size_class in range(possible + 1) if size_class != best]
            best = others[self._turn % len(others)]
        return self._rows_of(best)

    def measured(self, *, rows: int, run_us: float) -> None:
        """A run of `rows` took `run_us`."""
        if not 1 <= rows <= self._largest:
            return
        size_class = _class_of(rows)
        per_row_us = run_us / rows
        if self._runs[size_class] < TRUSTED_RUNS:
            # the faster of the first ones: a cold start says nothing about the size
            known = self._per_row_us[size_class]
            self._per_row_us[size_class] = min(known, per_row_us) if self._runs[size_class] else per_row_us
        else:
            known = self._per_row_us[size_class]
            self._per_row_us[size_class] = known + _WEIGHT * (min(per_row_us, _OUTLIER * known) - known)
        self._runs[size_class] += 1

    def per_row_us(self) -> dict[int, float]:
        """What is known so far: the time per row by the largest size of each class that was run."""
        return {
            self._rows_of(size_class): self._per_row_us[size_class]
            for size_class, runs in enumerate(self._runs)
            if runs
        }

    def _best_of(self, possible: int) -> int:
        least_us = min(self._per_row_us[: possible + 1])
        return next(
            size_class
            for size_class in range(possible + 1)
            if self._per_row_us[size_class] <= least_us * SMALLER_WITHIN
        )

    def _rows_of(self, size_class: int) -> int:
        return int(min(1 << size_class, self._largest))


def _class_of(rows: int) -> int:
    return (rows - 1).bit_length()
