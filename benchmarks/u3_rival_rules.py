"""U3: the worlds of U1 and U2 under hawkBit's rule and under a t test with three looks. Stands beside them.

hawkBit's rule (`benchmarks/rollouts/rival_rules.py`) has no bake: a group that is installed lets the next one go. The
t test has the policy's stages and bakes. The ratio is hawkBit's share of broken models stopped, the mean over the
harms. `python -m benchmarks.u3_rival_rules --quick` is a few runs.
"""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from benchmarks.result import Result
from benchmarks.rollouts.rival_rules import hawkbit, hawkbit_with_reverts, three_looks_by_device, three_looks_pooled
from benchmarks.rollouts.scenarios import HARMS, figures, main, policy, runs, simulated
from fleet_server.rollouts.policy import ControlPolicy, RolloutPolicy, UpdateFailuresGate

ID = "U3"
TITLE = "the worlds of U1 and U2 by hawkBit's rule and a t test with three looks: share of broken models stopped"
LONG = True
RUNS, QUICK_RUNS = 100, 2
HAWKBIT_SHARE = 5
"""hawkBit's rule gets this part of the runs: it exposes the whole fleet each time, and its answer hardly varies."""
_NO_BAKE_S = 1.0


def run() -> Result:
    """Roll out every harm, and none, under each rule."""
    count = runs(RUNS, quick=QUICK_RUNS)
    rules = {
        "hawkbit": (hawkbit, _of_groups(policy())),
        "hawkbit, if reverts were told": (hawkbit_with_reverts, _of_groups(policy())),
        "t test, pooled events": (three_looks_pooled, policy()),
        "t test, device means": (three_looks_by_device, policy()),
    }
    found: dict[str, dict[str, Any]] = {}
    stopped = []
    for name, (make_judge, with_policy) in rules.items():
        found[name] = {}
        for harm in (*HARMS.values(), ""):
            some = max(1, count // HAWKBIT_SHARE) if name.startswith("hawkbit") else count
            summary = simulated(harm, some, with_policy=with_policy, make_judge=make_judge)
            found[name][harm or "equal"] = figures(summary)
            if name == "hawkbit" and harm:
                stopped.append(summary.alarms.share)
    ratio = round(sum(stopped) / len(stopped), 4)
    return Result(id=ID, title=TITLE, ratio=ratio, target="shown", holds=True, figures=found)


def _of_groups(of_ours: RolloutPolicy) -> RolloutPolicy:
    """The same groups without bakes or control, and the one condition that hawkBit has."""
    stages = [msgspec.structs.replace(stage, bake_s=_NO_BAKE_S) for stage in of_ours.stages]
    return msgspec.structs.replace(
        of_ours, stages=stages, control=ControlPolicy(percent=0), gates=[UpdateFailuresGate()], on_fail="pause"
    )


if __name__ == "__main__":
    sys.exit(main(run))
