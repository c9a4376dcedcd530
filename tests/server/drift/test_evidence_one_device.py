"""One device: values are the unit, few of them keep the level too, and what comes close together counts as one."""

from __future__ import annotations

import numpy as np
import pytest

from fleet_protocol.bins import quantile_edges
from fleet_server.drift.evidence import one_device, one_device_over_time
from fleet_server.drift.evidence.values import SIMULATIONS
from tests.server.drift.fleets import ALPHA, Counts, Values, allowed, counted


def reference_of(random: np.random.Generator, size: int = 800) -> tuple[Counts, Values]:
    values = random.normal(size=size)
    edges = quantile_edges(values)
    return counted(values, edges), edges


def classes_of(random: np.random.Generator, size: int, gone: int | None = None) -> Counts:
    shares = np.full(10, 0.1)
    if gone is not None:
        shares[gone] = 0.0
    return random.multinomial(size, shares / shares.sum())


@pytest.mark.parametrize("values", [20, 200])
def test_independent_values_without_drift_keep_the_level(values: int) -> None:
    runs, of_numbers, of_classes = 120, 0, 0
    for seed in range(runs):
        random = np.random.default_rng(1_000 + seed)
        reference, edges = reference_of(random)
        window = counted(random.normal(size=values), edges)[None, :]
        of_numbers += one_device(window, reference, edges=edges, effects=False).p_value <= ALPHA
        seen, expected = classes_of(random, values)[None, :], classes_of(random, 500)
        of_classes += one_device(seen, expected, edges=None, effects=False).p_value <= ALPHA
    assert of_numbers / runs <= allowed(runs)
    assert of_classes / runs <= allowed(runs)


def test_a_class_that_is_gone_is_found_in_a_hundred_values() -> None:
    for seed in range(20):
        random = np.random.default_rng(seed)
        seen, expected = classes_of(random, 100, gone=3)[None, :], classes_of(random, 500)
        assert one_device(seen, expected, edges=None, effects=False).p_value <= 0.01


def test_a_shift_is_found_with_its_size_and_far_below_what_was_simulated() -> None:
    random = np.random.default_rng(2)
    reference, edges = reference_of(random)
    found = one_device(counted(random.normal(1.0, size=200), edges)[None, :], reference, edges=edges)
    assert found.p_value < 0.1 / SIMULATIONS
    assert found.design_effect == 1.0
    assert found.shift_interval is not None
    assert found.shift_interval.lower < 0.26 < found.shift_interval.upper  # of two normals a deviation apart
    assert found.effect.shift_sd == pytest.approx(1.0, abs=0.25)
    assert found.effect.psi_p_value == pytest.approx(1 / (SIMULATIONS + 1))


def scenes(random: np.random.Generator, *, windows: int, length: int) -> list[Values]:
    """Windows of a camera that looks at one scene for `length` of them; a scene says nearly all of a value."""
    places = np.repeat(random.normal(size=windows // length + 2), length)[random.integers(length) :][:windows]
    return [0.95 * place + 0.31 * random.normal(size=50) for place in places]


@pytest.mark.parametrize("length", [1, 5, 60, 1_000])
def test_a_camera_that_looks_at_one_scene_for_long_raises_no_alarm(length: int) -> None:
    runs, alarms = 40, 0
    for seed in range(runs):
        random = np.random.default_rng(1_000 + seed)
        reference, edges = reference_of(random)
        windows = np.array([counted(values, edges) for values in scenes(random, windows=60, length=length)])
        found = one_device(windows, reference, edges=edges, effects=False)
        assert found.design_effect is not None
        assert found.design_effect > 5
        alarms += found.p_value <= ALPHA
    assert alarms / runs <= allowed(runs)


def test_neighbouring_windows_that_are_alike_are_worth_fewer_values() -> None:
    runs, alarms = 80, 0
    for seed in range(runs):
        random = np.random.default_rng(seed)
        reference, edges = reference_of(random)
        place, windows = random.normal(), []
        for _ in range(60):
            place = 0.5 * place + np.sqrt(0.75) * random.normal()
            windows.append(counted(np.sqrt(0.3) * place + np.sqrt(0.7) * random.normal(size=20), edges))
        alarms += one_device(np.array(windows), reference, edges=edges, effects=False).p_value <= ALPHA
    assert alarms / runs <= allowed(runs)


def test_independent_windows_lose_little() -> None:
    random = np.random.default_rng(3)
    reference, edges = reference_of(random)
    windows = np.array([counted(random.normal(0.3, size=20), edges) for _ in range(60)])
    found = one_device(windows, reference, edges=edges)
    assert found.design_effect is not None
    assert found.design_effect < 2
    assert found.p_value < 0.001
    assert one_device(windows, reference, edges=edges, independent=True).design_effect == 1.0


def test_a_devices_own_past_keeps_the_level_and_shows_its_change() -> None:
    runs, alarms = 60, 0
    for seed in range(runs):
        random = np.random.default_rng(seed)
        _, edges = reference_of(random)
        habit = random.normal()  # its own, on both sides
        before, after = (
            np.array([counted(random.normal(habit + moved, size=30), edges) for _ in range(24)]) for moved in (0.0, 0.5)
        )
        alarms += one_device_over_time(before[:12], before[12:], edges=edges, effects=False).p_value <= ALPHA
        assert one_device_over_time(after, before, edges=edges, effects=False).p_value < 0.01
    assert alarms / runs <= allowed(runs)


def test_a_camera_that_was_turned_has_changed() -> None:
    random = np.random.default_rng(9)
    _, edges = reference_of(random)
    before, after = (
        np.array([counted(random.normal(place, 0.2, size=30), edges) for _ in range(24)]) for place in (-0.5, 0.5)
    )
    assert one_device_over_time(after, before, edges=edges).p_value < 1e-4


def test_too_few_windows_to_tell_dependence_say_nothing_over_time() -> None:
    windows = np.array([[90, 10]] * 5)
    assert one_device_over_time(windows, windows[:, ::-1], edges=None).p_value == 1


def test_nothing_that_could_differ_gives_no_evidence() -> None:
    nothing = np.zeros((1, 3), dtype=np.int64)
    assert one_device(nothing, np.array([5, 5, 5]), edges=None).p_value == 1
    assert one_device(np.array([[7, 0, 0]]), np.zeros(3, dtype=np.int64), edges=None).p_value == 1
    assert one_device(np.array([[9]]), np.array([9]), edges=None).p_value == 1
