"""Predictions and the classes that win."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edge_agent.prediction import Prediction, winning_class


def test_an_id_is_made_once_and_only_when_asked_for() -> None:
    made: list[int] = []

    def make_id() -> str:
        made.append(1)
        return f"id-{len(made)}"

    prediction = Prediction(
        outputs={},
        model="m",
        version="1.0.0",
        variant="fp32",
        arm="main",
        latency_us=1.0,
        label=None,
        class_index=None,
        make_id=make_id,
    )
    assert made == []

    assert [prediction.id, prediction.id] == ["id-1", "id-1"]


@pytest.mark.parametrize(
    ("scores", "winner"),
    [
        ([0.1, 0.9], (1, "b")),
        ([[0.9, 0.1]], (0, "a")),
        ([[[1, 5, 9]]], (2, None)),
        ([[0.1, 0.9], [0.9, 0.1]], (None, None)),
        ([[0.7]], (None, None)),
        (0.7, (None, None)),
        ([], (None, None)),
        ([[0.1, float("nan")]], (None, None)),
        ([["x", "y"]], (None, None)),
    ],
)
def test_a_class_wins_only_where_one_sample_has_several_scores(
    scores: Any, winner: tuple[int | None, str | None]
) -> None:
    assert winning_class(np.array(scores), ("a", "b")) == winner
