"""Which records of one boot were counted: ranges of sequences. Pure.

A sequence is fresh once. What is missing between 1 and the highest is lost, or still on its way.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence

Ranges = list[tuple[int, int]]

MAX_RANGES = 10_000
"""More gaps than this are closed from the oldest on: their records would no longer be counted as fresh."""


def add_sequences(ranges: Sequence[tuple[int, int]], sequences: Iterable[int]) -> tuple[Ranges, set[int]]:
    """(the ranges with `sequences` added, those of them that were fresh).

    Ranges are inclusive, sorted and apart.

    >>> add_sequences([(1, 3)], [2, 4, 7])
    ([(1, 4), (7, 7)], {4, 7})
    """
    fresh = {sequence for sequence in sequences if not contains(ranges, sequence)}
    return normalised([*ranges, *((sequence, sequence) for sequence in fresh)]), fresh


def contains(ranges: Sequence[tuple[int, int]], sequence: int) -> bool:
    """Whether `sequence` lies in one of the ranges."""
    place = bisect_right(ranges, (sequence, 2**63)) - 1
    return place >= 0 and ranges[place][0] <= sequence <= ranges[place][1]


def normalised(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Inclusive ranges sorted, with touching and overlapping ones joined, at most MAX_RANGES of them."""
    joined: Ranges = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        else:
            joined.append((first, last))
    surplus = len(joined) - MAX_RANGES
    if surplus > 0:
        joined = [(joined[0][0], joined[surplus][1]), *joined[surplus + 1 :]]
    return joined


def missing(ranges: Sequence[tuple[int, int]]) -> int:
    """How many sequences between 1 and the highest were never counted."""
    return ranges[-1][1] - sum(last - first + 1 for first, last in ranges) if ranges else 0
