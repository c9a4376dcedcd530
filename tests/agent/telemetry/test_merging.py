"""Merged windows: the sketch of all values, in whatever order, and never more than one window may tell."""

from __future__ import annotations

import random
from functools import reduce
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.telemetry.merging import merge_windows, same_series
from fleet_protocol.bins import BinSketch
from fleet_protocol.embedding_sums import MAX_SUM, decode_sums, encode_sums
from fleet_protocol.errors import SketchError
from fleet_protocol.histogram import BUCKETS, LatencyHistogram
from fleet_protocol.messages import EstimatedAccuracy, Outcomes, ShadowAgreement, Window, decode, encode
from fleet_protocol.varint import MAX_COUNT, encode_sparse
from tests.agent.telemetry.windows import window

EDGES = [0.0, 0.25, 0.5, 0.75, 1.0]
VALUES = st.lists(st.floats(-0.5, 1.5), max_size=20)
SUMS = st.lists(st.integers(-(2**40), 2**40), min_size=8, max_size=8)


@st.composite
def told(draw: st.DrawFn) -> tuple[list[float], list[int], Window]:
    """Values, embedding sums, and a window over them."""
    values, sums = draw(VALUES), draw(SUMS)
    sketch, score = BinSketch(EDGES), BinSketch(EDGES)
    sketch.record_many(values)
    score.record_many(values[::-1])
    return values, sums, window(
        draw(st.integers(1, 10**6)),
        count=len(values),
        latency=LatencyHistogram.of([abs(value) * 1e4 for value in values]).to_bytes(),
        features={"f": sketch.to_bytes()},
        score=score.to_bytes(),
        classes={int(value > 0.5): 1 for value in values[:1]},
        errors={"inference": len(values)} if len(values) % 2 else {},
        embedding_count=len(values),
        embedding_sums=encode_sums(np.array(sums)),
        shadow=ShadowAgreement(compared=len(values)) if values else None,
        outcomes=Outcomes(correct=len(values)) if len(values) % 3 else None,
        estimated_accuracy=EstimatedAccuracy(count=len(values), confidence_sum=float(len(values))),
    )  # fmt: skip


def sums_of(merged: Window) -> object:
    """Everything of a window that adds up."""
    names = (
        "count", "errors", "latency", "features", "score", "classes", "embedding_count", "embedding_sums", "shadow",
        "outcomes", "estimated_accuracy",
    )  # fmt: skip
    return {name: getattr(merged, name) for name in names}


@settings(max_examples=60)
@given(parts=st.lists(told(), min_size=2, max_size=6), seed=st.integers(0, 10**6))
def test_any_order_and_any_bracketing_of_merging_gives_the_sketch_of_all_values(
    parts: list[tuple[list[float], list[int], Window]], seed: int
) -> None:
    windows = [one for _, _, one in parts]
    in_order = reduce(merge_windows, windows)
    shuffled = random.Random(seed)
    bag = list(windows)
    while len(bag) > 1:  # any bracketing: two of them, until one is left
        shuffled.shuffle(bag)
        bag.append(merge_windows(bag.pop(), bag.pop()))

    everything = BinSketch(EDGES)
    everything.record_many([value for values, _, _ in parts for value in values])
    latencies = LatencyHistogram.of([abs(value) * 1e4 for values, _, _ in parts for value in values])

    assert sums_of(bag[0]) == sums_of(in_order)
    assert in_order.features["f"] == in_order.score == everything.to_bytes()
    assert in_order.latency == latencies.to_bytes()
    assert decode_sums(in_order.embedding_sums).tolist() == np.sum([sums for _, sums, _ in parts], axis=0).tolist()
    assert decode(Window, encode(in_order)) == in_order


@given(one=told(), other=told())
def test_a_merge_is_commutative_in_its_sums(
    one: tuple[list[float], list[int], Window], other: tuple[list[float], list[int], Window]
) -> None:
    assert sums_of(merge_windows(one[2], other[2])) == sums_of(merge_windows(other[2], one[2]))


def test_a_window_without_an_embedding_adds_nothing_to_one_that_has_it() -> None:
    sums = encode_sums(np.array([1, -2, 3]))
    merged = merge_windows(window(1, embedding_count=4, embedding_sums=sums), window(2))

    assert (merged.embedding_count, merged.embedding_sums) == (4, sums)


@pytest.mark.parametrize(
    "changes",
    [
        {"count": MAX_COUNT},
        {"classes": {1: MAX_COUNT}},
        {"errors": {"inference": MAX_COUNT}},
        {"latency": encode_sparse(np.eye(1, BUCKETS, 5, dtype=np.int64)[0] * MAX_COUNT)},
        {"features": {"f": b"\x00" + b"\x80" * 6 + b"\x40"}},
        {"embedding_count": 1, "embedding_sums": encode_sums(np.array([0, -MAX_SUM]))},
        {"outcomes": Outcomes(correct=MAX_COUNT)},
        {"outcomes": Outcomes(squared_error_sum=1.7e308, squared_error_count=1)},
        {"estimated_accuracy": EstimatedAccuracy(count=1, confidence_sum=1.7e308)},
        {"shadow": ShadowAgreement(compared=MAX_COUNT)},
    ],
)
def test_what_would_exceed_a_limit_of_the_protocol_is_not_merged(changes: dict[str, Any]) -> None:
    full = window(1, **changes)
    assert decode(Window, encode(full)) == full

    with pytest.raises(SketchError):
        merge_windows(full, window(2, **changes))


def test_embeddings_of_different_widths_are_not_merged() -> None:
    narrow = window(1, embedding_count=1, embedding_sums=encode_sums(np.array([1, 2])))
    wide = window(2, embedding_count=1, embedding_sums=encode_sums(np.array([1, 2, 3])))

    with pytest.raises(SketchError, match="features"):
        merge_windows(narrow, wide)


@pytest.mark.parametrize("changes", [{"arm": "b"}, {"version": "2.0.0"}, {"variant": "x"}, {"features": {"g": b""}}])
def test_windows_of_different_series_are_not_merged(changes: dict[str, Any]) -> None:
    assert not same_series(window(1), window(2, **changes))
    with pytest.raises(SketchError, match="series"):
        merge_windows(window(1), window(2, **changes))
