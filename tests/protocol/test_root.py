"""A trust root is believed by its own keys and the ones before, or not at all."""

from __future__ import annotations

import base64

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from fleet_protocol.envelope import DESIRED_TYPE, MANIFEST_TYPE, add_signatures, sign_envelope
from fleet_protocol.errors import MalformedMessage, ProtocolError, SignatureError, UnsupportedSchema
from fleet_protocol.keys import PrivateKey
from fleet_protocol.root import (
    MAX_ROOT_BYTES,
    ROOT_TYPE,
    KeyRule,
    Root,
    encode_root,
    make_root,
    sign_root,
    verify_first_root,
    verify_next_root,
    walk_chain,
)

KEYS = [PrivateKey(bytes([number]) * 32) for number in range(1, 9)]
ROOT_KEYS, RELEASE, DIRECTOR, STRANGER = KEYS[:3], KEYS[3], KEYS[4], KEYS[5]


def rule(*keys: PrivateKey, threshold: int = 1) -> KeyRule:
    return KeyRule(tuple(key.public for key in keys), threshold)


def root(version: int = 1, *, by: KeyRule | None = None, fleet: str = "f", director: PrivateKey = DIRECTOR) -> Root:
    return make_root(
        version=version,
        fleet=fleet,
        issued_at_ns=version,
        expires_ns=10**18,
        root=by or rule(*ROOT_KEYS[:2], threshold=2),
        release=rule(RELEASE),
        director=rule(director),
    )


FIRST = root()


def test_a_first_root_is_believed_by_its_own_keys() -> None:
    assert verify_first_root(sign_root(FIRST, ROOT_KEYS[:2]), fleet="f") == FIRST


def test_people_on_different_machines_sign_the_same_root_one_after_the_other() -> None:
    begun = sign_root(FIRST, [])
    for key in ROOT_KEYS[:2]:
        with pytest.raises(SignatureError, match="2 needed"):
            verify_first_root(begun, fleet="f")
        begun = add_signatures(begun, [key])

    assert verify_first_root(begun, fleet="f") == FIRST


def test_a_root_of_another_fleet_is_refused() -> None:
    with pytest.raises(SignatureError, match="fleet f, this is g"):
        verify_first_root(sign_root(FIRST, ROOT_KEYS), fleet="g")
    with pytest.raises(SignatureError, match="fleet g, this is f"):
        verify_next_root(FIRST, sign_root(root(2, fleet="g"), ROOT_KEYS))


def test_the_next_root_needs_the_old_root_keys_and_its_own() -> None:
    new = root(2, by=rule(ROOT_KEYS[1], ROOT_KEYS[2], threshold=2))

    assert verify_next_root(FIRST, sign_root(new, ROOT_KEYS)) == new
    with pytest.raises(SignatureError, match="not signed by root 1's root keys: 1 valid"):
        verify_next_root(FIRST, sign_root(new, ROOT_KEYS[1:]))
    with pytest.raises(SignatureError, match="1 valid"):
        verify_next_root(FIRST, sign_root(new, ROOT_KEYS[:2]))


@pytest.mark.parametrize("version", [1, 3, 2**53 - 1])
def test_a_rolled_back_repeated_or_skipping_version_is_refused(version: int) -> None:
    with pytest.raises(SignatureError, match="versions go up by one"):
        verify_next_root(FIRST, sign_root(root(version), ROOT_KEYS))


def test_one_key_that_signs_twice_counts_once() -> None:
    with pytest.raises(SignatureError, match="1 valid"):
        verify_first_root(sign_root(FIRST, [ROOT_KEYS[0], ROOT_KEYS[0]]), fleet="f")


def test_the_same_key_listed_twice_counts_once() -> None:
    with pytest.raises(MalformedMessage, match="2 signatures of 1 keys"):
        root(by=rule(ROOT_KEYS[0], ROOT_KEYS[0], threshold=2))
    twice = replace(FIRST.root, key_ids=[FIRST.root.key_ids[0]] * 2)
    envelope = _as_signed({**msgspec.to_builtins(FIRST), "root": msgspec.to_builtins(twice)})
    with pytest.raises(MalformedMessage, match="one is there twice"):
        verify_first_root(envelope, fleet="f")


def test_a_signature_under_another_keys_id_counts_for_nobody() -> None:
    envelope = msgspec.json.decode(sign_root(FIRST, [ROOT_KEYS[0], STRANGER]))
    envelope["signatures"][1]["keyid"] = ROOT_KEYS[1].public.key_id

    with pytest.raises(SignatureError, match="1 valid"):
        verify_first_root(msgspec.json.encode(envelope), fleet="f")


def test_a_key_under_another_keys_id_is_refused() -> None:
    keys = dict(FIRST.keys)
    keys[ROOT_KEYS[0].public.key_id] = base64.b64encode(STRANGER.public.raw).decode()
    with pytest.raises(MalformedMessage, match="another id than its bytes give"):
        verify_first_root(_as_signed({**msgspec.to_builtins(FIRST), "keys": keys}), fleet="f")


def test_extraneous_signatures_change_nothing() -> None:
    envelope = sign_root(FIRST, [STRANGER, *ROOT_KEYS, DIRECTOR, RELEASE])

    assert verify_first_root(envelope, fleet="f") == FIRST


def test_an_extraneous_key_is_refused() -> None:
    keys = {**FIRST.keys, STRANGER.public.key_id: base64.b64encode(STRANGER.public.raw).decode()}
    with pytest.raises(MalformedMessage, match="no role names"):
        verify_first_root(_as_signed({**msgspec.to_builtins(FIRST), "keys": keys}), fleet="f")


@pytest.mark.parametrize("other", [ROOT_KEYS[0], RELEASE])
def test_a_director_key_must_not_release_nor_change_the_root(other: PrivateKey) -> None:
    with pytest.raises(MalformedMessage, match="has another role too"):
        root(director=other)


@pytest.mark.parametrize("kind", [MANIFEST_TYPE, DESIRED_TYPE])
def test_a_root_typed_as_something_else_is_no_root(kind: str) -> None:
    with pytest.raises(SignatureError, match="the envelope holds"):
        verify_first_root(sign_envelope(kind, encode_root(FIRST), ROOT_KEYS), fleet="f")


def test_a_root_in_another_encoding_is_refused() -> None:
    for payload in (b" " + encode_root(FIRST), encode_root(FIRST).replace(b'"fleet":"f"', b'"fleet":"g","fleet":"f"')):
        with pytest.raises(MalformedMessage, match="one encoding"):
            verify_first_root(sign_envelope(ROOT_TYPE, payload, ROOT_KEYS), fleet="f")


def test_a_field_that_its_schema_does_not_have_is_refused() -> None:
    with pytest.raises(MalformedMessage, match="unknown field"):
        verify_first_root(_as_signed({**msgspec.to_builtins(FIRST), "backdoor": 1}), fleet="f")


def test_a_root_of_a_later_schema_asks_for_an_upgrade() -> None:
    with pytest.raises(UnsupportedSchema, match="upgrade"):
        verify_first_root(_as_signed({"schema": 2, "new": True}), fleet="f")


def test_endless_data_in_place_of_a_root_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(SignatureError, match="exceeds the limit"):
        verify_first_root(b" " * (MAX_ROOT_BYTES + 1), fleet="f")


def test_an_expired_root_still_vouches_for_the_next_one() -> None:
    expired = replace(FIRST, expires_ns=FIRST.issued_at_ns + 1)

    assert verify_next_root(expired, sign_root(root(2), ROOT_KEYS)) == root(2)


def _as_signed(document: dict[str, object]) -> bytes:
    return sign_envelope(ROOT_TYPE, msgspec.json.encode(document, order="sorted"), ROOT_KEYS)


@st.composite
def _chains(draw: st.DrawFn) -> list[tuple[Root, frozenset[int]]]:
    """Mostly right steps, by changing holders: the root and the numbers of the keys that signed it."""
    steps = []
    for version in range(2, 2 + draw(st.integers(1, 4))):
        holders = draw(st.sets(st.integers(0, 3), min_size=1, max_size=3))
        by = KeyRule(tuple(KEYS[at].public for at in sorted(holders)), draw(st.integers(1, len(holders))))
        odd_version = draw(st.sampled_from([version, version, version, version - 1, version + 1]))
        made = root(odd_version, by=by, fleet=draw(st.sampled_from("fffffg")), director=KEYS[7])
        everybody = st.just(frozenset(range(6)))
        steps.append((made, draw(everybody | everybody | st.frozensets(st.integers(0, 5), max_size=6))))
    return steps


@settings(max_examples=150, deadline=None)
@given(_chains())
def test_no_chain_that_breaks_continuity_is_walked(steps: list[tuple[Root, frozenset[int]]]) -> None:
    """Against a second reading of the rule, over key numbers alone."""
    envelopes = [sign_root(step, [KEYS[at] for at in sorted(signers)]) for step, signers in steps]
    ids = [{KEYS[at].public.key_id for at in signers} for _, signers in steps]
    trusted, right = FIRST, 0
    for (step, _), signed_by in zip(steps, ids, strict=True):
        rules = (trusted.root, step.root)
        enough = all(len(signed_by & set(role.key_ids)) >= role.threshold for role in rules)
        if not (enough and step.fleet == "f" and step.version == trusted.version + 1):
            break
        trusted, right = step, right + 1

    assert [walked.version for walked in walk_chain(FIRST, envelopes[:right])] == list(range(2, right + 2))
    if right < len(steps):
        with pytest.raises(SignatureError):
            walk_chain(FIRST, envelopes[: right + 1])


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 2000), st.integers(0, 255))
def test_no_bytes_at_all_make_another_error_than_the_protocols(payload: bytes, at: int, byte: int) -> None:
    good = sign_root(FIRST, ROOT_KEYS)
    damaged = good[: at % len(good)] + bytes([byte]) + good[at % len(good) + 1 :]
    for envelope in (payload, damaged, sign_envelope(ROOT_TYPE, payload, ROOT_KEYS)):
        try:
            believed = verify_first_root(envelope, fleet="f")
        except ProtocolError:
            continue
        assert believed == FIRST
