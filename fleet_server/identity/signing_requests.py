"""What a device asks a certificate with: a PKCS#10 request (RFC 2986), and proof that it holds an earlier key.

Invariants, in the order they are checked:
1. the request is one PEM block of at most MAX_REQUEST_CHARS;
2. its key is of a kind that is safe today: P-256, P-384, Ed25519, or RSA of 2048 to 8192 bits;
3. its signature holds: whoever asks has the private key.
What else a request says, its subject and extensions, is never looked at.
"""

from __future__ import annotations

import hashlib

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from fleet_server.errors import InvalidRequestError

MAX_REQUEST_CHARS = 16 * 1024
MIN_RSA_BITS, MAX_RSA_BITS = 2048, 8192
RENEWAL_CONTEXT = b"edgefleet certificate renewal 1\0"
"""Begins what a device signs with its earlier key to renew; then fleet, device and the request, a NUL between."""

DeviceKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey
_CURVES = (ec.SECP256R1, ec.SECP384R1)


def read_request(pem: str) -> DeviceKey:
    """The public key of a request whose signature holds. Raises InvalidRequestError."""
    if len(pem) > MAX_REQUEST_CHARS:
        raise InvalidRequestError(f"csr: at most {MAX_REQUEST_CHARS} characters")
    try:
        request = x509.load_pem_x509_csr(pem.encode("ascii"))
        key = request.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise InvalidRequestError("csr: this is not a PKCS#10 request in PEM form") from None
    checked = _allowed(key)
    try:
        holds = request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm):
        holds = False
    if not holds:
        raise InvalidRequestError("csr: its signature was not made by its key")
    return checked


def key_sha256(key: DeviceKey) -> str:
    """The SHA-256 of a public key (SubjectPublicKeyInfo) in hexadecimal."""
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def proves_possession(certificate_pem: str, proof: bytes, *, fleet: str, device: str, csr: str) -> bool:
    """Whether the key of `certificate_pem` made `proof` over this request (ECDSA and RSA PKCS#1 v1.5: with SHA-256)."""
    message = RENEWAL_CONTEXT + b"\0".join(part.encode() for part in (fleet, device, csr))
    try:
        key = x509.load_pem_x509_certificate(certificate_pem.encode("ascii")).public_key()
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(proof, message)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(proof, message, ec.ECDSA(hashes.SHA256()))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(proof, message, padding.PKCS1v15(), hashes.SHA256())
        else:
            return False
    except (InvalidSignature, ValueError, UnsupportedAlgorithm):
        return False
    return True


def _allowed(key: object) -> DeviceKey:
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, _CURVES):
        return key
    if isinstance(key, rsa.RSAPublicKey) and MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
        return key
    raise InvalidRequestError("csr: its key must be P-256, P-384, Ed25519, or RSA of 2048 to 8192 bits")
