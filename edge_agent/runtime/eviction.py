"""Which models leave memory so that another one fits: data in, a decision out.

What a sleeping model costs is the chance that it is called next, times the time to load it again; the victims
are the models whose sum of that is least and whose sizes are enough. How likely a call is, `Popularity` learns:
1. Counts of calls fade with the number of later calls, over several half-lives at once.
2. Each half-life predicts the next calls; those that predicted well get more weight, and none ever loses all of it.
   Steady traffic is so judged by a long memory, and a change of habits by a short one, without a setting.
3. The model that was loaded last has to be clearly better than another to stay: models called in a circle
   larger than the memory would otherwise push each other out on every call, as with least recently used.
Chosen over LRU, LFU, GreedyDual-Size-Frequency and LRU-K by simulation against Belady's optimum.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

HALF_LIVES_CALLS = (40.0, 160.0, 640.0, 2560.0)
"""After so many calls of any model a call counts half."""
RELOAD_FLOOR_S = 0.02
"""Added to every measured load time: what a reload disturbs besides; noise in small times so decides nothing."""
NEWCOMER_WEIGHT = 0.8
"""How much of its popularity counts of the model that was loaded last."""
EXACT_CANDIDATES = 10
"""Up to so many candidates the best of all sets is found; beyond, a greedy one."""
_LEAST_TRUST = 0.02
_PRIOR_CALLS = 0.5
_EXPENDABLE_WEIGHT = 1e-6


class Candidate(Struct, frozen=True, kw_only=True):
    """One model in memory. `share` of all calls it is expected to get; `key` names it to the caller.

    A model that need not answer (a shadow) goes before any that must. `is_busy` while a call holds it: letting it go
    frees nothing until that call ends.
    """

    key: int
    size_bytes: int
    load_s: float
    share: float
    last_used_ns: int = 0
    is_newest: bool = False
    is_busy: bool = False
    must_answer: bool = True

    @property
    def cost(self) -> float:
        """Expected seconds of loading that its absence brings per call."""
        weight = (NEWCOMER_WEIGHT if self.is_newest else 1.0) * (1.0 if self.must_answer else _EXPENDABLE_WEIGHT)
        return weight * self.share * (self.load_s + RELOAD_FLOOR_S)


class RoomPlan(Struct, frozen=True, kw_only=True):
    """What makes room: `victims` leave now, then `must_wait` until memory that was let go is really free.

    `is_possible` False: not even with every candidate gone.
    """

    victims: tuple[int, ...] = ()
    must_wait: bool = False
    is_possible: bool = True


def plan_room(
    candidates: Sequence[Candidate], *, need_bytes: int, free_bytes: int, leaving_bytes: int, may_take_busy: bool
) -> RoomPlan:
    """How `need_bytes` come to fit into `free_bytes`, given the `leaving_bytes` that running calls still hold.

    Idle models leave at once; those in use only when `may_take_busy` and idle ones are not enough.
    """
    if need_bytes <= free_bytes:
        return RoomPlan()
    missing = need_bytes - free_bytes - leaving_bytes
    if missing <= 0:
        return RoomPlan(must_wait=True)
    idle = [candidate for candidate in candidates if not candidate.is_busy]
    victims = choose_victims(idle, need_bytes=missing)
    if victims is None:
        everything = choose_victims(candidates, need_bytes=missing)
        if everything is None:
            return RoomPlan(is_possible=False)
        victims = everything if may_take_busy else ()
        return RoomPlan(victims=victims, must_wait=True)
    return RoomPlan(victims=victims, must_wait=leaving_bytes > 0)


def choose_victims(candidates: Sequence[Candidate], *, need_bytes: int) -> tuple[int, ...] | None:
    """The keys of the models whose leaving frees `need_bytes` at the least expected cost, None when all are too few.

    Of equal costs the one used longest ago goes.
    """
    if need_bytes <= 0:
        return ()
    if sum(candidate.size_bytes for candidate in candidates) < need_bytes:
        return None
    ordered = sorted(candidates, key=lambda candidate: (candidate.cost, candidate.last_used_ns, candidate.key))
    search = _cheapest_set if len(ordered) <= EXACT_CANDIDATES else _greedy_set
    return tuple(candidate.key for candidate in _without_spare(search(ordered, need_bytes), need_bytes))


def _cheapest_set(ordered: Sequence[Candidate], need_bytes: int) -> list[Candidate]:
    best_cost = math.inf
    best: list[Candidate] = []
    left_bytes = [0] * (len(ordered) + 1)
    for index in range(len(ordered) - 1, -1, -1):
        left_bytes[index] = left_bytes[index + 1] + ordered[index].size_bytes

    def extend(index: int, chosen: list[Candidate], need: int, cost: float) -> None:
        nonlocal best_cost, best
        if cost >= best_cost:
            return
        if need <= 0:
            best_cost, best = cost, list(chosen)
            return
        if left_bytes[index] < need:
            return
        candidate = ordered[index]
        extend(index + 1, [*chosen, candidate], need - candidate.size_bytes, cost + candidate.cost)
        extend(index + 1, chosen, need, cost)

    extend(0, [], need_bytes, 0.0)
    return best


def _greedy_set(ordered: Sequence[Candidate], need_bytes: int) -> list[Candidate]:
    chosen: list[Candidate] = []
    freed = 0
    for candidate in sorted(ordered, key=lambda one: one.cost / max(one.size_bytes, 1)):
        if freed >= need_bytes:
            break
        chosen.append(candidate)
        freed += candidate.size_bytes
    return chosen


def _without_spare(chosen: list[Candidate], need_bytes: int) -> list[Candidate]:
    spare_bytes = sum(candidate.size_bytes for candidate in chosen) - need_bytes
    for candidate in sorted(chosen, key=lambda one: one.cost, reverse=True):
        if candidate.size_bytes <= spare_bytes:
            chosen.remove(candidate)
            spare_bytes -= candidate.size_bytes
    return chosen


class Popularity:
    """The share of the coming calls that each name may expect, learned from counts of past calls."""

    __slots__ = ("_counts", "_trust")

    def __init__(self) -> None:
        self._counts: list[dict[str, float]] = [{} for _ in HALF_LIVES_CALLS]
        self._trust = [1 / len(HALF_LIVES_CALLS)] * len(HALF_LIVES_CALLS)

    def observe(self, calls: Mapping[str, int], *, names: Iterable[str]) -> None:
        """Learn from the `calls` per name since the last time; `names` are all that could have been called."""
        total = sum(calls.values())
        if total <= 0:
            return
        known = list(dict.fromkeys([*names, *calls]))
        self._weigh_half_lives(calls, known)
        for counts, half_life in zip(self._counts, HALF_LIVES_CALLS, strict=True):
            fade = 0.5 ** (total / half_life)
            # the calls of one look are taken as evenly mixed: a long look must not outweigh what its length allows
            weight = (1 - fade) / (total * (1 - 0.5 ** (1 / half_life)))
            for name in known:
                counts[name] = counts.get(name, 0.0) * fade + calls.get(name, 0) * weight

    def shares(self, names: Iterable[str]) -> dict[str, float]:
        """The expected share of the next calls for each of `names`; equal before anything was observed."""
        known = list(dict.fromkeys(names))
        shares = dict.fromkeys(known, 0.0)
        for index, trust in enumerate(self._trust):
            for name, share in self._predict(index, known).items():
                shares[name] += trust * share
        return shares

    def forget(self, name: str) -> None:
        """Drop what is known of a name that is gone for good."""
        for counts in self._counts:
            counts.pop(name, None)

    def _predict(self, index: int, names: Sequence[str]) -> dict[str, float]:
        counts = self._counts[index]
        prior = _PRIOR_CALLS / max(len(names), 1)
        raw = {name: counts.get(name, 0.0) + prior for name in names}
        total = sum(raw.values())
        return {name: value / total for name, value in raw.items()}

    def _weigh_half_lives(self, calls: Mapping[str, int], names: Sequence[str]) -> None:
        # fixed-share mixture of experts (Herbster and Warmuth, "Tracking the best expert", 1998), with log loss
        logs = []
        for index, trust in enumerate(self._trust):
            predicted = self._predict(index, names)
            logs.append(math.log(trust) + sum(n * math.log(predicted[name]) for name, n in calls.items() if n > 0))
        best = max(logs)
        raw = [math.exp(log - best) for log in logs]
        total = sum(raw)
        self._trust = [(1 - _LEAST_TRUST) * one / total + _LEAST_TRUST / len(raw) for one in raw]
