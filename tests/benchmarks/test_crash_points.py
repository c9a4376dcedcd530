"""How U5 counts survivors."""

from __future__ import annotations

from benchmarks.u5_crash_points import Ending, judge


def ending(point: str, *, was_reached: bool = True, failure: str = "") -> Ending:
    return Ending(point=point, was_reached=was_reached, failure=failure)


def test_every_kill_must_be_survived() -> None:
    well = [ending("updater:1"), ending("MainThread:2"), ending("paho:1", was_reached=False)]

    assert judge(well).holds and judge(well).ratio == 1.0
    one_died = judge([*well, ending("updater:2", failure="no answer")])
    assert (one_died.holds, one_died.ratio) == (False, 0.75)
    assert one_died.figures["not_survived"] == {"updater:2": "no answer"}


def test_a_point_of_the_updater_that_was_not_reached_proves_nothing() -> None:
    missed = judge([ending("updater:1"), ending("updater:2", was_reached=False)])

    assert missed.ratio == 1.0 and not missed.holds
    assert missed.figures["of_these_not_reached"] == ["updater:2"]


def test_no_kill_at_all_proves_nothing() -> None:
    assert not judge([]).holds
