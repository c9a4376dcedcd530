"""U1: simulated rollouts to 10,000 devices of three broken models: share rolled back, devices exposed, time.

Models 5 points less accurate, 20 % slower, crashing on 2 % of devices, under the policy
`examples/policies/ten-thousand-devices-measured.yaml`, through the real engine. The ratio is the smallest share rolled
back; it holds when that is 0.95 or more and the median rollout exposed at most 2 % of the fleet (crashing: 5 %).
`python -m benchmarks.u1_harms_rolled_back --quick` is a few runs.
"""

from __future__ import annotations

import sys

from benchmarks.result import Result
from benchmarks.rollouts.scenarios import DEVICES, EXPOSED_TARGETS, HARMS, POLICY_FILE, figures, main, runs, simulated

ID = "U1"
TITLE = "simulated rollouts of models less accurate, slower or crashing: the smallest share rolled back"
LONG = True
RUNS, QUICK_RUNS = 200, 10


def run() -> Result:
    """Roll every harm out many times."""
    summaries = {harm: simulated(harm, runs(RUNS, quick=QUICK_RUNS)) for harm in HARMS.values()}
    shares = {
        harm: summary.ends["rolled_back"].share if "rolled_back" in summary.ends else 0.0
        for harm, summary in summaries.items()
    }
    within = {
        harm: summary.exposed is not None and summary.exposed["median"] <= EXPOSED_TARGETS[harm] * DEVICES
        for harm, summary in summaries.items()
    }
    ratio = round(min(shares.values()), 4)
    return Result(
        id=ID,
        title=TITLE,
        ratio=ratio,
        target=">= 0.95, median exposed <= 2 % (crashing 5 %)",
        holds=ratio >= 0.95 and all(within.values()),
        figures={"policy": POLICY_FILE.name, "harms": {harm: figures(each) for harm, each in summaries.items()}},
    )


if __name__ == "__main__":
    sys.exit(main(run))
