"""Seeded Gaussian numbers that are the same on every CPU, every numpy and every release.

They are part of what a bundle's reference means, so nothing in their making may round otherwise elsewhere: the
generator is SplitMix64 (Steele, Lea, Flood 2014: "Fast splittable pseudorandom number generators") on a counter, and
a number is the sum of sixteen of its 16-bit pieces (Irwin and Hall's distribution: excess kurtosis -0.075, none
beyond 6.9 standard deviations), whole until one division at the end. No logarithm or cosine is taken.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_GAMMA, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_MASK = 2**64 - 1
_LANES = np.uint64(0x0000FFFF0000FFFF)
_PIECES = 16
_HASHES_PER_NUMBER = _PIECES * 16 // 64
_CENTRE = _PIECES * (2**16 - 1) // 2
STANDARD_DEVIATION = math.sqrt(_PIECES * (2**32 - 1) / 12)
"""Of `gaussian_integers`: that of a sum of sixteen whole numbers, each from 0 to 65,535 and equally likely."""

_NUMBERS_AT_ONCE = 2**16
_DIRECTIONS_KEPT = 8  # of at most MAX_PROJECTED_PLACES numbers: 2 MiB each


def hashes(seed: int, stream: int, start: int, count: int) -> NDArray[np.uint64]:
    """Hashes number `start` to `start` + `count` of a stream of `seed`: uint64 `[count]`, all bits equally likely."""
    state = np.uint64(_mixed(_mixed(seed) + stream))
    counter = np.arange(start + 1, start + count + 1, dtype=np.uint64)
    z = state + counter * np.uint64(_GAMMA)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_MIX_1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_MIX_2)
    return z ^ (z >> np.uint64(31))


def gaussian_integers(seed: int, stream: int, count: int) -> NDArray[np.int64]:
    """Whole numbers `[count]` that are nearly normal around 0 with STANDARD_DEVIATION, below 2**20 in size."""
    numbers = np.empty(count, dtype=np.int64)
    for start in range(0, count, _NUMBERS_AT_ONCE):
        size = min(_NUMBERS_AT_ONCE, count - start)
        made = hashes(seed, stream, start * _HASHES_PER_NUMBER, size * _HASHES_PER_NUMBER)
        halves = (made & _LANES) + ((made >> np.uint64(16)) & _LANES)
        sums = halves.reshape(size, _HASHES_PER_NUMBER).sum(axis=1)
        numbers[start : start + size] = (sums & np.uint64(2**32 - 1)) + (sums >> np.uint64(32))
    numbers -= _CENTRE
    return numbers


@lru_cache(maxsize=_DIRECTIONS_KEPT)
def unit_direction(seed: int, index: int, places: int) -> NDArray[np.float64]:
    """The `index`-th direction of `seed` in `places` dimensions: float64 `[places]` of length 1, not to be changed."""
    numbers = gaussian_integers(seed, index, places)
    length = math.sqrt(int((numbers * numbers).sum()))
    direction: NDArray[np.float64] = numbers / max(length, 1.0)
    direction.setflags(write=False)
    return direction


def _mixed(value: int) -> int:
    """SplitMix64's output for a state."""
    z = (value + _GAMMA) & _MASK
    z = ((z ^ (z >> 30)) * _MIX_1) & _MASK
    z = ((z ^ (z >> 27)) * _MIX_2) & _MASK
    return z ^ (z >> 31)
