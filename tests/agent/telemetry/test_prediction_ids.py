"""Prediction ids: what an outcome needs comes back, and nothing else passes for one."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.errors import UnknownPredictionError
from edge_agent.telemetry.prediction_ids import PredictionId, decode_prediction_id, encode_prediction_id

PARTS: dict[str, Any] = {
    "boot_id": "00000001-0000abcd", "number": 7, "model": "m", "version": "1.0.0", "variant": "fp32", "arm": "main",
    "predicted_class": 3, "predicted_label": "three", "predicted_value": None,
}  # fmt: skip
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


@settings(deadline=None)
@given(
    number=st.integers(0, 2**63 - 1),
    predicted_class=st.none() | st.integers(0, 10**6),
    label=st.none() | TEXT,
    value=st.none() | st.floats(allow_nan=False),
)
def test_an_id_gives_back_its_parts(
    number: int, predicted_class: int | None, label: str | None, value: float | None
) -> None:
    parts = PARTS | {
        "number": number, "predicted_class": predicted_class, "predicted_label": label, "predicted_value": value
    }  # fmt: skip

    assert decode_prediction_id(encode_prediction_id(**parts)) == PredictionId(form=1, **parts)


def test_the_longest_names_still_fit_into_an_id() -> None:
    parts = PARTS | {
        "model": "m" * 64, "variant": "v" * 64, "arm": "a" * 64, "version": "9.9.9-" + "r" * 40,
        "predicted_label": "ü" * 500,
    }  # fmt: skip

    assert decode_prediction_id(encode_prediction_id(**parts)).predicted_label == "ü" * 500


def test_a_label_too_long_for_an_id_is_left_out_and_the_class_stays() -> None:
    made = decode_prediction_id(encode_prediction_id(**PARTS | {"predicted_label": "x" * 100_000}))

    assert (made.predicted_class, made.predicted_label) == (3, None)


@settings(deadline=None)
@given(text=st.text(max_size=100) | st.binary(max_size=100).map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
def test_any_other_text_is_an_unknown_prediction(text: str) -> None:
    with pytest.raises(UnknownPredictionError):
        decode_prediction_id(text)


@pytest.mark.parametrize("text", ["", "=", "A" * 10**6, "ü", encode_prediction_id(**PARTS)[:-4]])
def test_a_damaged_id_is_an_unknown_prediction(text: str) -> None:
    with pytest.raises(UnknownPredictionError):
        decode_prediction_id(text)


@pytest.mark.parametrize("changes", [{"model": "../x"}, {"version": "1"}, {"arm": ""}, {"boot_id": "x"}])
def test_an_id_with_names_that_no_server_takes_is_an_unknown_prediction(changes: dict[str, str]) -> None:
    with pytest.raises(UnknownPredictionError):
        decode_prediction_id(encode_prediction_id(**PARTS | changes))
