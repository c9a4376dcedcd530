"""How many independent values a device's values are worth: they come close together, and neighbours are alike.

The variance of a mean over the variance it would have with independent values is the design effect (Kish 1965). It is
seen in three ways, and the largest counts:
- between windows against within, where windows are merged two by two, again and again (Flyvbjerg and Petersen 1989), so
  that what stays for many windows shows too, as long as MIN_BLOCKS blocks are left;
- how alike neighbouring windows are, carried on as an autoregression of the first order, without its bias (Kendall
  1954): what stays for a good part of the whole span;
- values that vary less than ALIKE of what is expected, all of them together: the device looks at one thing (a camera
  at one scene for the whole hour), and no window shows it. Then the share of the variance that is missing is what its
  values have in common, and they are worth 1 / that share at most.

An estimate from few blocks is unsure, and is raised to the upper end of what they allow. With fewer than MIN_BLOCKS
windows nothing can be estimated, and values count as independent. What stays for a third of the span or longer and
leaves values varying nearly as much as expected cannot be told from drift by one device; nor can a drift that leaves
all values alike be told from looking at one thing: ask the fleet.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import chi2

from fleet_server.drift.evidence.result import Counts, Matrix

MIN_BLOCKS = 6
ALIKE = 0.5
MOST_ALIKE_NEIGHBOURS = 0.98
_UNSURE = 0.2
"""The lower tail of the blocks' variance that is allowed for."""


def design_effect(means: Matrix, counts: Counts, *, variance: float, alike: float) -> float:
    """By how much the device's values are worth less than independent ones; 1 or more.

    `means` `[windows, k]` of scores, in time's order, over `counts` `[windows]` values each; `variance` is the trace
    of the scores' variance over all values of the device; `alike` how much its values vary, over what is expected.
    """
    kept = counts > 0
    return _design_effect(means[kept], counts[kept].astype(np.float64), variance, alike)


def _design_effect(means: Matrix, counts: Matrix, variance: float, alike: float) -> float:
    if len(counts) < MIN_BLOCKS:
        return 1.0
    largest = 1.0 if alike >= ALIKE else 1.0 + (float(counts.sum()) - 1.0) * (1.0 - alike)
    if variance <= 0:
        return largest
    largest = max(largest, _carried_on(means, counts, variance))
    while len(counts) >= MIN_BLOCKS:
        ratio, directions = _ratio(means, counts, variance)
        largest = max(largest, _raised(ratio, (len(counts) - 1.0) * directions))
        means, counts = _merged(means, counts)
    return largest


def _ratio(means: Matrix, counts: Matrix, variance: float) -> tuple[float, float]:
    """(variance between windows over that of independent values, in how many equal directions it lies)."""
    centred = means - counts @ means / counts.sum()
    by_direction = (counts[:, None] * centred**2).sum(axis=0)
    total, squares = float(by_direction.sum()), float((by_direction**2).sum())
    directions = max(1.0, total**2 / squares) if squares > 0 else 1.0
    return total / (len(counts) - 1.0) / variance, directions


def _carried_on(means: Matrix, counts: Matrix, variance: float) -> float:
    centred = means - counts @ means / counts.sum()
    weighted = np.sqrt(counts)[:, None] * centred
    alike = float((weighted[1:] * weighted[:-1]).sum() / max(float((weighted**2).sum()), 1e-300))
    windows = len(counts)
    alike = min(MOST_ALIKE_NEIGHBOURS, alike + (1.0 + 4.0 * max(alike, 0.0)) / windows)
    if alike <= 2.0 / windows**0.5:  # as alike as independent windows are by chance
        return 1.0
    ratio, directions = _ratio(means, counts, variance)
    stretch = (1.0 + alike) / (1.0 - alike)
    blocks = max(windows / stretch, 1.5)
    # a few blocks around their own mean vary less than around the true one
    return _raised(ratio * stretch / (1.0 - 1.0 / max(blocks, 1.5)), max(1.0, (blocks - 1.0) * directions))


def _raised(ratio: float, freedom: float) -> float:
    """The ratio at the upper end of what `freedom` allows; 1 where independent values show it by chance."""
    if ratio <= float(chi2.ppf(1.0 - _UNSURE, freedom)) / freedom:
        return 1.0
    return ratio * freedom / float(chi2.ppf(_UNSURE, freedom))


def _merged(means: Matrix, counts: Matrix) -> tuple[Matrix, Matrix]:
    """Neighbouring windows, two by two; an odd last one is left out."""
    even = len(counts) // 2 * 2
    sums = (means * counts[:, None])[:even]
    both = counts[:even:2] + counts[1:even:2]
    merged: Matrix = (sums[::2] + sums[1::2]) / both[:, None]
    return merged, both
