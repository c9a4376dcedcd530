"""Devices against devices: exact for few, honest for unequal ones, and stronger in pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fleet_server.drift.evidence import between_devices, paired_devices
from fleet_server.drift.evidence.exchanging import MAX_EXCHANGED, METHOD_MANY, exchange_labels
from fleet_server.errors import InvalidRequestError
from tests.server.drift.fleets import ALPHA, NumberFleet, allowed


def test_two_slices_of_one_fleet_differ_no_more_often_than_stated() -> None:
    runs, alarms = 100, 0
    for seed in range(runs):
        fleet = NumberFleet(seed, effects="exponential")
        found = between_devices(fleet.counts(6), fleet.counts(25), edges=fleet.edges, alpha=ALPHA, effects=False)
        alarms += found.p_value <= ALPHA
    assert alarms / runs <= allowed(runs)


def test_the_same_devices_a_week_later_differ_no_more_often_than_stated() -> None:
    runs, alarms = 150, 0
    for seed in range(runs):
        fleet = NumberFleet(100 + seed, spread=1.0)
        habits = fleet.habits(9)
        weeks = (fleet.counts(9, habits=habits), fleet.counts(9, habits=habits))
        alarms += paired_devices(*weeks, edges=fleet.edges, alpha=ALPHA, effects=False).p_value <= ALPHA
    assert alarms / runs <= allowed(runs)


def test_pairs_find_what_strangers_do_not() -> None:
    runs, paired, between = 20, 0, 0
    for seed in range(runs):
        fleet = NumberFleet(seed, spread=1.0)
        habits = fleet.habits(12)
        before, after = fleet.counts(12, habits=habits), fleet.counts(12, habits=habits, moved=0.6)
        paired += paired_devices(after, before, edges=fleet.edges, alpha=ALPHA).p_value <= 0.01
        between += between_devices(after, before, edges=fleet.edges, alpha=ALPHA).p_value <= 0.01
    assert paired >= 16
    assert between <= 10


def test_few_devices_give_the_exact_share_of_relabellings() -> None:
    low, high = np.array([[90, 10]] * 4), np.array([[10, 90]] * 4)
    assert between_devices(high, low, edges=None).p_value == pytest.approx(2 / math.comb(8, 4))
    changes = np.array([[60, 40], [70, 30], [80, 20], [90, 10]])
    assert paired_devices(changes, np.full((4, 2), 50), edges=None).p_value == pytest.approx(2 / 2**4)


def test_swapping_the_sides_turns_the_shift_and_keeps_the_evidence() -> None:
    fleet = NumberFleet(3)
    seen, expected = fleet.counts(20, moved=0.4), fleet.counts(15)
    there = between_devices(seen, expected, edges=fleet.edges)
    back = between_devices(expected, seen, edges=fleet.edges)
    assert there.shift == pytest.approx(-(back.shift or 0.0))
    assert there.p_value == pytest.approx(back.p_value, abs=0.02)


def test_a_p_value_below_what_relabelling_can_tell_comes_from_the_law() -> None:
    fleet = NumberFleet(4)
    found = between_devices(fleet.counts(60, moved=1.5), fleet.counts(60), edges=fleet.edges)
    assert found.p_value < 1e-6
    assert found.e_value > 1e4


def test_many_devices_are_judged_by_the_law() -> None:
    random = np.random.default_rng(0)
    size = MAX_EXCHANGED // 2 + 1
    sides = [random.multinomial(40, [0.5, 0.3, 0.2], size=size) for _ in range(2)]
    found = between_devices(*sides, edges=None)
    assert found.method == METHOD_MANY
    assert found.p_value > 0.001
    moved = random.multinomial(40, [0.45, 0.33, 0.22], size=size)
    assert between_devices(moved, sides[0], edges=None).p_value < 1e-9
    assert paired_devices(np.tile(moved, (2, 1)), np.tile(sides[0], (2, 1)), edges=None).p_value < 1e-9


def test_one_device_is_held_against_the_spread_of_its_peers() -> None:
    fleet = NumberFleet(6)
    peers = fleet.counts(60)
    usual = between_devices(peers[:1], peers[1:], edges=fleet.edges)
    odd = between_devices(fleet.counts(1, moved=4.0), peers, edges=fleet.edges)
    assert usual.p_value > 0.05
    assert odd.p_value == pytest.approx(1 / 61)


def test_the_same_seed_gives_the_same_answer() -> None:
    fleet = NumberFleet(7)
    sides = fleet.counts(20), fleet.counts(20)
    assert between_devices(*sides, edges=fleet.edges, seed=5) == between_devices(*sides, edges=fleet.edges, seed=5)


def test_sides_that_could_not_differ_or_do_not_fit() -> None:
    same = np.array([[5, 5]] * 4)
    assert between_devices(same, same, edges=None).p_value == 1
    assert paired_devices(same, same, edges=None).p_value == 1
    assert between_devices(same[:0], same, edges=None).p_value == 1
    with pytest.raises(InvalidRequestError, match="same devices"):
        paired_devices(same, same[:3], edges=None)
    with pytest.raises(InvalidRequestError):
        between_devices(same, np.array([[5, 5, 5]]), edges=None)


def test_sides_that_differ_in_spread_alone_are_no_difference_of_means() -> None:
    random, runs, alarms = np.random.default_rng(8), 300, 0
    for _ in range(runs):
        few, many = random.normal(0, 3.0, (10, 1)), random.normal(0, 1.0, (60, 1))
        alarms += exchange_labels(few, many, seed=1)[0] <= ALPHA
    assert alarms / runs <= allowed(runs)
