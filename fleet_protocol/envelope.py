"""DSSE envelopes: a payload, its type, and Ed25519 signatures over both.

Protocol: github.com/secure-systems-lab/dsse, protocol.md (PAE) and envelope.md (JSON form).

Invariants, in the order `verify_envelope` checks them; any failure raises and returns nothing:
1. the envelope is small, well-formed JSON of the DSSE form;
2. its payload type is the one the caller expects (a manifest can never pass for a desired state);
3. at least `threshold` different trusted keys made a valid signature; unknown key ids are ignored,
   a key counts once, and the key id on a signature is a hint that is never believed by itself.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Sequence

import msgspec
from msgspec import Struct

from fleet_protocol.errors import SignatureError
from fleet_protocol.keys import PrivateKey, PublicKey

MANIFEST_TYPE = "application/vnd.edgefleet.manifest+json"
DESIRED_TYPE = "application/vnd.edgefleet.desired+json"
MAX_ENVELOPE_BYTES = 1024 * 1024
MAX_SIGNATURES = 64


class _Signature(Struct, frozen=True):
    keyid: str
    sig: str


class _Envelope(Struct, frozen=True, rename="camel"):
    payload: str
    payload_type: str
    signatures: list[_Signature]


_DECODER = msgspec.json.Decoder(_Envelope)


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """DSSE's PAE: the bytes that are signed.

    >>> pre_authentication_encoding("http://example.com/HelloWorld", b"hello world")
    b'DSSEv1 29 http://example.com/HelloWorld 11 hello world'
    """
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def sign_envelope(payload_type: str, payload: bytes, keys: Iterable[PrivateKey]) -> bytes:
    """The envelope of `payload`, signed by every key."""
    message = pre_authentication_encoding(payload_type, payload)
    signatures = [_Signature(key.public.key_id, _b64encode(key.sign(message))) for key in keys]
    return msgspec.json.encode(_Envelope(_b64encode(payload), payload_type, signatures))


def add_signatures(envelope: bytes, keys: Iterable[PrivateKey]) -> bytes:
    """The envelope with further signatures, one per key that has not signed yet. Raises SignatureError."""
    parsed = _parse(envelope)
    present = {signature.keyid for signature in parsed.signatures}
    message = pre_authentication_encoding(parsed.payload_type, _b64decode(parsed.payload))
    new = [
        _Signature(key.public.key_id, _b64encode(key.sign(message))) for key in keys if key.public.key_id not in present
    ]
    return msgspec.json.encode(_Envelope(parsed.payload, parsed.payload_type, [*parsed.signatures, *new]))


def verify_envelope(envelope: bytes, payload_type: str, trusted: Sequence[PublicKey], threshold: int) -> bytes:
    """The payload, once `threshold` different `trusted` keys are seen to have signed it as `payload_type`.

    Raises SignatureError otherwise, and also for a threshold below 1 or above the number of trusted keys.
    """
    different = len({key.key_id for key in trusted})
    if not 1 <= threshold <= different:
        raise SignatureError(f"a threshold of {threshold} cannot be met by {different} trusted keys")
    parsed = _parse(envelope)
    if parsed.payload_type != payload_type:
        raise SignatureError(f"the envelope holds {parsed.payload_type[:80]!r}, not {payload_type!r}")
    payload = _b64decode(parsed.payload)
    valid = _valid_signers(parsed, payload, trusted)
    if len(valid) < threshold:
        raise SignatureError(
            f"{len(valid)} valid signatures by trusted keys, {threshold} needed ({len(parsed.signatures)} present)"
        )
    return payload


def signers_of(envelope: bytes, trusted: Sequence[PublicKey]) -> frozenset[str]:
    """The ids of the `trusted` keys that made a valid signature of whatever the envelope holds.

    Says nothing of the payload's type: `verify_envelope` does. Raises SignatureError for what is no envelope.
    """
    parsed = _parse(envelope)
    return _valid_signers(parsed, _b64decode(parsed.payload), trusted)


def _valid_signers(parsed: _Envelope, payload: bytes, trusted: Sequence[PublicKey]) -> frozenset[str]:
    by_id = {key.key_id: key for key in trusted}
    message = pre_authentication_encoding(parsed.payload_type, payload)
    valid = set()
    for signature in parsed.signatures:
        key = by_id.get(signature.keyid)
        if key is not None and key.verifies(_b64decode(signature.sig), message):
            valid.add(key.key_id)
    return frozenset(valid)


def read_unverified(envelope: bytes, payload_type: str) -> bytes:
    """The payload without any check of who made it: for showing, never for running. Raises SignatureError."""
    parsed = _parse(envelope)
    if parsed.payload_type != payload_type:
        raise SignatureError(f"the envelope holds {parsed.payload_type[:80]!r}, not {payload_type!r}")
    return _b64decode(parsed.payload)


def _parse(envelope: bytes) -> _Envelope:
    if len(envelope) > MAX_ENVELOPE_BYTES:
        raise SignatureError(f"an envelope of {len(envelope)} bytes exceeds the limit of {MAX_ENVELOPE_BYTES}")
    try:
        parsed = _DECODER.decode(envelope)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SignatureError(f"not a signed envelope: {error}") from None
    if len(parsed.signatures) > MAX_SIGNATURES:
        raise SignatureError(
            f"an envelope with {len(parsed.signatures)} signatures exceeds the limit of {MAX_SIGNATURES}"
        )
    return parsed


def _b64encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _b64decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise SignatureError("the envelope is not valid base64") from None
