"""The choice of an arm: sticky for a key, true to the weights, and moved as little as possible."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.runtime.arms import Arm, choose_arm

WEIGHTS = st.floats(0.01, 100)
NAMES = st.text("abcdefghij-_0123456789", min_size=1, max_size=8)
ARMS = st.dictionaries(NAMES, WEIGHTS, min_size=2, max_size=6)
KEYS = st.lists(st.text(max_size=20), min_size=1, max_size=40)
BEYOND_CHANCE = 5.0
"""Standard errors: one in two million."""


def arms_of(weights: dict[str, float]) -> list[Arm]:
    return [Arm(name=name, weight=weight) for name, weight in weights.items()]


def chosen(weights: dict[str, float], key: str, salt: str = "kws") -> str:
    arms = arms_of(weights)
    return arms[choose_arm(arms, key, salt=salt)].name


@given(ARMS, KEYS, st.randoms(use_true_random=False))
def test_a_key_meets_the_same_arm_in_whatever_order_the_arms_are_listed(
    weights: dict[str, float], keys: list[str], rng: random.Random
) -> None:
    shuffled = dict(rng.sample(list(weights.items()), len(weights)))

    for key in keys:
        assert chosen(weights, key) == chosen(weights, key) == chosen(shuffled, key)


@given(ARMS, KEYS, st.floats(1.0, 10.0), st.data())
def test_raising_a_weight_moves_keys_to_that_arm_only(
    weights: dict[str, float], keys: list[str], factor: float, data: st.DataObject
) -> None:
    raised = data.draw(st.sampled_from(sorted(weights)))
    after = weights | {raised: weights[raised] * factor}

    for key in keys:
        assert chosen(after, key) in (chosen(weights, key), raised)


@given(ARMS, KEYS, st.data())
def test_taking_an_arm_away_moves_its_own_keys_only(
    weights: dict[str, float], keys: list[str], data: st.DataObject
) -> None:
    gone = data.draw(st.sampled_from(sorted(weights)))
    after = {name: weight for name, weight in weights.items() if name != gone}

    for key in keys:
        before = chosen(weights, key)
        if before != gone:
            assert chosen(after, key) == before


@given(ARMS, KEYS, st.integers(-8, 8))
def test_scaling_every_weight_moves_no_key(weights: dict[str, float], keys: list[str], power: int) -> None:
    scaled = {name: weight * 2.0**power for name, weight in weights.items()}

    for key in keys:
        assert chosen(scaled, key) == chosen(weights, key)


@pytest.mark.parametrize("weights", [{"a": 0.8, "b": 0.2}, {"main": 1.0, "b": 1.0, "c": 2.0}, {"a": 1.0, "b": 0.01}])
@pytest.mark.parametrize("keyed", [True, False])
def test_the_shares_are_those_of_the_weights(weights: dict[str, float], keyed: bool) -> None:
    calls, total = 20_000, sum(weights.values())
    draw = random.Random(7).random
    arms = arms_of(weights)

    counts = Counter(
        arms[choose_arm(arms, f"user-{number}" if keyed else None, salt="kws", draw=draw)].name
        for number in range(calls)
    )

    for name, weight in weights.items():
        share = weight / total
        assert abs(counts[name] - calls * share) < BEYOND_CHANCE * math.sqrt(calls * share * (1 - share)), counts


def test_the_choices_of_two_models_are_independent() -> None:
    weights = {"a": 1.0, "b": 1.0}

    same = sum(chosen(weights, str(user), "kws") == chosen(weights, str(user), "vww") for user in range(10_000))

    assert abs(same - 5_000) < BEYOND_CHANCE * 50


@settings(max_examples=20)
@given(st.text(st.characters(codec=None), max_size=5))
def test_any_text_is_a_key(key: str) -> None:
    assert chosen({"a": 1.0, "b": 1.0}, key + "\ud800") in ("a", "b")


@pytest.mark.parametrize("uniform", [0.0, 0.5, math.nextafter(1.0, 0.0), 1.0])
def test_every_draw_gives_an_arm(uniform: float) -> None:
    arms = arms_of({"a": 0.1, "b": 0.2, "c": 1e-300})

    assert 0 <= choose_arm(arms, None, salt="", draw=lambda: uniform) < 3


def test_a_lone_arm_answers_without_a_draw() -> None:
    def draw() -> float:
        raise AssertionError("drawn")

    assert choose_arm(arms_of({"only": 0.2}), None, salt="", draw=draw) == 0
