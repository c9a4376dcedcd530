"""Which calls' inputs are sampled for features: as many as a CPU budget bears, every call equally likely.

A call is taken with probability 1 / interval, independently of every other: the gaps between sampled calls are drawn
beforehand from the geometric distribution, so that the serving path only counts down, and no rhythm of the callers can
fall in step with the sampling. Invariants:
1. within a period (SamplingBudget.PERIOD_S, or until the room for waiting samples is used up) the probability is the
   same for every call of a series;
2. a series that is called less than FLOOR_PER_S times a second is sampled at every call, whatever it costs;
3. above that, the expected cost of all samples of a period stays within the budget, which the series share: one that
   needs less than its part leaves the rest to the others (max-min fairness);
4. no series is sampled faster than `most_per_s`: more samples tell a window nothing.
The deciding functions are pure; `SamplingBudget` measures and applies them.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

FLOOR_PER_S = 0.5
MAX_INTERVAL = 1_000_000
LEAST_SHARE = 0.25
"""Of the budget: what sampling may use even where the rest of telemetry needs more than all."""
RECORDING_COST_S = 2e-6
"""What the serving path spends on telemetry for every call, sampled or not (measured by benchmark D6)."""
_ASSUMED_COST_S = 200e-6  # of a sampled call, before the first was measured
_COST_WEIGHT = 0.3
_RATE_DECAY = 0.8  # a rate is believed to have fallen only bit by bit: a burst that comes back meets a low probability
_GAPS_DRAWN = 256
_NO_MATTER = 0.1
_EVERY_CALL = 1.01


class CallSampler:
    """Decides for one series, on the serving path. Two threads may race: a call more or less is taken, none preferred.

    >>> sampler = CallSampler(); [sampler.takes() for _ in range(3)]
    [True, True, True]
    """

    __slots__ = ("_gaps", "_until", "interval")

    def __init__(self) -> None:
        self.interval = 1.0
        self._until = 1
        self._gaps: Iterator[int] = itertools.repeat(1)

    def takes(self) -> bool:
        """Whether this call is one of the sample."""
        self._until -= 1
        if self._until > 0:
            return False
        self._until = next(self._gaps)
        return True

    def set_interval(self, interval: float, randomness: random.Random) -> None:
        """Take one call in `interval` on average from now on; a change too small to matter is not made."""
        if abs(interval - self.interval) <= _NO_MATTER * self.interval and (interval > 1.0) == (self.interval > 1.0):
            return
        self.interval = interval
        if interval <= 1.0:
            self._gaps, self._until = itertools.repeat(1), 1
            return
        scale = 1.0 / math.log1p(-1.0 / interval)
        gaps = [1 + int(math.log(1.0 - randomness.random()) * scale) for _ in range(_GAPS_DRAWN + 1)]
        # geometric gaps have no memory: to draw the current one again prefers no call
        self._gaps, self._until = itertools.cycle(gaps[1:]), gaps[0]


class Demand(NamedTuple):
    """What a series would need if every call were sampled: its calls a second, and seconds of CPU for each."""

    calls_per_s: float
    cost_s: float


def intervals(demands: Sequence[Demand], *, budget: float, most_per_s: float) -> list[float]:
    """One call in how many is sampled, for each series, so that together they cost `budget` CPU seconds a second."""
    wanted = [min(demand.calls_per_s, most_per_s) * demand.cost_s for demand in demands]
    granted = fair_shares(wanted, budget)
    return [
        _interval(demand, grant, most_per_s) if demand.calls_per_s else 1.0
        for demand, grant in zip(demands, granted, strict=True)
    ]


def _interval(demand: Demand, grant: float, most_per_s: float) -> float:
    bearable_per_s = grant / demand.cost_s if demand.cost_s > 0 else math.inf
    per_s = min(max(bearable_per_s, FLOOR_PER_S), max(most_per_s, FLOOR_PER_S))
    interval = demand.calls_per_s / per_s
    return interval if interval > _EVERY_CALL else 1.0


def fair_shares(wanted: Sequence[float], budget: float) -> list[float]:
    """`budget` split by max-min fairness: nobody gets more than wanted while another gets less and wants more.

    >>> fair_shares([1.0, 5.0, 9.0], 9.0)
    [1.0, 4.0, 4.0]
    """
    granted = [0.0] * len(wanted)
    left = max(budget, 0.0)
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    for place, index in enumerate(order):
        granted[index] = min(wanted[index], left / (len(order) - place))
        left -= granted[index]
    return granted


def believed_rate(before_per_s: float, now_per_s: float) -> float:
    """The rate to reckon with: a rise counts at once, a fall by and by."""
    return max(now_per_s, _RATE_DECAY * before_per_s)


def sampling_budget(max_cpu_share: float, others_share: float) -> float:
    """What sampling may use of one core's time, when the rest of telemetry uses `others_share` of it."""
    return max(LEAST_SHARE * max_cpu_share, max_cpu_share - others_share)


class Sampled(Protocol):
    """What the budget must know of a series."""

    sampler: CallSampler
    has_features: bool

    @property
    def answered(self) -> int:
        """Calls so far."""


K = TypeVar("K", bound=Hashable)


class _Memory:
    __slots__ = ("answered", "cost_s", "rate_per_s")

    def __init__(self, answered: int) -> None:
        self.answered, self.rate_per_s, self.cost_s = answered, 0.0, _ASSUMED_COST_S


class SamplingBudget:
    """Sets the interval of every series' sampler once in a period. Belongs to the telemetry's lock."""

    PERIOD_S = 1.0

    def __init__(self, *, max_cpu_share: float, most_per_s: float, start_s: float, seed: int | None = None) -> None:
        self._max_cpu_share, self._most_per_s = max_cpu_share, most_per_s
        self._random = random.Random(seed)
        self._memories: dict[Hashable, _Memory] = {}
        self._at_s = start_s
        self._spent_s = 0.0

    def spent(self, key: Hashable, *, calls: int, cost_s: float) -> None:
        """`calls` sampled calls of a series took `cost_s` seconds of CPU, on the serving path and after it."""
        memory = self._memories.get(key)
        if memory is not None and calls:
            memory.cost_s += _COST_WEIGHT * (max(cost_s, 0.0) / calls - memory.cost_s)

    def others_spent(self, cost_s: float) -> None:
        """The rest of telemetry took `cost_s` seconds of CPU."""
        self._spent_s += cost_s

    def adapt(self, series: Mapping[K, Sampled], now_s: float) -> None:
        """Set every interval when a period has passed."""
        elapsed_s = now_s - self._at_s
        if elapsed_s < self.PERIOD_S:
            return
        self._at_s = now_s
        watched = {key: one for key, one in series.items() if one.has_features}
        calls = 0
        for key, one in watched.items():
            memory = self._memories.setdefault(key, _Memory(0))
            calls += one.answered - memory.answered
            memory.rate_per_s = believed_rate(memory.rate_per_s, (one.answered - memory.answered) / elapsed_s)
            memory.answered = one.answered
        self._memories = {key: self._memories[key] for key in watched}
        others, self._spent_s = (self._spent_s + calls * RECORDING_COST_S) / elapsed_s, 0.0
        demands = [Demand(memory.rate_per_s, memory.cost_s) for memory in self._memories.values()]
        budget = sampling_budget(self._max_cpu_share, others)
        chosen = intervals(demands, budget=budget, most_per_s=self._most_per_s)
        for one, interval in zip(watched.values(), chosen, strict=True):
            one.sampler.set_interval(interval, self._random)

    def halve(self, series: Mapping[K, Sampled]) -> None:
        """The samples came faster than they are absorbed: take half as many from now on."""
        for one in series.values():
            if one.has_features:
                one.sampler.set_interval(min(2.0 * one.sampler.interval, float(MAX_INTERVAL)), self._random)
