"""Whether devices of one group die sooner, looked at any time: a safe log-rank test.

At each look, of the devices still at risk in both groups some have died silently since the last look. Given how many
died, without a difference the dead of the first group are a hypergeometric draw. Each hazard ratio w of RATIOS makes
the e-value w^d1 / E[w^D1] of that draw; multiplied over looks and then averaged over w it is an e-process: it may be
looked at after every batch of deaths, groups of any size, with ties, devices that leave or join between looks
(Grünwald, Ly, Pérez-Ortiz, ter Schure 2021, "The safe log-rank test"; conditional on ties).

`log_rank_p_value` is the classical test (Mantel 1966), more powerful and for one planned look only.
Both assume that leaving for other reasons does not depend on being about to die: a device that is switched off is
counted as leaving, a device that went dark for a reason nobody gave as dead.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp
from scipy.stats import chi2, hypergeom

from fleet_server.errors import InvalidRequestError

Values = NDArray[np.float64]

RATIOS = (1.5, 2.0, 4.0, 10.0)
"""Hazards of the first group, as multiples of the second's, among which the evidence is shared equally."""


def hazard_increase_log_e_values(
    *, deaths_first: ArrayLike, at_risk_first: ArrayLike, deaths_second: ArrayLike, at_risk_second: ArrayLike
) -> Values:
    """ln of the e-process `[looks]` that the first group's hazard is above the second's.

    Devices at risk `[looks]` are those alive just before, deaths those since the look before. An alarm at error rate
    alpha when it ever reaches ln(1/alpha). Raises InvalidRequestError for what are no such counts.
    """
    table = _table(deaths_first, at_risk_first, deaths_second, at_risk_second)
    by_ratio = np.zeros((table.shape[1], len(RATIOS)))
    tilts = np.log(RATIOS)
    for look, (died, at_risk, died_second, at_risk_second_) in enumerate(table.T.tolist()):
        dead, everyone = died + died_second, at_risk + at_risk_second_
        if not dead:
            continue
        possible = np.arange(min(dead, at_risk) + 1)
        log_chances = hypergeom.logpmf(possible, everyone, at_risk, dead)
        by_ratio[look] = tilts * died - logsumexp(log_chances[:, None] + tilts * possible[:, None], axis=0)
    evidence: Values = logsumexp(by_ratio.cumsum(axis=0), axis=1) - math.log(len(RATIOS))
    return evidence


def log_rank_p_value(
    *, deaths_first: ArrayLike, at_risk_first: ArrayLike, deaths_second: ArrayLike, at_risk_second: ArrayLike
) -> float:
    """The two-sided p-value that both groups die at the same rate, for one look that was planned."""
    died, at_risk, died_second, at_risk_second_ = _table(deaths_first, at_risk_first, deaths_second, at_risk_second)
    dead, everyone = died + died_second, at_risk + at_risk_second_
    told = (everyone > 1) & (dead > 0)
    share = at_risk[told] / everyone[told]
    surprise = float((died[told] - dead[told] * share).sum())
    variance = dead[told] * share * (1 - share) * (everyone[told] - dead[told]) / (everyone[told] - 1)
    total = float(variance.sum())
    return float(chi2.sf(surprise**2 / total, 1)) if total > 0 else 1.0


def _table(*columns: ArrayLike) -> NDArray[np.int64]:
    arrays = [np.asarray(column, dtype=np.int64) for column in columns]
    if any(array.ndim != 1 or array.shape != arrays[0].shape for array in arrays):
        raise InvalidRequestError("deaths and devices at risk are lists with one number a look")
    table = np.stack(arrays)
    for deaths, at_risk in (table[:2], table[2:]):
        if not bool(((deaths >= 0) & (deaths <= at_risk)).all()):
            raise InvalidRequestError("at each look there are 0 <= deaths <= devices at risk")
    return table
