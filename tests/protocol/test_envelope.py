"""DSSE envelopes: every way to get unsigned bytes believed, and the one way to get signed ones."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet_protocol.envelope import (
    DESIRED_TYPE,
    MANIFEST_TYPE,
    MAX_ENVELOPE_BYTES,
    MAX_SIGNATURES,
    add_signatures,
    pre_authentication_encoding,
    read_unverified,
    sign_envelope,
    verify_envelope,
)
from fleet_protocol.errors import SignatureError
from fleet_protocol.keys import PrivateKey

PAYLOAD = b'{"run":"this"}'
A, B, C, STRANGER = (PrivateKey(bytes([number]) * 32) for number in range(1, 5))
TRUSTED = [A.public, B.public, C.public]


def signed(*keys: PrivateKey, payload: bytes = PAYLOAD, kind: str = MANIFEST_TYPE) -> dict[str, Any]:
    envelope = json.loads(sign_envelope(kind, payload, keys))
    assert isinstance(envelope, dict)
    return envelope


def verified(envelope: dict[str, Any] | bytes, threshold: int = 1) -> bytes:
    raw = envelope if isinstance(envelope, bytes) else json.dumps(envelope).encode()
    return verify_envelope(raw, MANIFEST_TYPE, TRUSTED, threshold)


def refused(envelope: dict[str, Any] | bytes, threshold: int = 1) -> None:
    with pytest.raises(SignatureError):
        verified(envelope, threshold)


def test_the_signed_bytes_are_those_of_the_dsse_specification() -> None:
    # github.com/secure-systems-lab/dsse, protocol.md, test vectors
    encoded = pre_authentication_encoding("http://example.com/HelloWorld", b"hello world")

    assert encoded == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert pre_authentication_encoding("", b"") == b"DSSEv1 0  0 "
    assert pre_authentication_encoding("ü", b"\x00 1") == b"DSSEv1 2 \xc3\xbc 3 \x00 1"


def test_an_envelope_has_the_form_of_the_dsse_specification() -> None:
    envelope = signed(A)

    assert envelope == {
        "payload": base64.b64encode(PAYLOAD).decode(),
        "payloadType": MANIFEST_TYPE,
        "signatures": [
            {
                "keyid": A.public.key_id,
                "sig": base64.b64encode(A.sign(pre_authentication_encoding(MANIFEST_TYPE, PAYLOAD))).decode(),
            }
        ],
    }


@pytest.mark.parametrize(
    ("keys", "threshold", "enough"),
    [
        ([A], 1, True),
        ([A, C], 2, True),
        ([C, B, A], 3, True),
        ([A, STRANGER, B], 2, True),
        ([A], 2, False),
        ([A, STRANGER], 2, False),
        ([STRANGER], 1, False),
        ([], 1, False),
    ],
)
def test_a_payload_is_believed_once_enough_different_trusted_keys_signed_it(
    keys: Sequence[PrivateKey], threshold: int, enough: bool
) -> None:
    envelope = signed(*keys)

    if enough:
        assert verified(envelope, threshold) == PAYLOAD
    else:
        refused(envelope, threshold)


@pytest.mark.parametrize("threshold", [0, -1, 4, 10**9])
def test_a_threshold_that_no_or_any_envelope_meets_is_refused(threshold: int) -> None:
    refused(signed(A, B, C), threshold)


def test_a_key_listed_twice_as_trusted_does_not_count_twice() -> None:
    with pytest.raises(SignatureError, match="cannot be met by 1 trusted"):
        verify_envelope(json.dumps(signed(A)).encode(), MANIFEST_TYPE, [A.public, A.public], 2)


def test_no_trusted_keys_trust_nothing() -> None:
    with pytest.raises(SignatureError):
        verify_envelope(json.dumps(signed(A)).encode(), MANIFEST_TYPE, [], 0)


def test_one_key_that_signs_twice_counts_once() -> None:
    envelope = signed(A, A, A)
    assert len(envelope["signatures"]) == 3

    refused(envelope, 2)


def test_one_signature_under_another_trusted_keys_id_counts_for_neither() -> None:
    envelope = signed(A, A)
    envelope["signatures"][1]["keyid"] = B.public.key_id

    refused(envelope, 2)


def test_a_strangers_signature_under_a_trusted_keys_id_is_not_believed() -> None:
    envelope = signed(STRANGER)
    envelope["signatures"][0]["keyid"] = A.public.key_id

    refused(envelope)


def test_a_swapped_payload_is_refused() -> None:
    envelope = signed(A)
    envelope["payload"] = base64.b64encode(b'{"run":"that"}').decode()

    refused(envelope)


def test_a_signature_over_the_bare_payload_without_its_type_is_refused() -> None:
    envelope = signed(A)
    envelope["signatures"][0]["sig"] = base64.b64encode(A.sign(PAYLOAD)).decode()

    refused(envelope)


def test_a_desired_state_never_passes_for_a_manifest() -> None:
    envelope = signed(A, kind=DESIRED_TYPE)
    refused(envelope)

    envelope["payloadType"] = MANIFEST_TYPE
    refused(envelope)


@pytest.mark.parametrize("sig", ["", "AAAA", "!!!!", "=", "ü", base64.b64encode(b"\x00" * 63).decode(), "A" * 4096])
def test_a_signature_that_is_none_is_refused(sig: str) -> None:
    envelope = signed(A)
    envelope["signatures"][0]["sig"] = sig

    refused(envelope)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"payload":"","payloadType":"","signatures":[]}',
        b'{"payload":null,"payloadType":"","signatures":[]}',
        b'{"payloadType":"\\ud800","payload":"","signatures":[]}',
        b"\xff\xfe",
        b" " * (MAX_ENVELOPE_BYTES + 1),
    ],
)
def test_what_is_no_envelope_is_refused(raw: bytes) -> None:
    refused(raw)
    with pytest.raises(SignatureError):
        read_unverified(raw, MANIFEST_TYPE)


def test_more_signatures_than_the_limit_are_refused_before_any_is_checked() -> None:
    envelope = signed(A)
    envelope["signatures"] *= MAX_SIGNATURES + 1

    with pytest.raises(SignatureError, match="exceeds the limit"):
        verified(envelope)


@given(noise=st.binary(max_size=200))
def test_random_bytes_are_refused(noise: bytes) -> None:
    refused(noise)


@given(data=st.data())
def test_an_envelope_with_one_flipped_bit_gives_the_signed_payload_or_nothing(data: st.DataObject) -> None:
    envelope = bytearray(sign_envelope(MANIFEST_TYPE, PAYLOAD, [A, B]))
    place = data.draw(st.integers(0, len(envelope) * 8 - 1))
    envelope[place // 8] ^= 1 << place % 8

    try:
        payload = verified(bytes(envelope), 2)
    except SignatureError:
        return
    assert payload == PAYLOAD


def test_keys_in_different_hands_sign_one_after_another() -> None:
    first = sign_envelope(MANIFEST_TYPE, PAYLOAD, [A])

    second = add_signatures(first, [A, B])

    refused(first, 2)
    assert verified(second, 2) == PAYLOAD
    assert len(json.loads(second)["signatures"]) == 2


def test_reading_for_show_still_tells_the_types_apart() -> None:
    envelope = sign_envelope(DESIRED_TYPE, PAYLOAD, [])

    assert read_unverified(envelope, DESIRED_TYPE) == PAYLOAD
    with pytest.raises(SignatureError, match="holds"):
        read_unverified(envelope, MANIFEST_TYPE)
