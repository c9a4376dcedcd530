"""U2: the same rollouts of a model that equals its incumbent: the share that a gate stopped, over the policy's alpha.

Unequal devices, day and night, outcomes that come late, updates that fail for want of space, network or power. A false
abort is a rollback, a segment taken back or a pause because a gate failed; pauses of gates that could not say are shown
beside. The ratio is the observed share over alpha; the interval is beside it.
`python -m benchmarks.u2_false_aborts --quick` is a few runs.
"""

from __future__ import annotations

import sys

from benchmarks.result import Result
from benchmarks.rollouts.scenarios import POLICY_FILE, figures, main, policy, runs, simulated

ID = "U2"
TITLE = "simulated rollouts of an equal model: the share aborted / the policy's alpha"
LONG = True
RUNS, QUICK_RUNS = 100, 4


def run() -> Result:
    """Roll the equal model out many times."""
    summary = simulated("", runs(RUNS, quick=QUICK_RUNS))
    alpha = max(gate.alpha for gate in policy().gates)
    ratio = round(summary.alarms.share / alpha, 3)
    return Result(
        id=ID,
        title=TITLE,
        ratio=ratio,
        target="<= 1.0",
        holds=ratio <= 1.0,
        figures={"policy": POLICY_FILE.name, "alpha": alpha, "equal": figures(summary)},
    )


if __name__ == "__main__":
    sys.exit(main(run))
