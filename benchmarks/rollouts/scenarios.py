"""The simulated rollouts of U1 to U3: one policy, one fleet size, three harms and none.

`EDGEFLEET_BENCH_QUICK=1`, or `--quick` after `python -m benchmarks.u1_harms_rolled_back`, makes a few runs of each, in
under a minute; `EDGEFLEET_BENCH_RUNS` says how many runs otherwise. Two processes on two cores; figures are of
simulated time and of devices, so that a busy machine changes none of them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.result import Result
from fleet_server.rollouts.policy import RolloutPolicy, parse_policy
from fleet_server.rollouts.policy_file import read_policy_file
from fleet_server.rollouts.simulation import Breaks, Scenario, Summary, parse_breaks, simulate_rollouts, summarize
from fleet_server.rollouts.simulation.summary import MakeJudge, ours

DEVICES = 10_000
FEW_RUNS = 3
FIRST_SEED = 1_000_000
"""No world from here on was looked at while the policy was written."""
POLICY_FILE = Path(__file__).parents[2] / "examples" / "policies" / "ten-thousand-devices-measured.yaml"
HARMS: Mapping[str, str] = {"5 points less accurate": "accuracy:-5%", "20 % slower": "latency:+20%",
                            "crashing on 2 % of devices": "crash:2%"}  # fmt: skip
EXPOSED_TARGETS: Mapping[str, float] = {"accuracy:-5%": 0.02, "latency:+20%": 0.02, "crash:2%": 0.05}
"""The share of the fleet that the median rollout may have exposed."""


def is_quick() -> bool:
    """Whether a few runs are enough."""
    return any(os.environ.get(name) for name in ("EDGEFLEET_BENCH_QUICK", "EDGEFLEET_BENCH_SMALL"))


def runs(usual: int, *, quick: int) -> int:
    """How many runs to make."""
    return quick if is_quick() else int(os.environ.get("EDGEFLEET_BENCH_RUNS", usual))


def policy() -> RolloutPolicy:
    """The recommended policy for the fleet."""
    return parse_policy(read_policy_file(POLICY_FILE))


def simulated(
    harm: str, count: int, *, with_policy: RolloutPolicy | None = None, make_judge: MakeJudge = ours
) -> Summary:
    """`count` rollouts with this harm, "" for none; the same seeds, so the same worlds, whoever judges."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    scenario = Scenario(
        policy=with_policy or policy(), devices=DEVICES, breaks=parse_breaks([harm]) if harm else Breaks()
    )
    seeds = range(FIRST_SEED, FIRST_SEED + count)
    results = list(simulate_rollouts(scenario, seeds, processes=_processes(count), make_judge=make_judge))
    return summarize(results, devices=DEVICES)


def figures(summary: Summary) -> dict[str, Any]:
    """What is shown of a summary."""
    rolled_back = summary.ends.get("rolled_back")
    shown: dict[str, Any] = {
        "runs": summary.runs,
        "ends": {name: share.count for name, share in summary.ends.items()},
        "rolled_back": None if rolled_back is None else _share(rolled_back.share, rolled_back.lower, rolled_back.upper),
        "alarms": _share(summary.alarms.share, summary.alarms.lower, summary.alarms.upper),
        "stopped_minutes": _minutes(summary.stopped_s),
        "exposed": summary.exposed,
        "seen_by": summary.gates,
        "mean_failed_updates": round(summary.failed_updates, 2),
    }
    return shown


def _processes(count: int) -> int:
    """A process takes seconds to start."""
    return min(2, os.cpu_count() or 1) if count > FEW_RUNS else 1


def main(run: Callable[[], Result]) -> int:
    """`python -m benchmarks.MODULE [--quick]`."""
    if "--quick" in sys.argv[1:]:
        os.environ["EDGEFLEET_BENCH_QUICK"] = "1"
    result = run()
    print(json.dumps(result.as_json(), indent=1))
    return 0 if result.holds else 1


def _share(share: float, lower: float, upper: float) -> list[float]:
    return [round(share, 4), round(lower, 4), round(upper, 4)]


def _minutes(seconds: dict[str, float] | None) -> dict[str, float] | None:
    return None if seconds is None else {name: round(value / 60, 1) for name, value in seconds.items()}
