"""A bad sketch costs itself, not the rest of its window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_protocol.bins import BinSketch
from fleet_protocol.embedding_sums import FEATURE_SCALE, encode_sums
from fleet_protocol.errors import SketchError
from fleet_protocol.histogram import BUCKETS
from fleet_protocol.messages import Window
from fleet_protocol.varint import append_varint, decode_sparse
from fleet_server.ingest.batch_checks import Checked, check_windows
from fleet_server.ingest.checks import FILE_VARIANT, Facts, Reason, Reference, span_at
from fleet_server.telemetry_store.sketches import MAX_WINDOW_COUNT
from tests.server.telemetry_store.windows import T0_NS, latency_of, window

NOW = span_at(T0_NS, raw_retention_s=86_400)
EDGES = [0.0, 1.0, 2.0, 3.0]
PLACES = len(EDGES) - 1 + 5
REFERENCE = Reference(
    variants=frozenset({"int8-qdq-u8s8"}),
    features={"brightness": PLACES, "contrast": PLACES},
    score_places=PLACES,
    classes=10,
    embedding_features=4,
)
KNOWN = Facts(is_published=True, was_assigned=True, reference=REFERENCE)


def sketch(*values: float, edges: Sequence[float] = EDGES) -> bytes:
    """Wire bytes of these values over the reference's bins."""
    made = BinSketch(list(edges))
    made.record_many(list(values))
    return made.to_bytes()


def check(*windows: Window, facts: Facts = KNOWN) -> Checked:
    """What the checks make of a batch."""
    return check_windows(windows, lambda _window: facts, NOW)


def reasons(checked: Checked) -> list[Reason]:
    """Why sketches were left out."""
    return [dropped.fault.reason for dropped in checked.dropped]


GOOD: dict[str, Any] = {
    "features": {"brightness": sketch(0.5, 2.5), "contrast": sketch(-1.0, float("nan"))},
    "score": sketch(0.2),
    "classes": {0: 1, 9: 2},
    "embedding_count": 2,
    "embedding_sums": encode_sums(np.array([-8, 8, 0, 5])),
    "queue_wait": latency_of(1.0, 1.0, 1.0),
}


def test_a_window_that_fits_its_reference_is_kept_as_it_came() -> None:
    good = window(**GOOD)
    checked = check(good)
    assert checked.kept == checked.originals == [good]
    assert checked.dropped == [] and checked.set_aside == []


def test_one_torn_feature_costs_that_feature_alone() -> None:
    features = {**GOOD["features"], "contrast": b"\x00\x80"}
    checked = check(window(**{**GOOD, "features": features}), window(sequence=2, **GOOD))
    assert [list(kept.features) for kept in checked.kept] == [["brightness"], ["brightness", "contrast"]]
    assert checked.kept[0].score == GOOD["score"] and checked.kept[0].count == 3
    assert [(d.device, d.fault.reason) for d in checked.dropped] == [("dev-1", Reason.SKETCH_UNREADABLE)]
    assert "contrast" in checked.dropped[0].fault.detail


def test_bins_that_do_not_match_the_reference_are_left_out() -> None:
    wider = sketch(12.5, edges=[float(edge) for edge in range(20)])
    changes = {"features": {"brightness": wider, "unheard_of": sketch(1.0), "contrast": sketch(1.0)}, "score": wider}
    checked = check(window(**{**GOOD, **changes}))
    [kept] = checked.kept
    assert (list(kept.features), kept.score) == (["contrast"], b"")
    assert reasons(checked) == [Reason.SKETCH_MISMATCH] * 3


def test_classes_that_the_reference_does_not_have_are_left_out() -> None:
    checked = check(window(classes={0: 5, 10: 1}), window(sequence=2, classes={-1: 1}))
    assert [kept.classes for kept in checked.kept] == [{}, {}]
    assert reasons(checked) == [Reason.SKETCH_MISMATCH] * 2


def test_a_count_that_no_sum_can_hold_is_left_out() -> None:
    blob = bytearray()
    append_varint(blob, MAX_WINDOW_COUNT + 1)
    checked = check(window(**{**GOOD, "score": bytes(blob)}))
    assert checked.kept[0].score == b"" and reasons(checked) == [Reason.SKETCH_UNREADABLE]


def test_embedding_sums_are_held_against_the_reference_and_their_samples() -> None:
    impossible = encode_sums(np.array([2 * FEATURE_SCALE + 1, 0, 0, 0]))
    for sums, reason in (
        (encode_sums(np.array([1, 2, 3])), Reason.SKETCH_MISMATCH),
        (b"\x80", Reason.SKETCH_UNREADABLE),
        (impossible, Reason.SKETCH_UNREADABLE),
    ):
        checked = check(window(**{**GOOD, "embedding_sums": sums}))
        assert (checked.kept[0].embedding_sums, checked.kept[0].embedding_count) == (b"", 0)
        assert reasons(checked) == [reason]
        assert checked.kept[0].features == GOOD["features"]


def test_a_torn_latency_is_left_out_and_a_latency_of_other_calls_sets_the_window_aside() -> None:
    torn, other = window(latency=b"\x80"), window(sequence=2, latency=latency_of(1.0, 2.0))
    queued = window(sequence=3, queue_wait=latency_of(1.0))
    checked = check(torn, other, queued)
    assert [(kept.sequence, kept.latency) for kept in checked.kept] == [(1, b"")]
    assert [(each.window.sequence, each.faults[0].reason) for each in checked.set_aside] == [
        (2, Reason.CONTRADICTION), (3, Reason.CONTRADICTION),
    ]  # fmt: skip


def test_a_plain_file_of_a_published_model_has_nothing_to_sketch_by() -> None:
    checked = check(window(**{**GOOD, "variant": FILE_VARIANT}))
    [kept] = checked.kept
    assert (kept.features, kept.score, kept.embedding_sums) == ({}, b"", b"")
    assert kept.latency and kept.queue_wait and kept.count == 3


def test_a_model_the_registry_does_not_know_may_sketch_what_it_likes() -> None:
    widest = sketch(7.5, edges=[float(edge) for edge in range(65)])
    good = window(**{**GOOD, "features": {"own": widest}, "classes": {5000: 1}})
    checked = check(good, facts=Facts())
    assert checked.kept == [good] and checked.dropped == []
    too_wide = check(window(features={"own": b"\x00\x46\x01"}), facts=Facts())
    assert reasons(too_wide) == [Reason.SKETCH_UNREADABLE]


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=24), min_size=1, max_size=8))
def test_what_is_said_of_a_sketch_depends_on_its_own_bytes_alone(blobs: list[bytes]) -> None:
    windows = [window(sequence=n, features={"f": blob}) for n, blob in enumerate(blobs, start=1)]
    together = {kept.sequence: "f" in kept.features for kept in check(*windows, facts=Facts()).kept}
    alone = {kept.sequence: "f" in kept.features for one in windows for kept in check(one, facts=Facts()).kept}
    assert together == alone
    for one in windows:
        assert alone[one.sequence] == _can_be_read(one.features["f"], 69)


@given(st.binary(max_size=24))
def test_a_latency_counts_where_its_reader_can_read_it(blob: bytes) -> None:
    checked = check(window(latency=blob), facts=Facts())
    kept = [one.latency for one in checked.kept]
    if not _can_be_read(blob, BUCKETS):
        assert kept == [b""]
    elif blob and int(decode_sparse(blob, BUCKETS).sum()) != 3:
        assert kept == []
    else:
        assert kept == [blob]


def _can_be_read(blob: bytes, places: int) -> bool:
    try:
        counts = decode_sparse(blob, places)
    except SketchError:
        return False
    return int(counts.max()) <= MAX_WINDOW_COUNT
