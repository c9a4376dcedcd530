"""Many simulated rollouts, and what they say together: shares with their intervals, medians, 95th percentiles."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

import numpy as np
from msgspec import Struct
from scipy.stats import beta

from fleet_server.rollouts.simulation.run import End, Judge, RunResult, Scenario, judge_by_gates, simulate_rollout

MAX_RUNS = 100_000
CONFIDENCE = 0.95

MakeJudge = Callable[[], Judge]


class Share(Struct, frozen=True, kw_only=True):
    """A count of runs, its share, and the exact binomial interval of the share (Clopper and Pearson), 95 %."""

    count: int
    share: float
    lower: float
    upper: float


class Summary(Struct, frozen=True, kw_only=True):
    """What `runs` rollouts on `devices` devices came to; times in simulated seconds, exposed as a count of devices.

    `alarms` are runs in which a gate failed; of an equal model these are false aborts. `stopped_s` and `exposed` are of
    the runs that were stopped, by a rollback or a pause: when and how many devices had been given the candidate.
    """

    devices: int
    runs: int
    ends: dict[str, Share]
    alarms: Share
    stopped_s: dict[str, float] | None
    exposed: dict[str, float] | None
    completed_s: dict[str, float] | None
    back_s: dict[str, float] | None
    gates: dict[str, int]
    failed_updates: float
    stages: dict[str, int]


def ours() -> Judge:
    """The policy's own gates."""
    return judge_by_gates


def simulate_rollouts(
    scenario: Scenario, seeds: Sequence[int], *, processes: int = 1, make_judge: MakeJudge = ours
) -> Iterator[RunResult]:
    """A result per seed, in no certain order; `make_judge` makes a fresh judge for each run, and is importable."""
    if processes == 1:
        for seed in seeds:
            yield simulate_rollout(scenario, seed, judge=make_judge())
        return
    # spawned, because a fork of a process with threads may never wake
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            for done in as_completed([pool.submit(_one, scenario, seed, make_judge) for seed in seeds]):
                yield done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def summarize(results: Sequence[RunResult], *, devices: int) -> Summary:
    """The runs together; at least one."""
    ends = Counter(result.end for result in results)
    stopped = [result for result in results if result.stopped_s is not None]
    return Summary(
        devices=devices,
        runs=len(results),
        ends={end.value: binomial_share(ends[end], len(results)) for end in End if ends[end]},
        alarms=binomial_share(sum(result.is_alarm for result in results), len(results)),
        stopped_s=_spread([result.stopped_s for result in stopped if result.stopped_s is not None]),
        exposed=_spread([result.exposed for result in stopped]),
        completed_s=_spread([result.took_s for result in results if result.end is End.COMPLETED]),
        back_s=_spread([result.back_s for result in results if result.back_s is not None]),
        gates=dict(Counter(gate for result in results for gate in result.gates).most_common()),
        failed_updates=float(np.mean([result.failed_updates for result in results])),
        stages=dict(sorted(Counter(str(result.stage + 1) for result in stopped).items())),
    )


def binomial_share(count: int, runs: int) -> Share:
    """`count` of `runs` as a share with its exact interval. Clopper and Pearson 1934, by quantiles of the beta law."""
    tail = (1 - CONFIDENCE) / 2
    lower = float(beta.ppf(tail, count, runs - count + 1)) if count else 0.0
    upper = float(beta.ppf(1 - tail, count + 1, runs - count)) if count < runs else 1.0
    return Share(count=count, share=count / runs, lower=lower, upper=upper)


def _one(scenario: Scenario, seed: int, make_judge: MakeJudge) -> RunResult:
    return simulate_rollout(scenario, seed, judge=make_judge())


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"median": float(np.median(values)), "p95": float(np.quantile(values, 0.95))}
