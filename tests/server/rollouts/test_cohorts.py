"""Who is in a stage: sticky, stratified, stable."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_server.rollouts import cohorts as cohorts_room
from fleet_server.rollouts.cohorts import (
    control_devices,
    draw_cohorts,
    exposure_order,
    position,
    stage_devices,
    stage_size,
)
from fleet_server.rollouts.policy import ControlPolicy, Stage

_FLEETS = st.dictionaries(
    st.integers(0, 10_000).map(lambda number: f"device-{number}"),
    st.sampled_from(["x86_64:avx2", "aarch64:asimd", "armv7", ""]),
    max_size=80,
)
_PERCENTS = st.floats(0.01, 100)


def _percent(percent: float) -> Stage:
    return Stage(percent=percent, bake_s=1.0)


@given(_FLEETS, _PERCENTS, _PERCENTS, st.text(max_size=8))
def test_a_growing_percentage_only_adds_devices(fleet: dict[str, str], a: float, b: float, salt: str) -> None:
    small, large = sorted((a, b))
    assert set(stage_devices(fleet, _percent(small), salt)) <= set(stage_devices(fleet, _percent(large), salt))


@given(_FLEETS, _PERCENTS)
def test_a_percentage_rounds_up_to_at_least_one_and_at_most_all(fleet: dict[str, str], percent: float) -> None:
    chosen = stage_devices(fleet, _percent(percent), "salt")
    assert len(chosen) == len(set(chosen)) <= len(fleet)
    assert len(chosen) >= len(fleet) * percent / 100 - 1e-6
    assert bool(chosen) == bool(fleet)
    assert set(stage_devices(fleet, _percent(100), "salt")) == set(fleet)


def test_rounding_up_does_not_add_a_device_for_a_binary_fraction() -> None:
    assert [stage_size(1000, _percent(percent)) for percent in (0.1, 7, 14.1, 0.05)] == [1, 70, 141, 1]
    assert stage_size(3, Stage(count=10, bake_s=1)) == 3


@given(_FLEETS, st.sets(st.integers(0, 10_000), max_size=10), _PERCENTS)
def test_whoever_is_exposed_stays_and_counts_towards_the_stage(
    fleet: dict[str, str], numbers: set[int], percent: float
) -> None:
    exposed = {f"device-{number}" for number in numbers} & set(fleet)
    chosen = stage_devices(fleet, _percent(percent), "salt", exposed)
    assert exposed <= set(chosen)
    assert len(chosen) == max(len(exposed), stage_size(len(fleet), _percent(percent)))


@given(_FLEETS, st.sampled_from(["x86_64:avx2", "riscv"]), _PERCENTS)
def test_a_device_that_joins_moves_at_most_a_few_others_per_class(
    fleet: dict[str, str], hardware: str, percent: float
) -> None:
    before = set(stage_devices(fleet, _percent(percent), "salt"))
    grown = {**fleet, "newcomer": hardware}
    after = set(stage_devices(grown, _percent(percent), "salt"))
    classes = len(set(grown.values()))
    assert len(before - after) <= classes
    assert len(after - before - {"newcomer"}) <= classes + 1


def test_every_hardware_class_has_its_share_of_every_stage() -> None:
    fleet = {f"x{n}": "x86_64" for n in range(600)} | {f"a{n}": "aarch64" for n in range(300)} | {"r0": "riscv"}
    for percent in (1, 5, 10, 50):
        chosen = Counter(fleet[device] for device in stage_devices(fleet, _percent(percent), "salt"))
        assert abs(chosen["x86_64"] - 600 * percent / 100) <= 2
        assert abs(chosen["aarch64"] - 300 * percent / 100) <= 2


def test_positions_are_spread_evenly_and_another_salt_chooses_others_first() -> None:
    places = [position(f"device-{n}", "salt") for n in range(4000)]
    assert all(0 <= place < 1 for place in places)
    assert all(abs(count - 400) < 100 for count in Counter(int(place * 10) for place in places).values())
    fleet = {f"device-{n}": "" for n in range(1000)}
    first, other = (set(exposure_order(fleet, salt)[:100]) for salt in ("one", "two"))
    assert len(first & other) < 30


def test_the_place_of_a_device_is_the_same_everywhere() -> None:
    """Two servers, or one after an upgrade, must agree: the hash is part of the contract."""
    assert position("device-1", "salt") == 0.7399132980249886


@given(_FLEETS, _PERCENTS, st.floats(0, 50), st.sets(st.integers(0, 10_000), max_size=10))
def test_control_is_in_no_stage_and_whoever_is_exposed_is_no_control(
    fleet: dict[str, str], percent: float, control_percent: float, numbers: set[int]
) -> None:
    exposed = {f"device-{number}" for number in numbers} & set(fleet)
    control = control_devices(fleet, ControlPolicy(percent=control_percent), "salt", exposed=exposed)
    assert len(control) == len(set(control)) <= len(fleet) * control_percent / 100 + 1e-6
    assert not set(control) & exposed
    chosen = stage_devices(fleet, _percent(percent), "salt", exposed, set(control))
    assert not set(control) & set(chosen)
    last = stage_devices(fleet, _percent(100), "salt", exposed, set(control))
    assert set(last) | set(control) == set(fleet)


@given(_FLEETS, st.floats(1, 50))
def test_whoever_is_held_stays_control_as_long_as_it_is_selected(fleet: dict[str, str], percent: float) -> None:
    control = ControlPolicy(percent=percent)
    held = set(control_devices(fleet, control, "salt"))
    assert held <= set(control_devices({**fleet, "newcomer": "riscv"}, control, "salt", held=held))
    assert set(control_devices(fleet, ControlPolicy(percent=0), "salt", held=held)) == held
    fewer = {device: hardware for device, hardware in fleet.items() if device != min(held, default="")}
    assert held & set(fewer) <= set(control_devices(fewer, control, "salt", held=held))


@given(_FLEETS, _PERCENTS, st.floats(0, 50))
def test_a_plan_draws_the_cohorts_that_the_rollout_will_have(
    fleet: dict[str, str], percent: float, control_percent: float
) -> None:
    policy = ControlPolicy(percent=control_percent)
    cohorts = draw_cohorts(fleet, policy, "salt")
    assert list(cohorts.control) == control_devices(fleet, policy, "salt")
    expected = stage_devices(fleet, _percent(percent), "salt", control=set(cohorts.control))
    assert list(cohorts.stage(_percent(percent))) == expected


def test_a_handful_of_devices_has_no_control() -> None:
    fleet = {f"device-{n}": "" for n in range(9)}
    assert control_devices(fleet, ControlPolicy(), "salt") == []


def test_control_is_neither_the_early_nor_the_late_devices_and_has_every_hardware() -> None:
    fleet = {f"device-{n}": ("x86_64", "aarch64", "armv7")[n % 3] for n in range(3000)}
    control = control_devices(fleet, ControlPolicy(percent=10), "salt")
    assert Counter(fleet[device] for device in control) == {"x86_64": 100, "aarch64": 100, "armv7": 100}
    order = {device: place for place, device in enumerate(exposure_order(fleet, "salt"))}
    middle = sum(order[device] for device in control) / len(control) / len(fleet)
    assert abs(middle - 0.5) < 0.06


def test_equal_places_are_ordered_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """53 bits hardly ever collide; when they do, two servers must still agree."""
    monkeypatch.setattr(cohorts_room, "_places", lambda digests, _: np.zeros(len(digests)))
    fleet = dict(zip("dbeca", "xyxyx", strict=True))
    backwards = dict(reversed(fleet.items()))
    assert exposure_order(fleet, "s") == exposure_order(backwards, "s")
    assert [name for name in exposure_order(fleet, "s") if fleet[name] == "x"] == ["a", "d", "e"]
