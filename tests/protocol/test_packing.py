"""Packed windows: smaller, the same bytes for equal windows, and nothing that arrives inflates without bound."""

from __future__ import annotations

import tracemalloc
import zlib

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_protocol.bins import BinSketch
from fleet_protocol.errors import MalformedMessage, ProtocolError, UnsupportedSchema
from fleet_protocol.messages import MAX_TELEMETRY_BYTES, Window, decode, encode, encode_plain
from fleet_protocol.packing import DICTIONARIES, is_packed, pack, unpack
from tests.protocol.strategies import messages

(DICTIONARY,) = DICTIONARIES.values()


def window(**changes: object) -> Window:
    sketch = BinSketch(np.linspace(0.0, 1.0, 65))
    sketch.record_many(np.random.default_rng(1).uniform(0, 1, 900))
    fields: dict[str, object] = {
        "device": "d1", "boot_id": "00000001-0000abcd", "sequence": 3, "model": "m", "version": "1.0.0",
        "variant": "fp32", "arm": "main", "start_ns": 1, "end_ns": 2, "count": 7,
        "features": {f"mean_{number}": sketch.to_bytes() for number in range(10)},
    }  # fmt: skip
    return msgspec.convert(fields | changes, Window)


def stream(plain: bytes, dictionary: bytes = b"") -> bytes:
    packer = zlib.compressobj(level=9, zdict=dictionary) if dictionary else zlib.compressobj(level=9)
    return packer.compress(plain) + packer.flush()


def test_the_dictionary_is_the_one_that_older_releases_packed_with() -> None:
    """Pinned: another dictionary under this name makes every window that was ever kept unreadable."""
    assert {name: len(dictionary) for name, dictionary in DICTIONARIES.items()} == {0x3D247388: 947}


def test_a_packed_window_is_half_as_large_and_arrives_as_it_was_sent() -> None:
    payload = encode(window())

    assert is_packed(payload)
    assert not is_packed(encode_plain(window()))
    assert len(payload) < 0.6 * len(encode_plain(window()))
    assert decode(Window, payload) == decode(Window, encode_plain(window())) == window()


def test_a_window_that_gets_no_smaller_travels_as_it_is() -> None:
    noise = np.random.default_rng(2).bytes(20_000)

    assert pack(noise) == noise
    assert pack(b"\x81\xa1a\x01") == b"\x81\xa1a\x01"


@given(data=st.data(), order=st.randoms(use_true_random=False))
def test_equal_windows_have_equal_bytes_in_whatever_order_they_were_counted(data: st.DataObject, order: object) -> None:
    one = data.draw(messages(Window))
    items = list(one.classes.items())
    order.shuffle(items)  # type: ignore[attr-defined] # a random.Random, which hypothesis types as object
    names = list(reversed(one.features.items()))
    other = msgspec.structs.replace(one, classes=dict(items), features=dict(names))

    assert encode(one) == encode(other)


@given(plain=st.binary(max_size=3_000) | st.binary(max_size=20).map(lambda part: part * 200))
def test_what_is_packed_comes_back(plain: bytes) -> None:
    packed = pack(plain)

    assert len(packed) <= len(plain)
    if is_packed(packed) and packed is not plain:
        assert unpack(packed, limit=10_000) == plain


@given(noise=st.binary(max_size=200))
def test_any_bytes_after_the_first_are_a_protocol_error(noise: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(Window, b"\x78" + noise)


@given(data=st.data())
def test_a_changed_byte_in_a_packed_window_never_gives_another_window(data: st.DataObject) -> None:
    payload = bytearray(encode(window()))
    place = data.draw(st.integers(0, len(payload) - 1))
    payload[place] ^= data.draw(st.integers(1, 255))

    assert_another_level_or_refused(payload)


def test_a_header_that_names_another_level_of_packing_reads_the_same() -> None:
    payload = bytearray(encode(window()))
    for flags in range(256):
        payload[1] = flags
        assert_another_level_or_refused(payload)


def assert_another_level_or_refused(payload: bytearray) -> None:
    """Two bits of a zlib header (RFC 1950, FLEVEL) say only how hard the packer tried."""
    try:
        read = decode(Window, bytes(payload))
    except ProtocolError:
        return
    assert payload[2:] == encode(window())[2:]
    assert read == window()


@pytest.mark.parametrize("cut", [1, 2, 5, 6, 7, 100, -1])
def test_a_torn_packed_window_is_malformed(cut: int) -> None:
    with pytest.raises(MalformedMessage):
        decode(Window, encode(window())[:cut])


@pytest.mark.parametrize("tail", [b"\x00", b"\x78", encode(window())])
def test_bytes_behind_the_end_are_malformed(tail: bytes) -> None:
    with pytest.raises(MalformedMessage, match="follows"):
        decode(Window, encode(window()) + tail)


@pytest.mark.parametrize("dictionary", [b"", DICTIONARY])
def test_a_bomb_is_refused_before_it_is_inflated(dictionary: bytes) -> None:
    bomb = stream(b"\x00" * 30_000_000, dictionary)
    assert len(bomb) < MAX_TELEMETRY_BYTES

    tracemalloc.start()
    try:
        with pytest.raises(MalformedMessage, match="limit"):
            decode(Window, bomb)
        assert tracemalloc.get_traced_memory()[1] < 10 * MAX_TELEMETRY_BYTES
    finally:
        tracemalloc.stop()


def test_a_stream_of_another_packer_without_our_dictionary_is_read() -> None:
    assert decode(Window, stream(encode_plain(window()))) == window()


def test_a_later_releases_dictionary_is_told_from_a_torn_payload() -> None:
    with pytest.raises(UnsupportedSchema, match="upgrade"):
        decode(Window, stream(encode_plain(window()), b"words of the year 2040"))


def test_a_window_within_the_limit_stays_so_when_it_is_packed_and_not_beyond() -> None:
    largest = window(covers=list(range(70_000, 82_000)))
    too_large = window(covers=list(range(70_000, 90_000)))

    assert decode(Window, encode(largest)) == largest
    with pytest.raises(MalformedMessage, match="limit"):
        decode(Window, encode(too_large))
