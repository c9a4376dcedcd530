"""How much a process grew steadily: a leak, told from a step and from noise. Pure but for the samples it keeps.

What a model takes once (its arena at the first large batch, a library's caches) is a step, and no leak. So the first
quarter of the time does not count; of the rest the slope is the median of those of all pairs (Sen, Journal of the
American Statistical Association 63, 1968), and it counts only where nearly every pair rises (Kendall's tau, Biometrika
30, 1938): a step anywhere leaves too many pairs level. In its first seconds under load every model takes more and more,
thread by thread and block by block: nothing is said of a span below MIN_SPAN_S.
"""

from __future__ import annotations

import numpy as np

MAX_SAMPLES = 64
MIN_SAMPLES = 16
MIN_SPAN_S = 45.0
MIN_TAU = 0.8
_WARM_UP = 0.25


class MemoryGrowth:
    """Samples of one process's memory, evenly thinned so that there are never more than MAX_SAMPLES."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, int]] = []
        self._every_s = 0.0

    def add(self, at_s: float, size_bytes: int) -> None:
        """The process held so much. Times grow."""
        if self._samples and at_s - self._samples[-1][0] < self._every_s:
            return
        self._samples.append((at_s, size_bytes))
        if len(self._samples) > MAX_SAMPLES:
            self._samples = self._samples[::2]
            self._every_s = 1.5 * (self._samples[-1][0] - self._samples[0][0]) / len(self._samples)

    def leaked_bytes(self) -> int:
        """By how much it grew from the first sample to the last by a steady leak; 0 without one."""
        if len(self._samples) < MIN_SAMPLES or self._samples[-1][0] - self._samples[0][0] < MIN_SPAN_S:
            return 0
        times, sizes = (np.array(column, dtype=np.float64) for column in zip(*self._samples, strict=True))
        span_s = times[-1] - times[0]
        late = times >= times[0] + _WARM_UP * span_s
        rows, columns = np.triu_indices(int(late.sum()), k=1)
        rises = sizes[late][columns] - sizes[late][rows]
        if not len(rises) or float(np.sign(rises).mean()) < MIN_TAU:
            return 0
        slopes = rises / (times[late][columns] - times[late][rows])
        return max(0, int(np.median(slopes) * span_s))
