"""Whether two groups of devices differ, by exchanging device labels: the device is the unit, whatever it saw.

Values are `[devices, cells]`: each device's shares of bins or classes, its mean, its random features. Without a
difference the labels mean nothing, so the observed statistic ranks uniformly among those of relabelled fleets:
p = (1 + hits) / (1 + relabellings) is valid at any number of them (Phipson and Smyth 2010). Few enough relabellings
are all enumerated, the given one among them, and the p-value is exact.

- Relabellings are made once and used for many signals: `relabel`, then a matrix product for each signal.
- Devices are exchanged within strata only, where strata are given (hardware, site): what differs between strata and
  is unevenly spread over the groups then raises no alarm.
- The null hypothesis is that the groups are exchangeable. With groups that differ in spread but not in mean,
  `Length.STUDENTIZED` keeps its level for many devices (Janssen 1997, Chung and Romano 2013), `PLAIN` does not.
- The same devices on both sides (today against last week) are pairs: `flip_signs` and `compare_pairs`.
- Across signals with the same relabellings, `max_adjusted` (Westfall and Young 1993) keeps the chance of any false
  alarm and, unlike Bonferroni, pays nothing for signals that move together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from itertools import combinations, product

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln

from fleet_server.errors import InvalidRequestError

Values = NDArray[np.float64]
Statistic = Callable[[Values, Values], Values]
"""From both groups' means `[relabellings, cells]` to a number `[relabellings]` that grows with the difference."""

MAX_RELABELLINGS = 100_000
MAX_TABLE_BYTES = 400_000_000
"""One byte for each device of each relabelling; 2,000 relabellings of 200,000 devices."""
_TIE = 1e-9
"""Statistics this close, relative to the observed one, count as equal: rounding must not make evidence."""
_CHUNK_CELLS = 4_000_000


class Length(StrEnum):
    """How the difference of two groups' means is measured.

    PLAIN: its squared length. STUDENTIZED: that over the sum of its variances by devices, cell by cell
    (Dempster's statistic, Welch's t squared for one cell).
    """

    PLAIN = "plain"
    STUDENTIZED = "studentized"


@dataclass(frozen=True, slots=True, kw_only=True)
class Relabelling:
    """Who is in the first group: `is_first` `[1 + relabellings, devices]`, the first row as observed.

    `is_exact`: every relabelling is a row, each once.
    """

    is_first: NDArray[np.bool_]
    is_exact: bool

    @property
    def devices(self) -> int:
        """How many devices there are in both groups."""
        return int(self.is_first.shape[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class SignFlips:
    """Which pairs are turned round: `signs` `[1 + flips, pairs]` of 1 and -1, the first row as observed."""

    signs: NDArray[np.int8]
    is_exact: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PermutationTest:
    """`statistic` as observed, and its place among `null` `[relabellings]`, the observed one not among them.

    `rank` is 1 for a statistic above all others; `p_value` = rank / (1 + relabellings).
    """

    p_value: float
    rank: int
    statistic: float
    null: Values


def relabel(
    is_first: ArrayLike, *, relabellings: int = 2000, seed: int, strata: ArrayLike | None = None
) -> Relabelling:
    """Other ways to name the devices `[devices]` of the first group: `relabellings` of them, or all when they are few.

    `strata` `[devices]`: labels are exchanged among devices with an equal one. Raises InvalidRequestError for an
    empty group, and when `relabellings` is not in 1..MAX_RELABELLINGS or makes too large a table.
    """
    observed = np.asarray(is_first, dtype=np.bool_)
    if observed.ndim != 1 or not observed.any() or observed.all():
        raise InvalidRequestError("a comparison needs devices in both groups")
    _check_number(relabellings, observed.size)
    groups = _strata(observed.size, strata)
    if _log_ways(observed, groups) < math.log(2 * MAX_RELABELLINGS):  # else the number itself is thousands of digits
        ways = math.prod(math.comb(len(group), int(observed[group].sum())) for group in groups)
        if ways - 1 <= relabellings:
            return Relabelling(is_first=_all_ways(observed, groups, ways), is_exact=True)
    random = np.random.default_rng(seed)
    rows = np.repeat(observed[None, :], relabellings + 1, axis=0)
    for group in groups:
        if 0 < observed[group].sum() < len(group):
            rows[1:, group] = random.permuted(rows[1:, group], axis=1)
    return Relabelling(is_first=rows, is_exact=False)


def compare_groups(
    values: ArrayLike, relabelling: Relabelling, *, form: ArrayLike | None = None, length: Length = Length.PLAIN
) -> PermutationTest:
    """Whether the groups' means of `values` `[devices, cells]` differ, by the quadratic form d'Ad of their difference.

    `form` is A `[cells, cells]`, symmetric and not negative, or `[cells]`, its diagonal; without one A is 1 and the
    statistic the squared length. With `Length.STUDENTIZED` each group needs two devices, else InvalidRequestError.
    """
    matrix = _matrix(values, relabelling.devices)
    if form is not None:
        matrix = matrix @ _root(np.asarray(form, dtype=np.float64), matrix.shape[1])
    matrix = matrix - matrix.mean(axis=0)  # the difference stays, and rounding is of its size
    lengths = _squared_length(matrix)
    first, second, in_first = _means(np.column_stack((matrix, lengths)), relabelling.is_first)
    mean_lengths = first[:, -1], second[:, -1]
    first, second = first[:, :-1], second[:, :-1]
    squared = _squared_length(first - second)
    if length is Length.PLAIN:
        return _ranked(squared)
    in_second = matrix.shape[0] - in_first
    if in_first < 2 or in_second < 2:
        raise InvalidRequestError("a studentized comparison needs two devices in each group")
    spread = np.maximum(mean_lengths[0] - _squared_length(first), 0) / (in_first - 1)
    spread += np.maximum(mean_lengths[1] - _squared_length(second), 0) / (in_second - 1)
    nothing = squared <= _TIE**2 * max(float(lengths.max()), 1e-300)
    with np.errstate(divide="ignore", invalid="ignore"):
        return _ranked(np.where(nothing, 0.0, squared / spread))


def compare_means(values: ArrayLike, relabelling: Relabelling, *, statistic: Statistic) -> PermutationTest:
    """As `compare_groups`, by any `statistic` of both groups' means, such as PSI, KS or a Wasserstein distance.

    >>> groups = relabel([True] * 4 + [False] * 4, seed=1)
    >>> shares = [[0.9, 0.1]] * 4 + [[0.2, 0.8]] * 4
    >>> test = compare_means(shares, groups, statistic=lambda p, q: abs(p - q).max(axis=1))
    >>> round(test.statistic, 3), test.p_value == 2 / 70
    (0.7, True)
    """
    first, second, _ = _means(_matrix(values, relabelling.devices), relabelling.is_first)
    return _ranked(np.asarray(statistic(first, second), dtype=np.float64))


def compare_kernels(kernel: ArrayLike, relabelling: Relabelling) -> PermutationTest:
    """As `compare_groups`, from inner products of devices `[devices, devices]`: the squared MMD of any kernel.

    Choose it where cells outnumber devices.
    """
    gram = np.asarray(kernel, dtype=np.float64)
    if gram.shape != (relabelling.devices,) * 2 or not bool(np.isfinite(gram).all()):
        raise InvalidRequestError(f"{relabelling.devices} devices have as many rows and columns of inner products")
    in_first = int(relabelling.is_first[0].sum())
    weights = np.where(relabelling.is_first, 1 / in_first, -1 / (relabelling.devices - in_first))
    return _ranked(np.maximum(np.einsum("rd,rd->r", weights @ gram, weights), 0))


def flip_signs(pairs: int, *, flips: int = 2000, seed: int) -> SignFlips:
    """Ways to turn round some of `pairs` before-and-after pairs; all 2^pairs where that is at most `flips` + 1."""
    if pairs < 1:
        raise InvalidRequestError(f"{pairs} pairs: there is at least one device on both sides")
    _check_number(flips, pairs)
    if pairs < 63 and 2**pairs - 1 <= flips:
        return SignFlips(signs=np.array(list(product((1, -1), repeat=pairs)), dtype=np.int8), is_exact=True)
    signs = np.random.default_rng(seed).choice(np.array([1, -1], dtype=np.int8), size=(flips + 1, pairs))
    signs[0] = 1
    return SignFlips(signs=signs, is_exact=False)


def compare_pairs(differences: ArrayLike, flips: SignFlips, *, length: Length = Length.PLAIN) -> PermutationTest:
    """Whether devices' own changes `[pairs, cells]` point one way: the squared length of their mean.

    Under the null a device's change is as likely as its opposite; with many pairs, that their mean is 0.
    STUDENTIZED divides by the trace of the variance, and needs two pairs.
    """
    matrix = _matrix(differences, flips.signs.shape[1])
    pairs = matrix.shape[0]
    squared = _squared_length(flips.signs.astype(np.float64) @ matrix / pairs)
    if length is Length.PLAIN:
        return _ranked(squared)
    if pairs < 2:
        raise InvalidRequestError("a studentized comparison needs two pairs")
    mean_square = float(_squared_length(matrix).mean())
    spread = np.maximum(mean_square - squared, 0) / (pairs - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return _ranked(np.where(squared <= _TIE**2 * mean_square, 0.0, squared / spread))


def max_adjusted(statistics: ArrayLike) -> Values:
    """p-values `[signals]` that keep the chance of any false alarm among all of them, whatever their dependence.

    `statistics` `[signals, 1 + relabellings]`: each signal's observed statistic, then its null in the same order of
    relabellings. Each is put on the scale of its own ranks, and held against the best rank of each relabelling,
    step by step down (Westfall and Young 1993, min p).
    """
    table = np.asarray(statistics, dtype=np.float64)
    if table.ndim != 2 or not table.size or bool(np.isnan(table).any()):
        raise InvalidRequestError("signals' statistics are a table of numbers, one row a signal")
    ranks = np.stack([_ranks(row) for row in table])
    order = np.argsort(ranks[:, 0], kind="stable")
    best = np.full(table.shape[1], np.inf)
    stepped = np.empty(len(order))
    for place in range(len(order) - 1, -1, -1):  # from the weakest: each is held against itself and all weaker
        best = np.minimum(best, ranks[order[place]])
        stepped[place] = np.count_nonzero(best <= ranks[order[place], 0]) / table.shape[1]
    adjusted = np.empty(len(order))
    adjusted[order] = np.maximum.accumulate(stepped)
    return adjusted


def _ranks(row: Values) -> Values:
    """For each value, how many are as large or larger, ties by rounding among them."""
    ascending = np.sort(row)
    return row.size - np.searchsorted(ascending, row - _TIE * np.abs(row), side="left").astype(np.float64)


def _ranked(statistics: Values) -> PermutationTest:
    observed = float(statistics[0])
    if math.isnan(observed):
        raise InvalidRequestError("the statistic of a comparison is not a number")
    slack = _TIE * abs(observed) if math.isfinite(observed) else 0.0
    rank = int(np.count_nonzero(statistics >= observed - slack))
    return PermutationTest(p_value=rank / statistics.size, rank=rank, statistic=observed, null=statistics[1:])


def _means(matrix: Values, is_first: NDArray[np.bool_]) -> tuple[Values, Values, int]:
    """(means of the first group `[relabellings, cells]`, of the second, devices in the first)."""
    in_first = int(is_first[0].sum())
    sums = np.empty((len(is_first), matrix.shape[1]))
    step = max(1, _CHUNK_CELLS // is_first.shape[1])
    for begin in range(0, len(is_first), step):  # the labels as numbers are made a part at a time
        sums[begin : begin + step] = is_first[begin : begin + step].astype(np.float64) @ matrix
    return sums / in_first, (matrix.sum(axis=0) - sums) / (matrix.shape[0] - in_first), in_first


def _squared_length(rows: Values) -> Values:
    squared: Values = np.einsum("rc,rc->r", rows, rows)
    return squared


def _root(form: Values, cells: int) -> Values:
    """R with R R' = A."""
    if form.shape == (cells,) and bool((form >= 0).all()):
        return np.diag(np.sqrt(form))
    if form.shape != (cells, cells) or not bool(np.isfinite(form).all()) or not np.allclose(form, form.T):
        raise InvalidRequestError(f"the form of a statistic over {cells} cells is symmetric, with as many rows")
    sizes, directions = np.linalg.eigh(form)
    if sizes[0] < -1e-9 * max(abs(sizes[-1]), 1e-300):
        raise InvalidRequestError("the form of a statistic must not be negative in any direction")
    root: Values = directions * np.sqrt(np.maximum(sizes, 0))
    return root


def _matrix(values: ArrayLike, devices: int) -> Values:
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.ndim == 1:
        matrix = matrix[:, None]
    if matrix.ndim != 2 or matrix.shape[0] != devices or not bool(np.isfinite(matrix).all()):
        raise InvalidRequestError(f"{devices} devices have as many rows of finite values, not {matrix.shape}")
    return matrix


def _strata(devices: int, strata: ArrayLike | None) -> list[NDArray[np.intp]]:
    if strata is None:
        return [np.arange(devices)]
    labels = np.asarray(strata)
    if labels.shape != (devices,):
        raise InvalidRequestError(f"{devices} devices have as many strata, not {labels.shape}")
    _, index = np.unique(labels, return_inverse=True)
    return [np.flatnonzero(index == number) for number in range(int(index.max()) + 1)]


def _all_ways(observed: NDArray[np.bool_], groups: list[NDArray[np.intp]], ways: int) -> NDArray[np.bool_]:
    rows = np.zeros((ways, observed.size), dtype=np.bool_)
    choices = [combinations(group.tolist(), int(observed[group].sum())) for group in groups]
    for row, chosen in zip(rows, product(*choices), strict=True):
        row[[device for part in chosen for device in part]] = True
    given = int(np.flatnonzero((rows == observed).all(axis=1))[0])
    rows[[0, given]] = rows[[given, 0]]
    return rows


def _log_ways(observed: NDArray[np.bool_], groups: list[NDArray[np.intp]]) -> float:
    sizes = np.array([(len(group), observed[group].sum()) for group in groups], dtype=np.float64)
    ways = gammaln(sizes[:, 0] + 1) - gammaln(sizes[:, 1] + 1) - gammaln(sizes[:, 0] - sizes[:, 1] + 1)
    return float(ways.sum())


def _check_number(relabellings: int, devices: int) -> None:
    most = min(MAX_RELABELLINGS, MAX_TABLE_BYTES // devices)
    if not 1 <= relabellings <= most:
        raise InvalidRequestError(f"{relabellings} relabellings of {devices} devices: use 1 to {most}")
