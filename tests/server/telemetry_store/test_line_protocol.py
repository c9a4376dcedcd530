"""Lines and points: one per window, whatever the window holds."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_protocol.messages import ShadowAgreement, Window
from fleet_server.telemetry_store.line_protocol import (
    MAX_TIME_NS,
    SLOT_NS,
    lines_of,
    point_time_ns,
    tag_text,
    time_range_ns,
)
from tests.server.telemetry_store.windows import any_window, window


@given(any_window)
@settings(deadline=None)
def test_the_point_of_a_window_lies_in_the_time_asked_for_and_within_influxdbs(one: Window) -> None:
    at = window(end_ns=one.end_ns, boot_id=one.boot_id, sequence=one.sequence)
    time_ns = point_time_ns(at)
    first, last = time_range_ns(at.end_ns - 1, at.end_ns)
    assert first <= time_ns <= last <= MAX_TIME_NS
    assert abs(time_ns - at.end_ns) < 3 * SLOT_NS


@given(st.text(max_size=10), st.text(max_size=10))
def test_different_tag_values_have_different_texts_and_names_keep_theirs(one: str, other: str) -> None:
    assert (tag_text(one) == tag_text(other)) == (one == other)
    assert tag_text("dev-1_a.B") == "dev-1_a.B"


@given(any_window, st.text(max_size=10))
@settings(deadline=None)
def test_a_line_is_one_line_whatever_is_in_the_window(one: Window, fleet: str) -> None:
    for line in lines_of(fleet, [one]):
        assert "\n" not in line
        assert line.split(",", 1)[0] in {"inference", "outcome", "resource"}


def test_a_shadow_has_its_own_fields_and_a_window_without_one_has_none() -> None:
    shadowed, plain = window(sequence=1, shadow=ShadowAgreement(compared=40, disagreed=3)), window(sequence=2)

    with_fields, without = lines_of("home", [shadowed, plain])

    assert ",shadow_compared=40i,shadow_disagreed=3i," in with_fields
    assert "shadow" not in without
