"""What a device says is held against the clock, against itself and against the registry."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.telemetry.merging import merge_windows
from fleet_protocol.messages import EstimatedAccuracy, Outcomes, ShadowAgreement
from fleet_server.ingest.checks import (
    FILE_VARIANT,
    MAX_AHEAD_S,
    MAX_SPAN_S,
    Facts,
    Reason,
    Reference,
    Span,
    faults_of,
    span_at,
)
from tests.server.telemetry_store.windows import MINUTE_NS, SECOND_NS, T0_NS, any_window, window

RETENTION_S = 14 * 86_400
NOW = span_at(T0_NS, raw_retention_s=RETENTION_S)
LOCAL = Facts()
KNOWN = Facts(is_published=True, was_assigned=True, reference=Reference(variants=frozenset({"int8-qdq-u8s8"})))
_DAY_NS = 86_400 * SECOND_NS


def reasons(changes: dict[str, Any], facts: Facts = LOCAL, span: Span = NOW) -> set[Reason]:
    """Why a window with these changes does not count."""
    return {fault.reason for fault in faults_of(window(**changes), facts, span)}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"end_ns": T0_NS - 13 * _DAY_NS},
        {"end_ns": T0_NS + (MAX_AHEAD_S - 1) * SECOND_NS},
        {"start_ns": T0_NS - MAX_SPAN_S * SECOND_NS},
        {"count": 0, "latency": b"", "shadow": ShadowAgreement(compared=3, disagreed=3)},
        {"sequence": 9, "covers": [1, 5, 8], "start_ns": T0_NS - 20 * _DAY_NS},
        {"estimated_accuracy": EstimatedAccuracy(count=3, confidence_sum=3.0000000001, variance_sum=0.0)},
        {"outcomes": Outcomes(correct=5, wrong=1, squared_error_sum=2.5, squared_error_count=1)},
        {"errors": {"deadline": 4}, "batch_sizes": {1: 2, 8: 1}, "classes": {0: 1, 9: 2}},
    ],
)
def test_what_an_agent_sends_counts(changes: dict[str, Any]) -> None:
    assert reasons(changes) == set()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"start_ns": 0, "end_ns": 60 * SECOND_NS}, Reason.TOO_OLD),
        ({"end_ns": T0_NS - RETENTION_S * SECOND_NS}, Reason.TOO_OLD),
        ({"end_ns": 4_102_444_800 * SECOND_NS}, Reason.IN_THE_FUTURE),
        ({"end_ns": 2**63 - 1}, Reason.IN_THE_FUTURE),
        ({"end_ns": T0_NS + (MAX_AHEAD_S + 1) * SECOND_NS}, Reason.IN_THE_FUTURE),
        ({"start_ns": T0_NS - (MAX_SPAN_S + 1) * SECOND_NS}, Reason.SPAN),
        ({"start_ns": 0, "sequence": 2, "covers": [1]}, Reason.SPAN),
        ({"count": 2**63 - 1}, Reason.OVERFLOW),
        ({"errors": {"a": 2**62, "b": 2**62}}, Reason.OVERFLOW),
        ({"classes": {3: 2**41}}, Reason.OVERFLOW),
        ({"outcomes": Outcomes(correct=2**63 - 1)}, Reason.OVERFLOW),
        ({"shadow": ShadowAgreement(compared=2**50)}, Reason.OVERFLOW),
        ({"embedding_count": 2**50}, Reason.OVERFLOW),
        ({"batch_sizes": {2**50: 1}}, Reason.OVERFLOW),
        ({"estimated_accuracy": EstimatedAccuracy(count=2**50, confidence_sum=1)}, Reason.OVERFLOW),
        ({"count": 10**12}, Reason.OVERFLOW),
        ({"batch_sizes": {0: 3}}, Reason.CONTRADICTION),
        ({"shadow": ShadowAgreement(compared=2, disagreed=3)}, Reason.CONTRADICTION),
        ({"estimated_accuracy": EstimatedAccuracy(count=3, confidence_sum=3.1)}, Reason.CONTRADICTION),
        ({"estimated_accuracy": EstimatedAccuracy(count=3, confidence_sum=float("nan"))}, Reason.CONTRADICTION),
        ({"estimated_accuracy": EstimatedAccuracy(count=4, variance_sum=1.1)}, Reason.CONTRADICTION),
        ({"estimated_accuracy": EstimatedAccuracy(count=4, variance_sum=float("-inf"))}, Reason.CONTRADICTION),
        ({"outcomes": Outcomes(squared_error_sum=float("inf"), squared_error_count=1)}, Reason.CONTRADICTION),
        ({"sequence": 7, "covers": [3, 7]}, Reason.CONTRADICTION),
        ({"sequence": 7, "covers": [9]}, Reason.CONTRADICTION),
    ],
)
def test_what_no_agent_sends_does_not(changes: dict[str, Any], reason: Reason) -> None:
    assert reasons(changes) == {reason}


def test_a_version_or_variant_that_a_published_model_does_not_have_is_told() -> None:
    assert reasons({}, Facts(is_published=True)) == {Reason.UNKNOWN_VERSION}
    assert reasons({"variant": "made-up"}, KNOWN) == {Reason.UNKNOWN_VARIANT}
    assert reasons({}, KNOWN) == set()


def test_a_version_that_was_never_assigned_to_the_device_is_told() -> None:
    never = Facts(is_published=True, reference=KNOWN.reference)
    assert reasons({}, never) == {Reason.NOT_ASSIGNED}


def test_a_plain_file_is_not_held_against_the_registry() -> None:
    assert reasons({"variant": FILE_VARIANT}, Facts(is_published=True)) == set()


def test_every_reason_is_told_at_once() -> None:
    found = reasons({"start_ns": 0, "end_ns": 2**63 - 1, "count": 2**63 - 1, "covers": [5]}, Facts(is_published=True))
    assert found == {
        Reason.IN_THE_FUTURE, Reason.SPAN, Reason.OVERFLOW, Reason.CONTRADICTION, Reason.UNKNOWN_VERSION,
    }  # fmt: skip


@given(any_window)
def test_any_window_that_decodes_gets_an_answer(found: Any) -> None:
    for fault in faults_of(found, LOCAL, NOW):
        assert fault.detail


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=6))
def test_windows_that_an_outbox_merged_count(counts: list[int]) -> None:
    made = window(sequence=1, count=counts[0], latency=b"", end_ns=T0_NS - 100 * MINUTE_NS)
    for sequence, count in enumerate(counts[1:], start=2):
        end_ns = T0_NS - (100 - sequence) * MINUTE_NS
        made = merge_windows(made, window(sequence=sequence, count=count, latency=b"", end_ns=end_ns))
    assert faults_of(made, KNOWN, NOW) == []
