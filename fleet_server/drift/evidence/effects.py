"""How far apart: the sizes that stand beside the evidence, each with a p-value from its own null law.

Divergences have no fixed scale (the 5 % point of PSI without any drift is 0.17 for 200 values a side and 0.003 for
10,000), so a p-value says how often chance alone makes one as large, with these devices or this many values:
- across devices: the mean of the devices' shares differs from the reference by a Gaussian vector whose variance is that
  between devices plus the reference's own, scaled as Student's t for the devices' number (SIMULATIONS draws);
- for values: both samples are drawn again from their pooled shares.
"""

from __future__ import annotations

import numpy as np

from fleet_server.drift.evidence.result import Counts, Matrix
from fleet_server.drift.findings import Effect
from fleet_server.statistics.divergences import (
    SMOOTHING,
    hellinger_squared,
    jsd,
    ks_distance,
    psi,
    smoothed,
    wasserstein_1,
)

SIMULATIONS = 400


def fleet_effect(
    by_device: Matrix, reference: Counts, edges: Matrix | None, *, values: int, rank: Effect, seed: int
) -> Effect:
    """Sizes of devices' shares `[devices, cells]` of so many `values` against the reference `[cells]`.

    `rank` brings the move in ranks.
    """
    expected = smoothed(reference)
    own = np.diag(expected) - np.outer(expected, expected)
    noise = own / reference.sum()
    return _of_devices(by_device, (expected, noise, float(reference.sum())), edges, values=values, rank=rank, seed=seed)


def slices_effect(
    seen: Matrix, expected: Matrix, edges: Matrix | None, *, values: int, rank: Effect, seed: int
) -> Effect:
    """Sizes of devices' shares `[devices, cells]` against other devices' `[devices, cells]`."""
    noise = np.cov(expected, rowvar=False) / len(expected) if len(expected) > 1 else np.zeros((seen.shape[1],) * 2)
    freedom = max(1.0, len(expected) - 1.0)
    other = (expected.mean(axis=0), noise, freedom)
    return _of_devices(seen, other, edges, values=values, rank=rank, seed=seed)


def pairs_effect(
    seen: Matrix, expected: Matrix, edges: Matrix | None, *, values: int, rank: Effect, seed: int
) -> Effect:
    """Sizes of devices' shares `[devices, cells]` against those of the same devices."""
    middle = expected.mean(axis=0)
    nothing = np.zeros((seen.shape[1],) * 2)
    return _of_devices(seen - expected + middle, (middle, nothing, 1.0), edges, values=values, rank=rank, seed=seed)


def _of_devices(
    by_device: Matrix,
    other: tuple[Matrix, Matrix, float],
    edges: Matrix | None,
    *,
    values: int,
    rank: Effect,
    seed: int,
) -> Effect:
    """`other` are the other side's mean shares, their variance and its freedom."""
    expected, noise, freedom = other
    random = np.random.default_rng(seed)
    size, cells = by_device.shape
    variance = np.cov(by_device, rowvar=False) / size if size > 1 else np.zeros((cells, cells))
    draws = random.standard_normal((SIMULATIONS, cells)) @ _root(variance)
    draws /= np.sqrt(random.chisquare(max(size - 1, 1), SIMULATIONS) / max(size - 1, 1))[:, None]
    others = random.standard_normal((SIMULATIONS, cells)) @ _root(noise)
    others /= np.sqrt(random.chisquare(freedom, SIMULATIONS) / freedom)[:, None]
    seen, usual = (_smooth(side[None, :], values) for side in (by_device.mean(axis=0), expected))
    simulated = _smooth(expected + draws + others, values)
    p_values = _p_values(_tables(seen, usual, edges), _tables(simulated, usual, edges))
    return _sizes(seen[0], usual[0], edges, p_values, rank)


def values_effect(
    seen: tuple[Matrix, Matrix], null: tuple[Matrix, Matrix], worth: tuple[int, int], edges: Matrix | None, rank: Effect
) -> Effect:
    """Sizes of shares `[cells]` against shares `[cells]`, of so many values each is `worth`.

    `null` are both sides' shares `[simulations, cells]` without a difference.
    """
    left, right = (_smooth(side[None, :], values) for side, values in zip(seen, worth, strict=True))
    null_left, null_right = (_smooth(side, values) for side, values in zip(null, worth, strict=True))
    p_values = _p_values(_tables(left, right, edges), _tables(null_left, null_right, edges))
    return _sizes(left[0], right[0], edges, p_values, rank)


def _root(variance: Matrix) -> Matrix:
    values, vectors = np.linalg.eigh(variance)
    root: Matrix = np.sqrt(np.maximum(values, 0.0))[:, None] * vectors.T
    return root


def _smooth(rows: Matrix, values: int) -> Matrix:
    """Shares of so many values, each cell's count raised by SMOOTHING; a Gaussian draw may fall below 0."""
    raised = np.maximum(rows, 0.0) * values + SMOOTHING
    smooth: Matrix = raised / raised.sum(axis=1, keepdims=True)
    return smooth


def _tables(p: Matrix, q: Matrix, edges: Matrix | None) -> Matrix:
    """PSI, KS and W1 of rows `[n, cells]` against `q`; the last two 0 for classes: `[n, 3]`."""
    found = np.zeros((len(p), 3))
    found[:, 0] = ((p - q) * np.log(p / q)).sum(axis=1)
    if edges is not None:
        apart = np.abs(np.cumsum(p - q, axis=1))
        found[:, 1] = apart.max(axis=1)
        found[:, 2] = apart[:, :-1] @ np.diff((edges[:-1] + edges[1:]) / 2)
    return found


def _p_values(observed: Matrix, simulated: Matrix) -> Matrix:
    p_values: Matrix = (1.0 + (simulated >= observed * (1 - 1e-12)).sum(axis=0)) / (1.0 + len(simulated))
    return p_values


def _sizes(seen: Matrix, expected: Matrix, edges: Matrix | None, p_values: Matrix, rank: Effect) -> Effect:
    ordered = edges is not None
    return Effect(
        psi=psi(seen, expected),
        psi_p_value=float(p_values[0]),
        jsd=jsd(seen, expected),
        hellinger=hellinger_squared(seen, expected) ** 0.5,
        ks_distance=ks_distance(seen, expected) if ordered else None,
        ks_p_value=float(p_values[1]) if ordered else None,
        wasserstein_1=wasserstein_1(seen, expected, edges) if edges is not None else None,
        wasserstein_1_p_value=float(p_values[2]) if ordered else None,
        shift_sd=_shift_sd(seen, expected, edges) if edges is not None else None,
        shift_rank=rank.shift_rank,
        shift_interval=rank.shift_interval,
    )


def _shift_sd(seen: Matrix, expected: Matrix, edges: Matrix) -> float | None:
    """The move of the mean in standard deviations of `expected`, mass at cells' middles; None without spread."""
    middles = (edges[:-1] + edges[1:]) / 2
    mean = float(expected @ middles)
    deviation = float(expected @ (middles - mean) ** 2) ** 0.5
    return (float(seen @ middles) - mean) / deviation if deviation > 0 else None
