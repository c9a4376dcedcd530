from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.runtime.batching import EXPLORE_EVERY, TRUSTED_RUNS, BatchSizer, concatenate, likeness_of, split


def learn(sizer: BatchSizer, us_for: dict[int, float], *, runs: int = TRUSTED_RUNS) -> None:
    for rows, run_us in us_for.items():
        for _ in range(runs):
            sizer.measured(rows=rows, run_us=run_us)


def test_calls_are_alike_whatever_their_rows_and_the_order_of_their_inputs() -> None:
    one = {"a": np.zeros((1, 3), np.float32), "b": np.zeros((1, 2), np.int64)}
    three = {"b": np.zeros((3, 2), np.int64), "a": np.zeros((3, 3), np.float32)}

    assert likeness_of(one)[0] == likeness_of(three)[0]
    assert [likeness_of(one)[1], likeness_of(three)[1]] == [1, 3]


@pytest.mark.parametrize(
    "other",
    [
        {"a": np.zeros((1, 4), np.float32)},
        {"a": np.zeros((1, 3), np.float64)},
        {"b": np.zeros((1, 3), np.float32)},
        {"a": np.zeros((1, 3, 1), np.float32)},
        {"a": np.zeros((1, 3), np.float32), "b": np.zeros((1, 3), np.float32)},
    ],
)
def test_calls_of_another_name_type_or_shape_are_not_alike(other: dict[str, np.ndarray]) -> None:
    assert likeness_of({"a": np.zeros((1, 3), np.float32)})[0] != likeness_of(other)[0]


@pytest.mark.parametrize(
    "arrays",
    [{"a": np.float32(1).reshape(())}, {"a": np.zeros((2, 1)), "b": np.zeros((3, 1))}, {}],
)
def test_inputs_without_common_rows_are_like_nothing(arrays: dict[str, np.ndarray]) -> None:
    assert likeness_of(arrays) == (None, 1)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.integers(0, 3), st.randoms(use_true_random=False))
def test_splitting_undoes_concatenating(rows: list[int], width: int, random: object) -> None:
    calls = [{"x": np.arange(n * width, dtype=np.float32).reshape(n, width) + 100 * i, "y": np.full((n,), i)}
             for i, n in enumerate(rows)]  # fmt: skip

    answers = split(concatenate(calls), rows)

    for call, answer in zip(calls, answers, strict=True):
        assert call.keys() == answer.keys()
        for name in call:
            np.testing.assert_array_equal(answer[name], call[name])
            assert answer[name].dtype == call[name].dtype


def test_an_answer_does_not_keep_the_whole_batch_in_memory() -> None:
    answers = split({"y": np.zeros((16, 4))}, [1] * 16)

    assert all(answer["y"].base is None for answer in answers)


def test_a_model_that_gains_from_batching_gets_large_batches() -> None:
    sizer = BatchSizer(largest=16)
    learn(sizer, {1: 19, 2: 21, 4: 26, 8: 35, 16: 55})

    assert sizer.size_for(64) == 16
    assert sizer.size_for(5) == 8  # the class of five rows: all that wait, nobody else


def test_a_model_that_gains_nothing_from_batching_keeps_single_calls() -> None:
    sizer = BatchSizer(largest=16)
    learn(sizer, {1: 58, 2: 115, 4: 229, 8: 450, 16: 900})

    assert sizer.size_for(64) == 1


def test_the_best_size_may_lie_between() -> None:
    sizer = BatchSizer(largest=16)
    learn(sizer, {1: 100, 2: 120, 4: 160, 8: 800, 16: 1600})

    assert sizer.size_for(64) == 4


def test_each_size_is_tried_before_sizes_are_compared() -> None:
    sizer = BatchSizer(largest=8)
    tried = []
    for _ in range(4 * TRUSTED_RUNS):
        size = sizer.size_for(100)
        tried.append(size)
        sizer.measured(rows=size, run_us=100.0 * size)

    assert tried == [size for size in (1, 2, 4, 8) for _ in range(TRUSTED_RUNS)]


def test_a_size_that_became_better_is_found_again() -> None:
    sizer = BatchSizer(largest=4)
    learn(sizer, {1: 50, 2: 200, 4: 400})
    assert sizer.size_for(4) == 1

    for _ in range(EXPLORE_EVERY * 40):
        size = sizer.size_for(4)
        sizer.measured(rows=size, run_us=50.0 if size == 1 else 60.0)

    assert sizer.size_for(4) == 4


def test_exploring_is_rare() -> None:
    sizer = BatchSizer(largest=4)
    learn(sizer, {1: 50, 2: 200, 4: 400})

    sizes = [sizer.size_for(4) for _ in range(EXPLORE_EVERY * 10)]

    assert sizes.count(1) == EXPLORE_EVERY * 10 - 10


def test_one_stalled_run_does_not_change_the_size() -> None:
    sizer = BatchSizer(largest=2)
    learn(sizer, {1: 50, 2: 60}, runs=10)

    sizer.measured(rows=2, run_us=1e6)

    assert sizer.size_for(2) == 2


@given(st.integers(1, 40), st.lists(st.tuples(st.integers(1, 50), st.floats(0.1, 1e6)), max_size=200))
def test_a_size_is_never_out_of_bounds_and_the_same_for_the_same_measurements(
    largest: int, events: list[tuple[int, float]]
) -> None:
    sizers = [BatchSizer(largest=largest) for _ in range(2)]
    for waiting, run_us in events:
        sizes = [sizer.size_for(waiting) for sizer in sizers]
        assert sizes[0] == sizes[1]
        assert 1 <= sizes[0] <= largest
        # the class of what waits is at most rounded up to a power of two
        assert sizes[0] < 2 * waiting or sizes[0] == 1
        for sizer in sizers:
            sizer.measured(rows=min(sizes[0], waiting), run_us=run_us)
