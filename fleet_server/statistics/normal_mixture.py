"""The two-sided normal mixture boundary for sub-Gaussian sums (Howard, Ramdas, McAuliffe, Sekhon 2021, §3.2).

A sum S with intrinsic variance v crosses +-`bound(v)` at any time with probability at most alpha. `rho`
tunes where the boundary is tightest; it is chosen before the data, never from them.
Semantics of the confseq reference library (`normal_mixture_bound`, two-sided).
"""

from __future__ import annotations

import math

from fleet_server.statistics.intervals import check_level, check_positive


def best_rho(v_opt: float, alpha: float) -> float:
    """The rho whose boundary is (nearly) tightest at intrinsic variance `v_opt`.

    >>> round(best_rho(100, 0.05), 5)
    12.60056
    """
    check_positive("v_opt", v_opt)
    check_level("alpha", alpha)
    return v_opt / (2 * math.log(1 / alpha) + math.log1p(2 * math.log(1 / alpha)))


def two_sided_bound(v: float, alpha: float, *, v_opt: float, alpha_opt: float = 0.05) -> float:
    """The boundary at intrinsic variance `v` for error rate `alpha`, tightest at `v_opt` for `alpha_opt`.

    >>> round(two_sided_bound(100, 0.05, v_opt=100), 5)
    30.35209
    """
    check_positive("v", v)
    check_level("alpha", alpha)
    rho = best_rho(v_opt, alpha_opt)
    return math.sqrt((v + rho) * (math.log1p(v / rho) + 2 * math.log(1 / alpha)))
