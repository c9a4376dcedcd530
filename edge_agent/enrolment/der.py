"""The little DER (ITU-T X.690) that a device needs: a PKCS#10 request to write, a certificate's dates to read.

Written here because the library that does it all costs a device 9 MB of memory for what are two short structures,
with an Ed25519 key that libsodium, which is there anyway, makes and signs with.

Invariant of the reader: every length is checked against what is there; anything else raises ValueError.
"""

from __future__ import annotations

import base64
import binascii
from datetime import UTC, datetime

from msgspec import Struct

from fleet_protocol.keys import PrivateKey

_INTEGER, _BIT_STRING, _OID, _UTF8, _SEQUENCE, _SET = 0x02, 0x03, 0x06, 0x0C, 0x30, 0x31
_UTC_TIME, _GENERALIZED_TIME, _CONTEXT_0 = 0x17, 0x18, 0xA0
_COMMON_NAME = bytes.fromhex("550403")  # 2.5.4.3
_ED25519 = bytes.fromhex("2b6570")  # 1.3.101.112, RFC 8410
_PRIVATE_PREFIX = bytes.fromhex("302e020100300506032b657004220420")  # RFC 8410, section 7
_MAX_CONTENT_BYTES = 64 * 1024


class CertificateFacts(Struct, frozen=True, kw_only=True):
    """What a device wants to know of its certificate. `serial` is 32 hexadecimal digits."""

    serial: str
    begins_ns: int
    expires_ns: int


def signing_request(key: PrivateKey, name: str) -> str:
    """A PKCS#10 request (RFC 2986) in PEM for the common name `name`."""
    attribute = _tlv(_SEQUENCE, _tlv(_OID, _COMMON_NAME), _tlv(_UTF8, name.encode()))
    subject = _tlv(_SEQUENCE, _tlv(_SET, attribute))
    algorithm = _tlv(_SEQUENCE, _tlv(_OID, _ED25519))
    public = _tlv(_SEQUENCE, algorithm, _tlv(_BIT_STRING, b"\0", key.public.raw))
    asked = _tlv(_SEQUENCE, _tlv(_INTEGER, b"\0"), subject, public, _tlv(_CONTEXT_0))
    request = _tlv(_SEQUENCE, asked, algorithm, _tlv(_BIT_STRING, b"\0", key.sign(asked)))
    return to_pem("CERTIFICATE REQUEST", request)


def private_key_pem(seed: bytes) -> str:
    """An Ed25519 private key (PKCS #8, RFC 8410) in PEM."""
    return to_pem("PRIVATE KEY", _PRIVATE_PREFIX + seed)


def read_certificate(pem: str) -> CertificateFacts:
    """The facts of the first certificate in `pem`. Raises ValueError."""
    certificate, _ = _read(from_pem("CERTIFICATE", pem), _SEQUENCE)
    body, _ = _read(certificate, _SEQUENCE)
    if body[:1] == bytes([_CONTEXT_0]):
        _, body = _read(body, _CONTEXT_0)  # the version
    serial, body = _read(body, _INTEGER)
    _, body = _read(body, _SEQUENCE)  # the signature's algorithm
    _, body = _read(body, _SEQUENCE)  # the issuer
    validity, _ = _read(body, _SEQUENCE)
    begins_ns, rest = _read_time_ns(validity)
    expires_ns, _ = _read_time_ns(rest)
    return CertificateFacts(serial=f"{int.from_bytes(serial):032x}", begins_ns=begins_ns, expires_ns=expires_ns)


def to_pem(label: str, der: bytes) -> str:
    """PEM (RFC 7468) with lines of 64 characters."""
    text = base64.b64encode(der).decode("ascii")
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""])


def from_pem(label: str, pem: str) -> bytes:
    """The bytes of the first block with this label. Raises ValueError."""
    _, begun, rest = pem.partition(f"-----BEGIN {label}-----")
    body, ended, _ = rest.partition(f"-----END {label}-----")
    if not begun or not ended:
        raise ValueError(f"there is no {label.lower()} in PEM form")
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except binascii.Error:
        raise ValueError(f"the base64 of the {label.lower()} is damaged") from None


def _tlv(tag: int, *contents: bytes) -> bytes:
    content = b"".join(contents)
    if len(content) > _MAX_CONTENT_BYTES:
        raise ValueError(f"more than {_MAX_CONTENT_BYTES} bytes")
    if len(content) < 0x80:
        return bytes([tag, len(content)]) + content
    length = len(content).to_bytes((len(content).bit_length() + 7) // 8)
    return bytes([tag, 0x80 | len(length)]) + length + content


def _read(data: bytes, tag: int) -> tuple[bytes, bytes]:
    """(the content of the first element, what follows it). Raises ValueError unless it has this tag."""
    if len(data) < 2 or data[0] != tag:
        raise ValueError(f"expected the DER element 0x{tag:02x}")
    length, start = data[1], 2
    if length >= 0x80:
        size = length & 0x7F
        if not 1 <= size <= 3 or len(data) < 2 + size:
            raise ValueError("a DER length is not valid")
        length, start = int.from_bytes(data[2 : 2 + size]), 2 + size
    if len(data) < start + length:
        raise ValueError("a DER element is cut off")
    return data[start : start + length], data[start + length :]


def _read_time_ns(data: bytes) -> tuple[int, bytes]:
    """RFC 5280, section 4.1.2.5: UTCTime up to 2049, GeneralizedTime after."""
    if data[:1] == bytes([_UTC_TIME]):
        content, rest = _read(data, _UTC_TIME)
        text = content.decode("ascii")
        text = ("19" if text[:2] >= "50" else "20") + text
    else:
        content, rest = _read(data, _GENERALIZED_TIME)
        text = content.decode("ascii")
    at = datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
    return int(at.timestamp()) * 10**9, rest
