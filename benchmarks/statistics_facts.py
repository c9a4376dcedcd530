"""Why the device is the unit: false alarms of common tests when nothing changed, by simulation.

`python -m benchmarks.statistics_facts [--json] [--runs N]`. No benchmark of speed, and no target: the figures of the
facts that the statistics rest on, each made anew from its seed.

1. Drift: 20 against 20 devices, 500 events each, whose means differ by 0.2 standard deviations and did not move.
   Chi-squared and Kolmogorov-Smirnov on the pooled events, against exchanging devices.
2. A/B: 50 devices an arm, 1,000 events each, error rates about 5 % that differ by 0.2, 0.5, 1.0 in log-odds.
   The two-proportion test on pooled events, against Welch's t on device means.
3. PSI: its 5 % point without drift at 200 and 10,000 values a side, against the fixed 0.1 and 0.2 of common use.
4. Bins: counts in 64 fixed bins at the reference's quantiles against Kolmogorov-Smirnov on raw values, for independent
   values: false alarms, and power for a shift.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2, ks_2samp, ttest_ind

from fleet_server.statistics.divergences import ks_distance, ks_p_value, psi, smoothed
from fleet_server.statistics.permutation import compare_groups, relabel

ALPHA = 0.05
SEED = 20_240_601
_BINS = 10


def drift_false_alarms(*, runs: int, spread: float = 0.2, seed: int = SEED) -> dict[str, float]:
    """The share of `runs` with an alarm, though no device changed: by chi-squared, KS and exchanging devices."""
    random = np.random.default_rng(seed)
    devices, events = 20, 500
    groups = relabel(np.arange(2 * devices) < devices, relabellings=499, seed=seed)
    edges = np.quantile(random.normal(0, (1 + spread**2) ** 0.5, 200_000), np.linspace(0, 1, _BINS + 1)[1:-1])
    alarms = {"chi_squared": 0, "kolmogorov_smirnov": 0, "devices_exchanged": 0}
    for _ in range(runs):
        seen = random.normal(0, spread, (2 * devices, 1)) + random.normal(size=(2 * devices, events))
        counts = np.stack([np.bincount(np.searchsorted(edges, row), minlength=_BINS) for row in seen])
        alarms["chi_squared"] += (
            _homogeneity_p_value(counts[:devices].sum(axis=0), counts[devices:].sum(axis=0)) <= ALPHA
        )
        raw = ks_2samp(seen[:devices].ravel(), seen[devices:].ravel(), method="asymp").pvalue
        alarms["kolmogorov_smirnov"] += raw <= ALPHA
        alarms["devices_exchanged"] += compare_groups(counts / events, groups).p_value <= ALPHA
    return {name: count / runs for name, count in alarms.items()}


def comparison_false_alarms(*, runs: int, spread: float, seed: int = SEED) -> dict[str, float]:
    """The share of `runs` in which two arms with the same rates are told apart: by pooled events, by device means."""
    random = np.random.default_rng(seed)
    devices, events = 50, 1000
    rates = 1 / (1 + np.exp(3 - random.normal(0, spread, (runs, 2, devices))))
    errors = random.binomial(events, rates)
    pooled = errors.sum(axis=2) / (devices * events)
    middle = pooled.mean(axis=1)
    z_squared = (pooled[:, 0] - pooled[:, 1]) ** 2 / (2 * middle * (1 - middle) / (devices * events))
    welch = ttest_ind(errors[:, 0], errors[:, 1], axis=1, equal_var=False).pvalue
    return {
        "pooled_events": float((chi2.sf(z_squared, 1) <= ALPHA).mean()),
        "device_means": float((welch <= ALPHA).mean()),
    }


def psi_points(*, runs: int, seed: int = SEED) -> dict[str, float]:
    """The PSI that 5 % of `runs` exceed without any drift, ten bins, by the number of values a side."""
    random = np.random.default_rng(seed)
    points = {}
    for values in (200, 10_000):
        counts = random.multinomial(values, [1 / _BINS] * _BINS, size=(runs, 2))
        found = [psi(smoothed(left), smoothed(right)) for left, right in counts]
        points[f"n_{values}"] = float(np.quantile(found, 1 - ALPHA))
    return points


def binned_level_and_power(
    *, runs: int, values: int = 10_000, shift: float = 0.05, seed: int = SEED
) -> dict[str, float]:
    """The share of `runs` with an alarm, without and with a shift: 64 bins at a reference's quantiles, raw values."""
    random = np.random.default_rng(seed)
    alarms = {"bins_none": 0, "raw_none": 0, "bins_shift": 0, "raw_shift": 0}
    for _ in range(runs):
        reference = np.sort(random.normal(size=values))
        edges = np.quantile(reference, np.linspace(0, 1, 65)[1:-1])
        expected = np.bincount(np.searchsorted(edges, reference), minlength=64)
        for name, moved in (("none", 0.0), ("shift", shift)):
            seen = random.normal(moved, 1, size=values)
            counts = np.bincount(np.searchsorted(edges, seen), minlength=64)
            distance = ks_distance(smoothed(counts), smoothed(expected))
            alarms[f"bins_{name}"] += ks_p_value(distance, n=values, m=values) <= ALPHA
            alarms[f"raw_{name}"] += ks_2samp(seen, reference, method="asymp").pvalue <= ALPHA
    return {name: count / runs for name, count in alarms.items()}


def facts(*, runs: int) -> dict[str, Any]:
    """All four."""
    return {
        "alpha": ALPHA,
        "runs": runs,
        "drift_false_alarms": drift_false_alarms(runs=runs),
        "comparison_false_alarms": {
            str(spread): comparison_false_alarms(runs=runs, spread=spread) for spread in (0.2, 0.5, 1.0)
        },
        "psi_5_percent_point": psi_points(runs=runs),
        "binned_level_and_power": binned_level_and_power(runs=runs),
    }


def _homogeneity_p_value(left: NDArray[np.intp], right: NDArray[np.intp]) -> float:
    total = left + right
    expected = np.outer([left.sum(), right.sum()], total) / total.sum()
    return float(chi2.sf(float(((np.stack((left, right)) - expected) ** 2 / expected).sum()), len(total) - 1))


def main() -> int:
    """Print the facts."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.statistics_facts", description="False alarms, simulated."
    )
    parser.add_argument("--runs", type=int, default=1000, help="simulated fleets for each figure")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args()
    found = facts(runs=options.runs)
    print(json.dumps(found) if options.json else json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
