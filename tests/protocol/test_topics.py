"""Names and topics: one form in, the same form out, and nothing with a separator or a wildcard in between."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_protocol.errors import InvalidName
from fleet_protocol.names import check_name
from fleet_protocol.topics import (
    FROM_DEVICE,
    TO_DEVICE,
    DeviceTopic,
    TopicKind,
    fleet_filter,
    parse_topic,
    topic_of,
)

IDENTIFIERS = st.from_regex(r"\A[a-z0-9][a-z0-9_-]{0,63}\Z")


@given(fleet=IDENTIFIERS, device=IDENTIFIERS, kind=st.sampled_from(TopicKind))
def test_a_topic_leads_back_to_its_device(fleet: str, device: str, kind: TopicKind) -> None:
    topic = topic_of(fleet, device, kind)

    assert parse_topic(topic) == DeviceTopic(fleet, device, kind)
    assert str(parse_topic(topic)) == topic


def test_topics_are_as_the_design_draws_them() -> None:
    assert topic_of("plant", "press-7", TopicKind.DESIRED) == "edgefleet/1/plant/press-7/desired"
    assert fleet_filter("plant", TopicKind.TELEMETRY) == "edgefleet/1/plant/+/telemetry"


def test_every_kind_has_exactly_one_direction() -> None:
    assert sorted([*FROM_DEVICE, *TO_DEVICE]) == sorted(TopicKind)


@given(text=st.text(max_size=80))
def test_any_other_text_is_no_topic(text: str) -> None:
    with pytest.raises(InvalidName):
        parse_topic(text)


@pytest.mark.parametrize(
    "topic",
    [
        "edgefleet/1/plant/press-7",
        "edgefleet/1/plant/press-7/desired/",
        "edgefleet/2/plant/press-7/desired",
        "other/1/plant/press-7/desired",
        "/edgefleet/1/plant/press-7/desired",
        "edgefleet/1/plant/+/desired",
        "edgefleet/1/plant/#/desired",
        "edgefleet/1//press-7/desired",
        "edgefleet/1/plant/Press-7/desired",
        "edgefleet/1/plant/press-7\n/desired",
        "edgefleet/1/plant/press-7/DESIRED",
        "edgefleet/1/plant/press-7/unknown",
        "edgefleet/1/" + "a" * 65 + "/press-7/desired",
        "edgefleet/1/plant/press-7/desired" + "/" * 100_000,
    ],
)
def test_a_topic_of_another_form_is_refused(topic: str) -> None:
    with pytest.raises(InvalidName):
        parse_topic(topic)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("device", "0"),
        ("device", "a" * 64),
        ("model", "MobileNet_v2.1-int8"),
        ("version", "1.4.0"),
        ("version", "2.0.0-rc.1"),
        ("sha256", "0" * 64),
    ],
)
def test_a_well_formed_name_is_given_back(kind: str, name: str) -> None:
    assert check_name(kind, name) == name


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("device", ""),
        ("device", "a" * 65),
        ("device", "-a"),
        ("device", "a b"),
        ("device", "a\n"),
        ("device", "ä"),
        ("fleet", "../x"),
        ("model", ".."),
        ("model", "a/b"),
        ("model", "a\x00"),
        ("version", "1.0"),
        ("version", "01.0.0"),
        ("version", "1.0.0-"),
        ("version", "1.0.0+build"),
        ("version", "v1.0.0"),
        ("version", "9999999999.0.0"),
        ("version", "1.0.٣"),
        ("sha256", "A" * 64),
        ("sha256", "0" * 63),
    ],
)
def test_a_name_of_another_form_is_refused_and_told_the_right_one(kind: str, name: str) -> None:
    with pytest.raises(InvalidName, match="use "):
        check_name(kind, name)
