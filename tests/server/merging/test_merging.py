"""The merged series is that of the windows: at once by reading, in time in the store, through races and crashes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fleet_protocol.messages import Window
from fleet_server.database.leases import take_lease
from fleet_server.errors import InvalidRequestError, StoreUnavailableError, UnavailableError
from fleet_server.merging import merger as merger_module
from fleet_server.merging import reading
from fleet_server.merging.reading import merged_windows
from fleet_server.telemetry_store import Grain, Slice
from fleet_server.telemetry_store._stored import pack
from tests.server.merging.fleets import (
    ALL_TIME,
    H0_NS,
    HOUR_NS,
    RAW_RETENTION_S,
    Fleet,
    assert_all_is_as_the_windows_are,
    expected,
    marks,
    open_fleet,
    windows_of,
)
from tests.server.telemetry_store.windows import MINUTE_NS, window


def test_an_answer_is_exact_before_anything_is_merged_and_the_same_after(any_fleet: Fleet) -> None:
    windows = windows_of(1)
    any_fleet.take_in(windows)
    assert_all_is_as_the_windows_are(any_fleet, windows, in_the_store=False)
    assert any_fleet.stored(Grain.FLEET_MINUTE) == any_fleet.read(Grain.FLEET_HOUR, exact=False) == []
    any_fleet.merge_all()
    assert_all_is_as_the_windows_are(any_fleet, windows, in_the_store=True)
    assert marks(any_fleet) == []


def test_late_and_repeated_windows_merge_into_their_own_time(any_fleet: Fleet) -> None:
    windows = windows_of(2)
    any_fleet.take_in(windows[:80])
    any_fleet.merge_all()
    any_fleet.take_in(windows[60:100])
    any_fleet.take_in(windows[90:])
    assert_all_is_as_the_windows_are(any_fleet, windows, in_the_store=False)
    any_fleet.merge_all()
    assert_all_is_as_the_windows_are(any_fleet, windows, in_the_store=True)


def test_repeats_alone_mark_nothing(fleet: Fleet) -> None:
    windows = windows_of(3)
    fleet.take_in(windows)
    fleet.merge_all()
    fleet.take_in(windows[::-1])
    assert marks(fleet) == []


@settings(max_examples=8, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.permutations(range(24)),
    st.lists(st.sampled_from(["take in", "take in", "merge", "half", "read"]), min_size=6, max_size=16),
    st.randoms(use_true_random=False),
)
def test_any_interleaving_of_late_windows_and_merges_gives_the_same_series(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], deeds: list[str], rng: random.Random
) -> None:
    with open_fleet(tmp_path_factory.mktemp("fleet")) as fleet:
        windows = windows_of(4, count=24, hours=2)
        waiting = [windows[n] for n in order]
        taken: list[Window] = []
        merger = fleet.merger()
        for deed in [*deeds, "last"]:
            batch = waiting if deed == "last" else waiting[: rng.randrange(6)]
            if deed in ("take in", "last"):
                fleet.take_in([*batch, *rng.sample(taken, min(3, len(taken)))])
                taken += batch
                waiting = waiting[len(batch) :]
            elif deed == "half":
                fleet.store.write("home", batch)  # the process is killed before it counted them: they come again
                fleet.count(batch)
                taken += batch
                waiting = waiting[len(batch) :]
                fleet.take_in(batch)
            elif deed == "merge":
                fleet.clock.now_ns += rng.randrange(3_600) * 10**9
                merger.step()
            else:
                assert_all_is_as_the_windows_are(fleet, taken, in_the_store=False)
        fleet.merge_all(merger)
        assert_all_is_as_the_windows_are(fleet, windows, in_the_store=True)
        assert marks(fleet) == []


class Between:
    """A store that lets something happen after a read, before what was read is used."""

    def __init__(self, fleet: Fleet, deed: Any, *, after: str) -> None:
        self._store, self._deed, self._after = fleet.store, deed, after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def each_window(self, where: Slice) -> Iterator[Window]:
        found = list(self._store.each_window(where))
        self._happen("each_window" if where.devices is None else "each_window of devices")
        yield from found

    def write_merged(self, *arguments: Any) -> None:
        self._store.write_merged(*arguments)
        self._happen("write_merged")

    def _happen(self, where: str) -> None:
        if where == self._after and self._deed is not None:
            deed, self._deed = self._deed, None
            deed()


def with_store(fleet: Fleet, store: Any) -> Fleet:
    return replace(fleet, store=store)


@pytest.mark.parametrize("after", ["each_window", "write_merged"])
def test_a_window_that_comes_while_its_span_is_merged_is_merged_next_time(fleet: Fleet, after: str) -> None:
    windows = windows_of(5)
    fleet.take_in(windows[:100])
    between = Between(fleet, lambda: fleet.take_in(windows[100:]), after=after)
    fleet.merge_all(with_store(fleet, between).merger())
    assert_all_is_as_the_windows_are(fleet, windows, in_the_store=True)
    assert marks(fleet) == []


def test_a_window_inside_a_devices_range_that_comes_while_it_is_merged_is_merged_next_time(fleet: Fleet) -> None:
    early, inside, late = (window(sequence=n, end_ns=H0_NS - 60 * 10**9 + n) for n in (1, 2, 3))
    fleet.take_in([early, late])
    between = Between(fleet, lambda: fleet.take_in([inside]), after="each_window of devices")
    fleet.merge_all(with_store(fleet, between).merger())
    assert_all_is_as_the_windows_are(fleet, [early, inside, late], in_the_store=True)


def test_a_merger_that_was_paused_past_its_lease_does_not_leave_what_is_old(fleet: Fleet) -> None:
    windows = windows_of(6, count=20, hours=1)
    fleet.take_in(windows[:10])

    def meanwhile() -> None:
        fleet.take_in(windows[10:])
        fleet.merge_all()
        assert_all_is_as_the_windows_are(fleet, windows, in_the_store=True)

    paused = with_store(fleet, Between(fleet, meanwhile, after="each_window")).merger()
    fleet.clock.now_ns += HOUR_NS
    paused.step()
    assert marks(fleet) != []  # it lost the race and said so: its old sums are known to be old
    assert_all_is_as_the_windows_are(fleet, windows, in_the_store=False)
    fleet.merge_all()
    assert_all_is_as_the_windows_are(fleet, windows, in_the_store=True)


def test_one_of_several_mergers_works_and_another_goes_on_when_it_ends(fleet: Fleet) -> None:
    fleet.take_in(windows_of(7))
    fleet.clock.now_ns += HOUR_NS
    first, second = fleet.merger(), fleet.merger()
    first.step()
    before = fleet.stored(Grain.FLEET_MINUTE)
    fleet.take_in([window(sequence=9_999, end_ns=H0_NS - 5)])
    fleet.clock.now_ns += 60 * 10**9
    assert second.step() is False
    assert fleet.stored(Grain.FLEET_MINUTE) == before
    first.close()
    second.step()
    assert fleet.stored(Grain.FLEET_MINUTE) != before


def test_a_lease_ends_by_itself_when_its_holder_is_gone(fleet: Fleet) -> None:
    with fleet.engine.begin() as connection:
        assert take_lease(connection, "work", "a", now_ns=10, duration_ns=5)
        assert take_lease(connection, "work", "a", now_ns=12, duration_ns=5)
        assert not take_lease(connection, "work", "b", now_ns=17, duration_ns=5)
        assert take_lease(connection, "work", "b", now_ns=18, duration_ns=5)
        assert take_lease(connection, "other", "a", now_ns=18, duration_ns=5)


def test_a_minute_is_merged_a_grace_after_its_end_and_the_running_hour_of_devices_every_ten_minutes(
    fleet: Fleet,
) -> None:
    merger = fleet.merger()
    seconds = 10**9
    fleet.clock.now_ns = H0_NS + 20 * seconds
    merger.step()
    fleet.take_in([window(end_ns=H0_NS + 10 * seconds)])
    for at_s, minutes, devices in ((59, 0, 0), (64, 0, 0), (66, 1, 0), (500, 1, 0), (620, 1, 1)):
        fleet.clock.now_ns = H0_NS + at_s * seconds
        merger.step()
        found = len(fleet.stored(Grain.FLEET_MINUTE)), len(fleet.stored(Grain.DEVICE_HOUR))
        assert found == (minutes, devices), at_s
    assert fleet.stored(Grain.FLEET_HOUR) == []
    assert [one.windows for one in fleet.read(Grain.FLEET_HOUR)] == [1]


def test_cohorts_that_changed_are_all_replaced_when_their_span_is_merged_again(any_fleet: Fleet) -> None:
    any_fleet.label("dev-1", cohort="canary", site="lisbon")
    any_fleet.take_in([window(sequence=1, end_ns=H0_NS), window(device="dev-2", end_ns=H0_NS - 1)])

    def cohorts(grain: Grain) -> list[tuple[str, int]]:
        return [(one.key.cohort, one.windows) for one in any_fleet.read(grain)]

    any_fleet.merge_all()
    assert cohorts(Grain.FLEET_MINUTE) == cohorts(Grain.FLEET_HOUR) == [("", 1), ("canary", 1)]
    any_fleet.label("dev-1", cohort="b")
    any_fleet.label("dev-2", cohort="b")
    assert cohorts(Grain.FLEET_MINUTE) == [("", 1), ("canary", 1)]
    any_fleet.take_in([window(sequence=2, end_ns=H0_NS - 2)])
    assert cohorts(Grain.FLEET_MINUTE) == cohorts(Grain.FLEET_HOUR) == [("b", 3)]
    any_fleet.merge_all()
    assert cohorts(Grain.FLEET_MINUTE) == cohorts(Grain.FLEET_HOUR) == [("b", 3)]
    in_one = merged_windows(any_fleet.engine, any_fleet.store, replace(ALL_TIME, cohort="canary"), Grain.FLEET_MINUTE)
    assert list(in_one) == []


def test_a_slice_is_answered_alike_merged_or_not(any_fleet: Fleet) -> None:
    windows = windows_of(8)
    any_fleet.label("dev-3", cohort="canary")

    def answers() -> list[list[bytes]]:
        whole_hours = {"start_ns": H0_NS - 2 * HOUR_NS, "end_ns": H0_NS - HOUR_NS}
        narrowed: list[tuple[Grain, dict[str, Any]]] = [
            (Grain.FLEET_MINUTE, {"version": "1.1.0", "cohort": "canary"}),
            (Grain.FLEET_HOUR, {"version": "1.1.0", "arm": "main", "cohort": ""}),
            (Grain.FLEET_MINUTE, {"start_ns": H0_NS - 90 * MINUTE_NS + 1, "end_ns": H0_NS - 7 * MINUTE_NS}),
            (Grain.FLEET_HOUR, {**whole_hours, "variant": "int8-qdq-u8s8"}),
            (Grain.FLEET_HOUR, {"start_ns": H0_NS - 2 * HOUR_NS + 1, "end_ns": H0_NS - HOUR_NS + 1}),
            (Grain.DEVICE_HOUR, {**whole_hours, "devices": frozenset({"dev-1", "dev-3", "nobody"})}),
            (
                Grain.DEVICE_HOUR,
                {"start_ns": H0_NS - 2 * HOUR_NS + 1, "end_ns": H0_NS - HOUR_NS + 1, "model": "digits"},
            ),
            (Grain.DEVICE_HOUR, {"devices": frozenset()}),
        ]
        read = (any_fleet.engine, any_fleet.store)
        return [[pack(one) for one in merged_windows(*read, replace(ALL_TIME, **n), g)] for g, n in narrowed]

    any_fleet.take_in(windows)
    before = answers()
    any_fleet.merge_all()
    assert answers() == before
    assert [bool(found) for found in before] == [True] * 7 + [False]
    any_fleet.take_in([replace_end(one, n) for n, one in enumerate(windows[::9])])
    half_merged = answers()
    any_fleet.merge_all()
    assert answers() == half_merged != before


def replace_end(one: Window, n: int) -> Window:
    return window(device=one.device, version=one.version, sequence=10_000 + n, end_ns=one.end_ns)


def test_too_much_to_merge_on_the_fly_is_said_and_can_be_read_as_it_was_merged(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = windows_of(9)
    fleet.take_in(windows[:60])
    fleet.merge_all()
    fleet.take_in(windows[60:])
    monkeypatch.setattr(reading, "MAX_WINDOWS_ON_THE_FLY", 30)
    for grain in Grain:
        with pytest.raises(UnavailableError, match="not merged yet") as told:
            fleet.read(grain)
        assert told.value.retryable
        assert [pack(one) for one in fleet.read(grain, exact=False)] == expected(windows[:60], grain)
    with pytest.raises(InvalidRequestError):
        merged_windows(fleet.engine, fleet.store, replace(ALL_TIME, cohort="a"), Grain.DEVICE_HOUR)


def test_what_is_older_than_windows_are_kept_stays_as_it_was_merged(fleet: Fleet) -> None:
    windows = windows_of(10, hours=1)
    fleet.take_in(windows[:90])
    fleet.merge_all()
    fleet.clock.now_ns = H0_NS + RAW_RETENTION_S * 10**9
    fleet.take_in(windows[90:])
    fleet.merge_all()
    assert marks(fleet) == []
    assert [pack(one) for one in fleet.stored(Grain.FLEET_HOUR)] == expected(windows[:90], Grain.FLEET_HOUR)


def test_a_store_that_is_away_costs_time_and_nothing_else(fleet: Fleet) -> None:
    windows = windows_of(11)
    fleet.take_in(windows)
    fleet.clock.now_ns += HOUR_NS
    merger = with_store(fleet, Between(fleet, _fail, after="write_merged")).merger()
    with pytest.raises(StoreUnavailableError):
        merger.step()
    assert len(marks(fleet)) > 10
    fleet.merge_all(merger)
    assert_all_is_as_the_windows_are(fleet, windows, in_the_store=True)


def _fail() -> None:
    raise StoreUnavailableError("the store is away")


def test_a_backlog_is_merged_in_bounded_parts(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = windows_of(12, count=200, hours=9)
    fleet.take_in(windows)
    for name, value in (
        ("MINUTES_PER_STEP", 7),
        ("HOURS_PER_STEP", 2),
        ("DEVICES_PER_STEP", 2),
        ("WINDOWS_PER_READ", 3),
    ):
        monkeypatch.setattr(merger_module, name, value)
    monkeypatch.setattr("fleet_server.merging.spans.MAX_DEVICE_HOURS_PER_READ", 4)
    merger = fleet.merger()
    fleet.clock.now_ns += 2 * HOUR_NS
    steps = sum(1 for _ in iter(merger.step, False))
    assert steps > 10
    fleet.merge_all(merger)
    assert_all_is_as_the_windows_are(fleet, windows, in_the_store=True)
