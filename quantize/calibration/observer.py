"""The statistics of one tensor, gathered batch by batch in bounded memory. Pure.

Invariants: the result does not depend on how the samples were cut into batches, but for which values of a large
tensor enter its histogram. The histogram's half-width is a power of two; when a value falls outside, it doubles and
neighbouring bins merge, so that it is always the one that the final width would have counted from the start.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from quantize.calibration.ranges import Histogram

BINS = 8_192
"""Bins of a histogram, half of them on each side of zero."""
MAX_HISTOGRAM_VALUES = 65_536
"""Values of one tensor and one batch that enter its histogram; extremes are always exact."""
AVERAGING = 0.01
"""How much one sample moves the moving average of extremes, as ONNX Runtime's calibrator has it per batch."""
_SMALLEST_EXPONENT = -60


class Observer:
    """Extremes, moving average of extremes per sample, and histogram of one tensor."""

    def __init__(self) -> None:
        self.lowest = math.inf
        self.highest = -math.inf
        self.average: tuple[float, float] | None = None
        self._counts = np.zeros(BINS, dtype=np.int64)
        self._exponent = _SMALLEST_EXPONENT

    def observe(self, values: NDArray[np.float32], samples: int) -> tuple[float, float]:
        """Take in the tensor of one batch of `samples` samples; its least and greatest value.

        Nothing is taken in when one of them is not finite.
        """
        rows = values.reshape(samples, -1) if len(values) % samples == 0 else values.reshape(1, -1)
        lows, highs = rows.min(axis=1), rows.max(axis=1)
        low, high = float(lows.min()), float(highs.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            return low, high
        self.lowest, self.highest = min(self.lowest, low), max(self.highest, high)
        before = self.average or (float(lows[0]), float(highs[0]))
        self.average = (_moved(before[0], lows), _moved(before[1], highs))
        self._count(values.reshape(-1), max(-low, high))
        return low, high

    @property
    def histogram(self) -> Histogram:
        """What was counted so far."""
        return Histogram(counts=self._counts, width=self._width, lowest=self.lowest, highest=self.highest)

    @property
    def _width(self) -> float:
        return math.ldexp(1.0, self._exponent) / (BINS // 2)

    def _count(self, values: NDArray[np.float32], magnitude: float) -> None:
        if magnitude > 0:
            # frexp's exponent e: magnitude < 2 ** e
            self._widen(math.frexp(magnitude)[1])
        step = -(-len(values) // MAX_HISTOGRAM_VALUES)
        # an even step would see only some columns of a matrix whose width it divides
        step += step > 1 and step % 2 == 0
        places = np.floor(values[::step] * np.float64(1.0 / self._width)).astype(np.int64) + BINS // 2
        self._counts += np.bincount(places, minlength=BINS)

    def _widen(self, exponent: int) -> None:
        while self._exponent < exponent:
            if not self._counts.any():
                self._exponent = exponent
                return
            pairs = self._counts.reshape(-1, 2).sum(axis=1)
            self._counts = np.zeros(BINS, dtype=np.int64)
            self._counts[BINS // 4 : 3 * BINS // 4] = pairs
            self._exponent += 1


def _moved(average: float, values: NDArray[np.float32]) -> float:
    # the sum that taking the values one by one comes to
    keep = (1.0 - AVERAGING) ** np.arange(len(values) - 1, -1, -1)
    return float(average * (1.0 - AVERAGING) ** len(values) + AVERAGING * (keep @ values.astype(np.float64)))
