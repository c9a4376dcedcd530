"""Messages: what is said arrives as said, and nothing that arrives gets past the decoder half-read."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet_protocol.errors import MalformedMessage, ProtocolError, UnsupportedSchema
from fleet_protocol.manifest import Manifest, decode_manifest, encode_manifest
from fleet_protocol.messages import (
    MAX_CONTROL_BYTES,
    MAX_TELEMETRY_BYTES,
    Desired,
    Event,
    Message,
    Presence,
    Stored,
    Window,
    decode,
    encode,
)
from fleet_protocol.packing import unpack
from tests.protocol.strategies import MESSAGES, manifests, messages

FEWER = settings(max_examples=25)  # of each of many kinds of message
PRESENCE = Presence(device="d1", boot_id="00000001-0000abcd", online=True, at_ns=5)
WINDOW = Window(
    device="d1", boot_id="00000001-0000abcd", sequence=3, model="m", version="1.0.0", variant="fp32", arm="main",
    start_ns=1, end_ns=2, count=7,
)  # fmt: skip


def as_object(payload: bytes, kind: type[Message]) -> dict[str, Any]:
    plain = unpack(payload, limit=MAX_TELEMETRY_BYTES)
    decoded = msgspec.msgpack.decode(plain) if kind is Window else json.loads(payload)
    assert isinstance(decoded, dict)
    return decoded


def as_payload(content: object, kind: type[Message]) -> bytes:
    return msgspec.msgpack.encode(content) if kind is Window else json.dumps(content).encode()


@pytest.mark.parametrize("kind", MESSAGES)
@FEWER
@given(data=st.data())
def test_every_message_arrives_as_it_was_sent(kind: type[Message], data: st.DataObject) -> None:
    message = data.draw(messages(kind))

    assert decode(kind, encode(message)) == message


@pytest.mark.parametrize("kind", MESSAGES)
@FEWER
@given(data=st.data())
def test_schema_is_the_first_field_of_every_payload(kind: type[Message], data: st.DataObject) -> None:
    assert next(iter(as_object(encode(data.draw(messages(kind))), kind).items())) == ("schema", 1)


@pytest.mark.parametrize("kind", MESSAGES)
@FEWER
@given(data=st.data())
def test_a_field_of_a_later_release_is_ignored(kind: type[Message], data: st.DataObject) -> None:
    message = data.draw(messages(kind))
    content = as_object(encode(message), kind) | {"from_the_future": {"nested": [1, 2]}}

    assert decode(kind, as_payload(content, kind)) == message


@pytest.mark.parametrize("kind", MESSAGES)
@FEWER
@given(data=st.data())
def test_a_later_schema_is_refused_as_such_also_when_the_rest_no_longer_parses(
    kind: type[Message], data: st.DataObject
) -> None:
    content = as_object(encode(data.draw(messages(kind))), kind)
    whole = as_payload(content | {"schema": 2}, kind)
    changed = as_payload({"schema": 2, "device": {"now": "an object"}}, kind)

    for payload in (whole, changed):
        with pytest.raises(UnsupportedSchema, match="schema 2"):
            decode(kind, payload)


@pytest.mark.parametrize("schema", [0, -1])
def test_a_schema_that_never_was_is_malformed(schema: int) -> None:
    content = as_object(encode(PRESENCE), Presence) | {"schema": schema}

    with pytest.raises(MalformedMessage, match="does not exist"):
        decode(Presence, as_payload(content, Presence))


@pytest.mark.parametrize("kind", MESSAGES)
@FEWER
@given(noise=st.binary(max_size=300))
def test_random_bytes_are_malformed_and_nothing_else(kind: type[Message], noise: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(kind, noise)


@pytest.mark.parametrize("kind", MESSAGES)
@FEWER
@given(data=st.data())
def test_a_torn_payload_is_malformed(kind: type[Message], data: st.DataObject) -> None:
    payload = encode(data.draw(messages(kind)))
    cut = data.draw(st.integers(0, len(payload) - 1))

    with pytest.raises(MalformedMessage):
        decode(kind, payload[:cut])


@pytest.mark.parametrize("kind", MESSAGES)
@FEWER
@given(data=st.data())
def test_a_flipped_bit_gives_another_message_or_a_protocol_error(kind: type[Message], data: st.DataObject) -> None:
    payload = bytearray(encode(data.draw(messages(kind))))
    place = data.draw(st.integers(0, len(payload) * 8 - 1))
    payload[place // 8] ^= 1 << place % 8

    try:
        decoded = decode(kind, bytes(payload))
    except ProtocolError:
        return
    assert isinstance(decoded, kind)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.parametrize("kind", [kind for kind in MESSAGES if kind is not Window])
@FEWER
@given(data=st.data())
def test_a_field_of_any_other_value_is_read_or_refused_but_never_crashes(
    kind: type[Message], data: st.DataObject
) -> None:
    content = as_object(encode(data.draw(messages(kind))), kind)
    content[data.draw(st.sampled_from(sorted(content)))] = data.draw(JSON_VALUES)

    try:
        decoded = decode(kind, as_payload(content, kind))
    except ProtocolError:
        return
    assert decode(kind, encode(decoded)) == decoded


@pytest.mark.parametrize("payload", [b"[" * 50_000, b'{"schema":' * 20_000, b'{"a":' + b"[" * 100_000])
@pytest.mark.parametrize("kind", [Presence, Desired, Manifest])
def test_json_nested_beyond_reason_is_malformed(kind: type[Any], payload: bytes) -> None:
    with pytest.raises(MalformedMessage):
        decode_manifest(payload) if kind is Manifest else decode(kind, payload)


def test_messagepack_nested_beyond_reason_is_malformed() -> None:
    with pytest.raises(MalformedMessage):
        decode(Window, b"\x81\xa1a" + b"\x91" * 60_000)


@pytest.mark.parametrize("digits", [19, 400, 5_000])
def test_a_schema_of_thousands_of_digits_is_a_protocol_error(digits: int) -> None:
    with pytest.raises(ProtocolError):
        decode(Presence, b'{"schema":%b}' % (b"9" * digits))
    with pytest.raises(ProtocolError):
        decode_manifest(b'{"schema":%b}' % (b"9" * digits))


@pytest.mark.parametrize(("kind", "limit"), [(Window, MAX_TELEMETRY_BYTES), (Presence, MAX_CONTROL_BYTES)])
def test_a_payload_above_its_limit_is_refused_unread(kind: type[Message], limit: int) -> None:
    base = WINDOW if kind is Window else PRESENCE
    content = as_object(encode(base), kind)
    spare = limit - len(as_payload(content | {"padding": "x" * 40_000}, kind))
    exact = as_payload(content | {"padding": "x" * (40_000 + spare)}, kind)
    if len(exact) > limit:
        exact = as_payload(content | {"padding": "x" * (40_000 + 2 * spare - (len(exact) - limit))}, kind)
    assert len(exact) == limit

    assert decode(kind, exact) == base
    with pytest.raises(MalformedMessage, match="exceeds the limit"):
        decode(kind, exact + b" ")


def test_a_window_that_ends_before_it_starts_is_malformed() -> None:
    content = as_object(encode(WINDOW), Window) | {"end_ns": 0}

    with pytest.raises(MalformedMessage, match="before its start"):
        decode(Window, as_payload(content, Window))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("device", "../escape"),
        ("device", "a/b"),
        ("device", "+"),
        ("sequence", 0),
        ("sequence", 2**53),
        ("count", -1),
        ("version", "1.0"),
        ("boot_id", "00000001-0000ABCD"),
        ("model", ".hidden"),
        ("model", "a\n"),
        ("errors", {str(number): 1 for number in range(65)}),
        ("latency", b"\x00" * (32 * 1024 + 1)),
    ],
)
def test_a_window_that_breaks_a_limit_or_a_names_form_is_malformed(field: str, value: object) -> None:
    content = as_object(encode(WINDOW), Window) | {field: value}

    with pytest.raises(MalformedMessage):
        decode(Window, as_payload(content, Window))


@pytest.mark.parametrize("value", [2**63, 2**64 - 1, float("nan"), "7", 7.5, None])
def test_a_count_beyond_63_bits_or_of_another_type_is_malformed(value: object) -> None:
    content = as_object(encode(WINDOW), Window) | {"count": value}

    with pytest.raises(MalformedMessage):
        decode(Window, msgspec.msgpack.encode(content))


def test_one_kind_never_passes_for_another() -> None:
    stored = encode(Stored(device="d1", boot_id="00000001-0000abcd", ranges=[(1, 2)]))

    with pytest.raises(MalformedMessage):
        decode(Event, stored)


@FEWER
@given(manifest=manifests())
def test_a_manifest_arrives_as_it_was_written(manifest: Manifest) -> None:
    assert decode_manifest(encode_manifest(manifest)) == manifest


@FEWER
@given(manifest=manifests(), data=st.data())
def test_a_damaged_manifest_is_another_manifest_or_a_protocol_error(manifest: Manifest, data: st.DataObject) -> None:
    payload = bytearray(encode_manifest(manifest))
    place = data.draw(st.integers(0, len(payload) * 8 - 1))
    payload[place // 8] ^= 1 << place % 8
    cut = data.draw(st.integers(0, len(payload)))

    for damaged in (bytes(payload), bytes(payload[:cut])):
        try:
            assert isinstance(decode_manifest(damaged), Manifest)
        except ProtocolError:
            continue


def test_a_manifest_of_another_schema_is_refused_as_such_also_when_the_rest_no_longer_parses() -> None:
    with pytest.raises(UnsupportedSchema, match="schema 2"):
        decode_manifest(b'{"schema":2,"model":{"now":"an object"}}')
