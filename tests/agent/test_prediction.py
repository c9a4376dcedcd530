"""Predictions and the classes that win."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edge_agent.prediction import Prediction, winning_class
from edge_agent.telemetry.series import SeriesKey


def test_an_id_is_made_once_and_only_when_asked_for() -> None:
    made: list[int] = []

    def name_it(prediction: Prediction) -> str:
        made.append(prediction.number)
        return f"id-{len(made)}"

    prediction = Prediction(
        outputs={},
        made_by=SeriesKey("m", "1.0.0", "fp32", "main"),
        latency_us=1.0,
        label=None,
        class_index=None,
        number=7,
        name_it=name_it,
    )
    assert made == []

    assert [prediction.id, prediction.id] == ["id-1", "id-1"]
    assert made == [7]
    assert (prediction.model, prediction.version, prediction.variant, prediction.arm) == ("m", "1.0.0", "fp32", "main")


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
