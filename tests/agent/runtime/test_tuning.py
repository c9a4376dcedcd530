"""Which settings are measured, what a measurement must show to change something, and that it is remembered."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.errors import ModelLoadError
from edge_agent.runtime.session_settings import Int8Kernels, SessionSettings, Spinning
from edge_agent.runtime.tuning import (
    LARGEST_RATIO,
    MAX_REMEMBERED,
    MAX_TUNED_THREADS,
    KnownTunings,
    TuningResult,
    TuningRow,
    allowed_ratio,
    candidates,
    choose,
    tune,
    tuning_key,
)
from tests.agent.runtime import onnx_files

BASE = SessionSettings()
TWO = SessionSettings(threads=2)
NO_ARENA = SessionSettings(arena=False, mem_pattern=False)


def row(settings: SessionSettings, ratio: float) -> TuningRow:
    return TuningRow(settings=settings, median_us=100 * ratio, default_us=100.0, rounds=9)


def test_threads_go_in_powers_of_two_up_to_the_quota_rounded_up() -> None:
    assert {one.threads for one in candidates(BASE, quota=2.5)} == {1, 2}
    assert {one.threads for one in candidates(BASE, quota=4.0)} == {1, 2, 4}
    assert {one.threads for one in candidates(BASE, quota=0.5)} == {1}
    assert max(one.threads for one in candidates(BASE, quota=500.0)) == MAX_TUNED_THREADS


def test_a_number_of_threads_that_the_config_fixes_stays() -> None:
    assert {one.threads for one in candidates(TWO, quota=8.0, fixed_threads=True)} == {2}
    assert Spinning.BOUNDED in {one.spinning for one in candidates(TWO, quota=8.0, fixed_threads=True)}


@given(
    threads=st.sampled_from([1, 2, 4]),
    kernels=st.sampled_from(list(Int8Kernels)),
    quota=st.floats(0.01, 64),
    fixed=st.booleans(),
)
def test_no_candidate_computes_other_numbers(threads: int, kernels: Int8Kernels, quota: float, fixed: bool) -> None:
    base = SessionSettings(threads=threads, int8_kernels=kernels)

    for one in candidates(base, quota=quota, fixed_threads=fixed):
        assert one != base
        assert one.int8_kernels is kernels or (kernels is Int8Kernels.U8U8 and one.int8_kernels is Int8Kernels.FLOAT)
        assert (one.bfloat16, one.providers, one.optimisation) == (base.bfloat16, base.providers, base.optimisation)
        assert one.arena or not one.mem_pattern
        assert one.spinning is not Spinning.ON


@pytest.mark.parametrize(
    ("table", "chosen"),
    [
        ([], BASE),
        ([row(NO_ARENA, 0.96)], BASE),
        ([row(NO_ARENA, 0.95)], NO_ARENA),
        ([row(NO_ARENA, 1.2)], BASE),
        ([row(TWO, 0.90)], BASE),
        ([row(TWO, 0.79)], TWO),
        ([row(TWO, 0.79), row(NO_ARENA, 0.5)], NO_ARENA),
        ([row(NO_ARENA, 0.94), row(TWO, 0.5)], TWO),
        ([TuningRow(settings=TWO, fault="no")], BASE),
        ([TuningRow(settings=TWO, median_us=1.0, default_us=0.0, rounds=3)], BASE),
    ],
)
def test_the_default_stays_unless_something_is_clearly_faster(table: list[TuningRow], chosen: SessionSettings) -> None:
    assert choose(BASE, table) == chosen


def test_each_doubling_of_threads_must_gain_more() -> None:
    assert allowed_ratio(1, 1) == allowed_ratio(4, 2) == LARGEST_RATIO
    assert allowed_ratio(1, 2) == pytest.approx(0.80)
    assert allowed_ratio(1, 4) == pytest.approx(0.65)
    assert allowed_ratio(1, 256) > 0


def test_a_real_model_is_measured_by_turns_within_its_budget() -> None:
    path = onnx_files.mlperf_tiny("ad.onnx")

    result = tune(path, base=BASE, quota=2.0, budget_s=0.6)

    assert {one.settings for one in result.table} == set(candidates(BASE, quota=2.0))
    for one in result.table:
        assert one.fault == ""
        assert one.rounds >= 5
        assert 0 < one.ratio < 50
    assert result.settings in {BASE, *(one.settings for one in result.table)}


class Clock:
    """Seconds that pass only when somebody looks: the same amount for each look."""

    def __init__(self, step_s: float) -> None:
        self.now, self._step_s = 0.0, step_s

    def __call__(self) -> float:
        self.now += self._step_s
        return self.now


def test_without_time_left_nothing_more_is_measured(tmp_path: Path) -> None:
    path = onnx_files.linear(tmp_path / "linear.onnx")

    nothing = tune(path, base=BASE, quota=2.0, budget_s=0.0, clock=Clock(1.0))
    little = tune(path, base=BASE, quota=8.0, budget_s=1.0, clock=Clock(0.04))

    assert (nothing.settings, nothing.table) == (BASE, ())
    assert 1 <= len(little.table) < len(candidates(BASE, quota=8.0))


def test_a_steady_clock_finds_no_difference_and_keeps_the_default(tmp_path: Path) -> None:
    path = onnx_files.linear(tmp_path / "linear.onnx")

    result = tune(path, base=BASE, quota=4.0, budget_s=100.0, clock=Clock(0.001))

    assert [one.ratio for one in result.table] == pytest.approx([1.0] * len(result.table))
    assert result.settings == BASE


def test_the_given_inputs_are_what_is_measured(tmp_path: Path) -> None:
    path = onnx_files.row_of_table(tmp_path / "table.onnx")
    x = np.array([0, 1, 0, 1], dtype=np.int64)

    assert tune(path, base=BASE, quota=1.0, budget_s=0.05, inputs={"x": x}).table[0].fault == ""


def test_a_model_for_another_provider_is_not_tuned(tmp_path: Path) -> None:
    base = SessionSettings(providers=("CUDAExecutionProvider", "CPUExecutionProvider"))

    assert tune(tmp_path / "none.onnx", base=base, quota=2.0, budget_s=1.0) == TuningResult(settings=base, table=())


def test_a_model_that_does_not_load_cannot_be_tuned(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError):
        tune(tmp_path / "none.onnx", base=BASE, quota=1.0, budget_s=1.0)


def test_a_tuning_is_remembered_whole(tmp_path: Path) -> None:
    result = TuningResult(settings=TWO, table=(row(TWO, 0.5), TuningRow(settings=NO_ARENA, fault="no")))
    known = KnownTunings(folder=tmp_path / "tunings")

    known.put("a", result)

    assert known.get("a") == result
    assert known.get("b") is None
    assert math.isinf(result.table[1].ratio)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"settings":{"threads":0},"table":[]}', b'{"settings":{"x":1}}']
)
def test_a_torn_or_senseless_memory_is_none(tmp_path: Path, content: bytes) -> None:
    known = KnownTunings(folder=tmp_path)
    known.put("a", TuningResult(settings=BASE, table=()))
    (tmp_path / "a.tuning.json").write_bytes(content)

    assert known.get("a") is None


def test_memory_is_bounded_and_a_full_disk_is_no_error(tmp_path: Path) -> None:
    known = KnownTunings(folder=tmp_path / "tunings")
    for number in range(MAX_REMEMBERED):
        known.put(f"{number:04}", TuningResult(settings=BASE, table=()))
        os.utime(tmp_path / "tunings" / f"{number:04}.tuning.json", (number, number))
    known.put("last", TuningResult(settings=BASE, table=()))
    (tmp_path / "file").write_text("in the way")

    KnownTunings(folder=tmp_path / "file").put("a", TuningResult(settings=BASE, table=()))

    assert len(list((tmp_path / "tunings").iterdir())) == MAX_REMEMBERED
    assert known.get("0000") is None
    assert known.get("last") is not None


def test_a_tuning_is_of_one_model_cpu_quota_and_default() -> None:
    base = {"digest": "d", "base": BASE, "quota": 2.0, "signature": "s", "runtime_version": "1"}
    others: list[dict[str, object]] = [
        {}, {"digest": "e"}, {"base": TWO}, {"quota": 3.0}, {"signature": "t"}, {"runtime_version": "2"},
    ]  # fmt: skip

    assert len({tuning_key(**{**base, **other}) for other in others}) == len(others)  # type: ignore[arg-type]
    assert tuning_key(**{**base, "quota": 1.5}) == tuning_key(**base)  # type: ignore[arg-type]
