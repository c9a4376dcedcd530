"""Who leaves memory, and how close that comes to knowing the future."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.belady import fewest_loads, least_recently_used_loads
from edge_agent.runtime.eviction import EXACT_CANDIDATES, Candidate, Popularity, choose_victims, plan_room

REAL_SIZES = (1_430_000, 1_640_000, 2_540_000, 2_340_000)


def candidate(
    key: int, *, size_bytes: int = 100, share: float = 0.1, load_s: float = 0.01, is_busy: bool = False
) -> Candidate:
    return Candidate(key=key, size_bytes=size_bytes, load_s=load_s, share=share, is_busy=is_busy)


def test_nobody_leaves_when_nothing_is_needed() -> None:
    assert choose_victims([candidate(1)], need_bytes=0) == ()


def test_too_little_is_told_apart_from_nothing_needed() -> None:
    assert choose_victims([candidate(1), candidate(2)], need_bytes=201) is None


def test_the_model_least_likely_to_be_called_leaves() -> None:
    assert choose_victims(
        [candidate(1, share=0.5), candidate(2, share=0.1), candidate(3, share=0.4)], need_bytes=50
    ) == (2,)


def test_a_model_that_takes_long_to_load_stays_before_one_called_a_little_more() -> None:
    assert choose_victims([candidate(1, share=0.2, load_s=5.0), candidate(2, share=0.3)], need_bytes=50) == (2,)


def test_one_large_model_leaves_before_two_small_ones_of_more_worth_together() -> None:
    models = [candidate(1, share=0.1), candidate(2, share=0.1), candidate(3, share=0.15, size_bytes=200)]

    assert choose_victims(models, need_bytes=200) == (3,)


def test_of_equal_models_the_one_used_longest_ago_leaves() -> None:
    models = [
        Candidate(key=key, size_bytes=1, load_s=1.0, share=0.1, last_used_ns=used)
        for key, used in ((1, 30), (2, 10), (3, 20))
    ]

    assert choose_victims(models, need_bytes=1) == (2,)


def test_a_shadow_leaves_before_any_model_that_must_answer() -> None:
    shadow = Candidate(key=1, size_bytes=100, load_s=9.0, share=0.9, must_answer=False)

    assert choose_victims([shadow, candidate(2, share=0.001)], need_bytes=100) == (1,)


def test_the_newest_model_leaves_unless_it_is_clearly_called_more() -> None:
    def newest(share: float) -> Candidate:
        return Candidate(key=1, size_bytes=100, load_s=0.01, share=share, is_newest=True)

    assert choose_victims([newest(0.11), candidate(2, share=0.1)], need_bytes=100) == (1,)
    assert choose_victims([newest(0.14), candidate(2, share=0.1)], need_bytes=100) == (2,)


models_in_memory = st.lists(
    st.tuples(st.integers(1, 50), st.floats(0.001, 1.0), st.floats(0.0, 2.0)), min_size=1, max_size=7
).map(
    lambda rows: [
        candidate(key, size_bytes=size, share=share, load_s=load_s) for key, (size, share, load_s) in enumerate(rows)
    ]
)


@given(models=models_in_memory, need=st.integers(1, 120))
def test_no_other_set_of_a_few_models_costs_less(models: list[Candidate], need: int) -> None:
    possible = [
        sum(one.cost for one in chosen)
        for count in range(len(models) + 1)
        for chosen in itertools.combinations(models, count)
        if sum(one.size_bytes for one in chosen) >= need
    ]

    victims = choose_victims(models, need_bytes=need)

    assert (victims is None) == (not possible)
    if victims is not None:
        assert sum(one.cost for one in models if one.key in victims) == pytest.approx(min(possible))


@given(sizes=st.lists(st.integers(1, 50), min_size=EXACT_CANDIDATES + 1, max_size=40), share=st.floats(0.0, 1.0))
def test_of_many_models_enough_leave_and_none_for_nothing(sizes: list[int], share: float) -> None:
    models = [candidate(key, size_bytes=size, share=share * key) for key, size in enumerate(sizes)]
    need = sum(sizes) // 3 + 1

    victims = choose_victims(models, need_bytes=need)

    assert victims is not None
    freed = [sizes[key] for key in victims]
    assert sum(freed) >= need
    assert all(sum(freed) - one < need for one in freed)


def test_what_fits_needs_nobody_to_leave() -> None:
    plan = plan_room([candidate(1)], need_bytes=50, free_bytes=50, leaving_bytes=0, may_take_busy=True)

    assert (plan.victims, plan.must_wait, plan.is_possible) == ((), False, True)


def test_memory_that_is_on_its_way_is_waited_for_before_another_leaves() -> None:
    plan = plan_room([candidate(1)], need_bytes=50, free_bytes=10, leaving_bytes=40, may_take_busy=True)

    assert (plan.victims, plan.must_wait) == ((), True)


def test_an_idle_model_leaves_before_one_in_use() -> None:
    models = [candidate(1, share=0.01, is_busy=True), candidate(2, share=0.9)]

    plan = plan_room(models, need_bytes=100, free_bytes=0, leaving_bytes=0, may_take_busy=True)

    assert (plan.victims, plan.must_wait) == ((2,), False)


def test_models_in_use_leave_only_when_that_is_allowed() -> None:
    models = [candidate(1, share=0.01, is_busy=True), candidate(2, share=0.9, is_busy=True)]

    waiting = plan_room(models, need_bytes=100, free_bytes=0, leaving_bytes=0, may_take_busy=False)
    taking = plan_room(models, need_bytes=100, free_bytes=0, leaving_bytes=0, may_take_busy=True)

    assert (waiting.victims, waiting.must_wait, waiting.is_possible) == ((), True, True)
    assert (taking.victims, taking.must_wait) == ((1,), True)


def test_what_can_never_fit_is_told() -> None:
    plan = plan_room([candidate(1)], need_bytes=111, free_bytes=10, leaving_bytes=0, may_take_busy=True)

    assert not plan.is_possible


@given(looks=st.lists(st.dictionaries(st.sampled_from("abcd"), st.integers(0, 10**6)), max_size=20))
def test_shares_always_sum_to_one(looks: list[dict[str, int]]) -> None:
    popularity = Popularity()
    for look in looks:
        popularity.observe(look, names="abcd")

    shares = popularity.shares("abcd")

    assert sum(shares.values()) == pytest.approx(1.0)
    assert all(share > 0 for share in shares.values())


def test_every_model_is_as_likely_as_another_before_the_first_call() -> None:
    assert Popularity().shares("abcd") == pytest.approx(dict.fromkeys("abcd", 0.25))


def test_a_change_of_habits_is_learned_within_hundreds_of_calls_after_a_million_others() -> None:
    popularity = Popularity()
    popularity.observe({"a": 1_000_000, "b": 10}, names="ab")

    for _ in range(30):
        popularity.observe({"b": 10}, names="ab")

    assert popularity.shares("ab")["b"] > 0.8


def test_a_forgotten_name_starts_again_with_nothing() -> None:
    popularity = Popularity()
    popularity.observe({"a": 100, "b": 100}, names="ab")

    popularity.forget("a")

    assert popularity.shares("ab")["a"] < 0.01


def test_the_optimum_is_that_of_belady_where_sizes_are_equal() -> None:
    trace = _zipf(np.random.default_rng(1), 1.0, 400)

    def belady() -> int:
        memory: set[int] = set()
        loads = 0
        for now, model in enumerate(trace):
            if model in memory:
                continue
            loads += 1
            if len(memory) == 4:
                memory.remove(max(memory, key=lambda one: next((t for t in range(now, 400) if trace[t] == one), 400)))
            memory.add(model)
        return loads

    assert fewest_loads(trace, sizes_bytes=[1] * 10, budget_bytes=4) == belady()


def _zipf(random: np.random.Generator, exponent: float, calls: int, models: int = 10) -> list[int]:
    weights = 1 / np.arange(1, models + 1) ** exponent
    drawn = random.choice(models, size=calls, p=weights / weights.sum())
    return [int(model) for model in random.permutation(models)[drawn]]


def _steady(random: np.random.Generator, exponent: float) -> list[int]:
    return _zipf(random, exponent, 2000)


def _shifting(random: np.random.Generator, exponent: float) -> list[int]:
    return [model for _ in range(4) for model in _zipf(random, exponent, 500)]


def _loads(trace: Sequence[int], sizes: Sequence[int], budget: int) -> int:
    """What the policy loads when it learns at each miss, as residency does."""
    popularity, calls, memory, newest, loads = Popularity(), Counter[str](), list[int](), -1, 0
    last_used = dict.fromkeys(range(len(sizes)), 0)
    names = [str(model) for model in range(len(sizes))]
    for now, model in enumerate(trace):
        if model not in memory:
            loads += 1
            popularity.observe(calls, names=names)
            calls.clear()
            shares = popularity.shares(names)
            models = [
                Candidate(
                    key=one,
                    size_bytes=sizes[one],
                    load_s=0.005,
                    share=shares[str(one)],
                    last_used_ns=last_used[one],
                    is_newest=one == newest,
                )
                for one in memory
            ]
            victims = choose_victims(models, need_bytes=sum(sizes[one] for one in [*memory, model]) - budget)
            assert victims is not None
            memory = [one for one in memory if one not in victims] + [model]
            newest = model
        calls[str(model)] += 1
        last_used[model] = now
    return loads


@pytest.mark.parametrize("sizes", [(1,), REAL_SIZES], ids=["equal sizes", "real sizes"])
@pytest.mark.parametrize(("traffic", "bound"), [(_steady, 1.4), (_shifting, 1.5)])
@pytest.mark.parametrize("exponent", [0.8, 1.0, 1.2])
def test_reloads_stay_near_the_fewest_possible_and_below_those_of_lru(
    traffic: Callable[[np.random.Generator, float], list[int]], bound: float, exponent: float, sizes: tuple[int, ...]
) -> None:
    trace = traffic(np.random.default_rng(int(exponent * 10)), exponent)
    all_sizes = [sizes[model % len(sizes)] for model in range(10)]
    budget = 4 * sum(all_sizes) // 10

    loads = _loads(trace, all_sizes, budget)

    assert loads <= bound * fewest_loads(trace, sizes_bytes=all_sizes, budget_bytes=budget)
    assert loads < 0.95 * least_recently_used_loads(trace, sizes_bytes=all_sizes, budget_bytes=budget)


def test_a_circle_of_calls_larger_than_memory_does_not_reload_on_every_call() -> None:
    trace = [model for _ in range(100) for model in range(6)]

    assert least_recently_used_loads(trace, sizes_bytes=[1] * 6, budget_bytes=4) == 600
    assert _loads(trace, [1] * 6, 4) <= 1.3 * fewest_loads(trace, sizes_bytes=[1] * 6, budget_bytes=4)
